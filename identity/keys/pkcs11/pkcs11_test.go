//go:build pkcs11

package pkcs11_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/keys/pkcs11"
)

const module = "/usr/lib/softhsm/libsofthsm2.so"

// token makes a token of SoftHSM in a directory of the test's.
func token(t *testing.T) pkcs11.Config {
	t.Helper()
	if _, err := os.Stat(module); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("SoftHSM is not installed (softhsm2): %v", err)
		}
		t.Skipf("SoftHSM is not installed (softhsm2): %v", err)
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	for path, content := range map[string]string{conf: "directories.tokendir = " + dir + "\nlog.level = ERROR\n", filepath.Join(dir, "pin"): "4321\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "writ", "--pin", "4321", "--so-pin", "8765").CombinedOutput()
	if err != nil {
		t.Fatalf("softhsm2-util: %v: %s", err, out)
	}
	return pkcs11.Config{Module: module, TokenLabel: "writ", PINFile: filepath.Join(dir, "pin")}
}

func open(t *testing.T, cfg pkcs11.Config) *pkcs11.Store {
	t.Helper()
	s, err := pkcs11.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type journal struct{ doc []byte }

func (j *journal) LoadJournal(context.Context) ([]byte, error) { return j.doc, nil }
func (j *journal) SaveJournal(_ context.Context, doc []byte) error {
	j.doc = doc
	return nil
}

// One test, for a process can load the module once.
func TestToken(t *testing.T) {
	cfg := token(t)
	s := open(t, cfg)
	digest := sha256.Sum256([]byte("writ"))
	for name, alg := range map[string]keys.Algorithm{"p256": keys.P256, "p384": keys.P384, "rsa": keys.RSA2048} {
		if _, err := s.Load(name); !errors.Is(err, keys.ErrNotFound) {
			t.Fatalf("load of nothing: %v", err)
		}
		made, err := s.Create(name, alg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(name, alg); !errors.Is(err, keys.ErrExists) {
			t.Errorf("%s: created twice: %v", name, err)
		}
		key, err := s.Load(name)
		if err != nil || !made.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Fatalf("%s: another key came back: %v", name, err)
		}
		sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		switch public := key.Public().(type) {
		case *ecdsa.PublicKey:
			if !ecdsa.VerifyASN1(public, digest[:], sig) {
				t.Errorf("%s: the signature does not verify", name)
			}
		case *rsa.PublicKey:
			if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for range 2 {
			if err := s.Delete(name); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Load(name); !errors.Is(err, keys.ErrNotFound) {
			t.Errorf("%s: still there: %v", name, err)
		}
	}
	if _, err := s.Create("ed", keys.Ed25519); err == nil {
		t.Error("made an Ed25519 key")
	}
	if _, err := s.Create("../x", keys.P256); err == nil {
		t.Error("took a bad name")
	}

	// A CA on the token goes on after the process has logged out and in again.
	td := spiffeid.RequireTrustDomainFromString("example.org")
	config := ca.Config{TrustDomain: td, Keys: s, Journal: &journal{}, Emit: func(context.Context, identity.Act) error { return nil }}
	c, err := ca.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := c.Bundle()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, cfg)
	defer again.Close()
	config.Keys = again
	if c, err = ca.Open(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	after, _ := c.Bundle()
	if len(after.X509Authorities) != 1 || !after.X509Authorities[0].Equal(before.X509Authorities[0]) {
		t.Error("another authority after the restart")
	}
	leaf, err := keys.Ensure(&keys.Memory{}, "leaf", keys.P256)
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := c.PrepareX509(ca.X509Request{ID: spiffeid.RequireFromPath(td, "/web"), PublicKey: leaf.Public()})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.IssueX509(ticket)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify([]*x509.Certificate{cert}, before); err != nil {
		t.Error(err)
	}
	jwt, err := c.PrepareJWT(ca.JWTRequest{ID: spiffeid.RequireFromPath(td, "/web"), Audience: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.IssueJWT(jwt); err != nil {
		t.Error(err)
	}

	// What is wrong with the way in is said.
	for name, tt := range map[string]struct {
		change func(*pkcs11.Config)
		want   string
	}{
		"no such token": {func(c *pkcs11.Config) { c.TokenLabel = "other" }, `token "other"`},
		"no PIN":        {func(c *pkcs11.Config) { c.PINFile += "x" }, "no such file"},
		"open PIN":      {func(c *pkcs11.Config) { must(t, os.Chmod(c.PINFile, 0o644)) }, "lets others in"},
	} {
		bad := cfg
		tt.change(&bad)
		if _, err := pkcs11.Open(bad); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
