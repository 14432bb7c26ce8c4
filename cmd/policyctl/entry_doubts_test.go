package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity/registry"
)

func TestHashDoubts(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"python3": "interpreter", "app": "program"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	of := func(name string) []registry.Selector {
		return []registry.Selector{{Type: "unix", Value: "sha256:" + hashFile(filepath.Join(dir, name))}}
	}
	if got := hashDoubts(of("python3"), []string{dir}); len(got) != 1 || !strings.Contains(got[0], "python3 on this machine") {
		t.Errorf("of an interpreter: %q", got)
	}
	if got := hashDoubts(of("app"), []string{dir, dir + "/none"}); len(got) > 0 {
		t.Errorf("of a program: %q", got)
	}
}

func TestWarnDoubts(t *testing.T) {
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr}
	a.warnDoubts(&types.Entry{Selectors: []*types.Selector{{Type: "unix", Value: "path:/bin/bash"}, {Type: "unix", Value: "color:red"}}})
	if got := stderr.String(); strings.Count(got, "warning: ") != 2 || !strings.Contains(got, "interpreter") || !strings.Contains(got, "unix:color") || stdout.Len() > 0 {
		t.Errorf("stderr %q, stdout %q", got, stdout.String())
	}
}
