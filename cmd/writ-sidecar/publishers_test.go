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

// TestCheckKeys: --check reads the keys that policy is verified with.
func TestCheckKeys(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	good := write("good.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	wrong := write("wrong.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
	publisher := func(key string) string {
		return "keys: [" + good + "]\n  trust: publisher\n  publishers: [{name: a, keys: [" + key + `], packages: ["*"]}]`
	}
	for _, tt := range []struct{ name, policy, want string }{
		{"readable", publisher(good), "configuration ok"},
		{"missing", "keys: [" + good + ", /none/k.pem]", "policy.keys[1]: open /none/k.pem: no such file"},
		{"private", "keys: [" + wrong + "]", "writ.yaml:9:10: policy.keys[0]: " + wrong + ": policy key: this is a private key"},
		{"publisher's", publisher(wrong), "writ.yaml:11:33: policy.publishers[0].keys[0]: " + wrong + ": policy key: this is a private key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := write("writ.yaml", []byte(`trust_domain: example.org
service: web
workload_api: unix:///run/a.sock
upstreams: [{name: o, listen: "127.0.0.1:7001", address: "10.0.0.1:1", spiffe_id: "spiffe://example.org/svc/o", protocol: http}]
control: {address: "10.0.0.1:8082"}
audit: {dir: /x/spool}
policy:
  dir: /x/policy
  `+tt.policy+"\n"))
			var out bytes.Buffer
			spec().Execute(t.Context(), []string{"--config", file, "--check"}, nil, &out, &out)
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}
