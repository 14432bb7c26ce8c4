package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckPublishers: --check finds what publishers cannot have, with its place
// in the file.
func TestCheckPublishers(t *testing.T) {
	dir := t.TempDir()
	public, private := writeKey(t, dir, "k")
	other, _ := writeKey(t, dir, "other")
	for _, tt := range []struct{ name, more, want string }{
		{"several", "  - {name: b, keys: [other], packages: [guardrails]}\n", "configuration ok"},
		{"no such file", "  - {name: b, keys: [none], packages: [guardrails]}\n", ":5:22: publishers[1].keys[0]: open "},
		{"same key", "  - {name: b, keys: [k], packages: [guardrails]}\n", ":5:21: publishers[1].keys: "},
		{"private key", "approvers:\n  - {name: ann, keys: [private]}\n", ":6:24: approvers[0].keys[0]: " + private + ": policy key: this is a private key"},
		{"approvers of one key", "approvers:\n  - {name: ann, keys: [k]}\n  - {name: bob, keys: [k]}\n", `of approver "ann" and of "bob"`},
		{"not read without the role", "approvers:\n  - {name: ann, keys: [none]}\nroles: [issuer, audit]\n", "configuration ok"},
		{"token", "policy_source: {url: 'https://x/', token_file: /none/token}\n", ":5:48: policy_source.token_file: token: open /none/token: "},
		{"authorities", "policy_source:\n  url: https://x/\n  ca_file: k\n", ":7:12: policy_source.ca_file: no certificate (PEM) in " + public},
		{"overlap", "  - {name: b, keys: [other], packages: [services.orders]}\n", `: publishers[1].packages: services.orders overlaps with services.orders of publisher "a"`},
		{"unknown key", "  - {name: b, keys: [k], package: [x]}\n", `did you mean "packages"?`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "writd.yaml")
			more := strings.NewReplacer("[k]", "["+public+"]", "[other]", "["+other+"]", "[private]", "["+private+"]", ": k\n", ": "+public+"\n").Replace(tt.more)
			text := "trust_domain: example.org\ndata_dir: /x\npublishers:\n  - {name: a, keys: [" + public + "], packages: [services.orders]}\n" + more
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			spec().Execute(t.Context(), []string{"--config", file, "--check"}, nil, &out, &out)
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}

// writeKey writes both halves of a new key and returns their files.
func writeKey(t *testing.T, dir, name string) (public, private string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file, kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	public = write(name+".pub.pem", "PUBLIC KEY", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	return public, write(name+".pem", "PRIVATE KEY", der, err)
}
