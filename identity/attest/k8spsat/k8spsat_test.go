package k8spsat

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAgent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	a := Attestor{Config{Cluster: "c1", TokenFile: file}}
	// The kubelet replaces the token: each attestation reads it.
	for _, token := range []string{"first", "second"} {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		payload, answer, err := a.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(`{"cluster":"c1","token":"`+token+`"}`, string(payload)); diff != "" {
			t.Error(diff)
		}
		if _, err := answer(nil); err == nil {
			t.Error("a challenge is answered")
		}
	}
}

func TestAgentTokenFile(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": " \n", "long": strings.Repeat("secret", MaxToken)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := Attestor{Config{Cluster: "c", TokenFile: file}}.Begin(t.Context())
		if err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := (Attestor{Config{Cluster: "c", TokenFile: filepath.Join(dir, "none")}}).Begin(t.Context()); err == nil {
		t.Error("no file is a token")
	}
}
