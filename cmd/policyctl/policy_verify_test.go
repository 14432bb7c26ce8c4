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
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// TestVerifySliceOfAFile: 0 is in order, 2 was examined and is not, 1 could not
// be examined.
func TestVerifySliceOfAFile(t *testing.T) {
	dir := t.TempDir()
	newKey := func(name string) *ecdsa.PrivateKey {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return key
	}
	key := newKey("decision.pem")
	newKey("other.pem")
	content, err := bundle.NewContent([]bundle.File{
		{Path: "data.json", Content: []byte(`{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`)},
		{Path: "orders.rego", Content: []byte("package services.orders\n\nallow := true\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	cutter, err := bundle.NewCutter(content)
	if err != nil {
		t.Fatal(err)
	}
	slice, err := cutter.Cut(bundle.SliceConfig{
		Revision: policy.Revision{Epoch: 1, Number: 1, Digest: content.Digest()}, Activated: time.Unix(1, 0), SPIFFEID: spiffeid.RequireFromString("spiffe://example.org/svc/orders"),
	})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := slice.Seal(key)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)/2] ^= 1
	for _, tt := range []struct {
		name string
		data []byte
		key  string
		code int
	}{
		{"good", sealed, "decision.pem", 0},
		{"cut", sealed[:len(sealed)/2], "decision.pem", 2},
		{"flipped", flipped, "decision.pem", 2},
		{"empty", nil, "decision.pem", 2},
		{"of another key", sealed, "other.pem", 2},
		{"without the key", sealed, "missing.pem", 1},
		{"missing", nil, "decision.pem", 1},
	} {
		file := filepath.Join(dir, tt.name)
		if tt.name != "missing" {
			if err := os.WriteFile(file, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var out, errs strings.Builder
		code := run(t.Context(), []string{"policy", "verify", "--slice", file, "--decision-key", filepath.Join(dir, tt.key)}, nil, &out, &errs)
		if code != tt.code || (code == 0) != (errs.String() == "") {
			t.Errorf("%s: exit code %d, want %d; %s%s", tt.name, code, tt.code, out.String(), errs.String())
		}
	}
}

// TestCanaryPercent: whatever is not a whole percent is told the same.
func TestCanaryPercent(t *testing.T) {
	for _, text := range []string{"abc", "2.5%", "0", "100%", "-1", "10%%", "NaN", "1.04%"} {
		r := rolloutFlags{canary: text}
		if _, err := r.rollout(); err == nil || !strings.HasSuffix(err.Error(), ": want 1% to 99%, whole percents") {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"1", "10%", "99%"} {
		r := rolloutFlags{canary: text, maxDenyIncrease: "2.5%"}
		if got, err := r.rollout(); err != nil || got.MaxDenyIncrease != 25 {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}
