package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What cannot work is refused by --check, and so at start, with the place.
func TestCheckRefuses(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "writd.yaml")
	for _, tc := range []struct{ yaml, want string }{
		{"trust_domain: Bad Domain", "writd.yaml:2:15: trust_domain: "},
		{"trust_domain: EXAMPLE.org", "writd.yaml:2:15: trust_domain: "},
		{"trust_domain: a/b", "writd.yaml:2:15: trust_domain: "},
		{"trust_domain: x:80", "writd.yaml:2:15: trust_domain: "},
		{"trust_domain: spiffe://example.org", "writd.yaml:2:15: trust_domain: want the name alone, example.org"},
		{"audit_max_bytes: -1", "writd.yaml:3:18: audit_max_bytes: want a number of bytes"},
		{"drain: -1s", "writd.yaml:3:8: drain: want 0s or more"},
		{"jwt_ttl: 25h", "writd.yaml:3:10: jwt_ttl: want at most ca_ttl (24h0m0s)"},
		{"jwt_ttl: 1s", "writd.yaml:3:10: jwt_ttl: want at least 10s"},
		{"upstream: {disk: {cert: /nope, key: /nope}}", "writd.yaml:3:18: upstream.disk: "},
		{"attestors: {x509pop: {ca_bundle: /nope}}", "writd.yaml:3:34: attestors.x509pop.ca_bundle: "},
		{"attestors: {x509pop: {ca_bundle: " + garbage + "}}", "writd.yaml:3:34: attestors.x509pop.ca_bundle: "},
		{"database: {postgres: nonsense}", "writd.yaml:3:22: database.postgres: the DSN is neither"},
		{"replica: a b", "writd.yaml:3:10: replica: want letters"},
		{"ca_key_type: foo", `writd.yaml:3:14: ca_key_type: "foo" is not one of ec-p256, ec-p384, rsa-2048, rsa-4096` + "\n"},
	} {
		content := "data_dir: " + filepath.Join(dir, "data") + "\n"
		if !strings.HasPrefix(tc.yaml, "trust_domain") {
			content += "trust_domain: example.org\n"
		}
		if err := os.WriteFile(file, []byte(content+tc.yaml+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		if code := spec().Execute(t.Context(), []string{"--config", file, "--check"}, strings.NewReader(""), &stdout, &stderr); code != 1 || !strings.Contains(stderr.String(), tc.want) {
			t.Errorf("%s: exit code %d, %s%s, want %q", tc.yaml, code, stdout.String(), stderr.String(), tc.want)
		}
	}
	// The default life gives way to an authority that is shorter.
	if err := os.WriteFile(file, []byte("data_dir: /x\ntrust_domain: example.org\nca_ttl: 36s\nsvid_ttl: 10s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	if code := spec().Execute(t.Context(), []string{"--config", file, "--check"}, strings.NewReader(""), &said, &said); code != 0 {
		t.Errorf("a short ca_ttl: exit code %d, %s", code, said.String())
	}
	if hasPKCS11 {
		return
	}
	content := "data_dir: /x\ntrust_domain: example.org\nkeys: {pkcs11: {module: m, token_label: t, pin_file: p}}\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	if code := spec().Execute(t.Context(), []string{"--config", file, "--check"}, strings.NewReader(""), &stderr, &stderr); code != 1 || !strings.Contains(stderr.String(), "writd.yaml:3:") {
		t.Errorf("PKCS #11: exit code %d, %s", code, stderr.String())
	}
}
