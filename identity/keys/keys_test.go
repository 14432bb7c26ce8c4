package keys_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/writ-dev/writ/identity/keys"
)

func stores(t *testing.T) map[string]keys.Store {
	disk, err := keys.OpenDisk(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]keys.Store{"memory": &keys.Memory{}, "disk": disk}
}

func TestStore(t *testing.T) {
	for kind, s := range stores(t) {
		t.Run(kind, func(t *testing.T) {
			if _, err := s.Load("ca"); !errors.Is(err, keys.ErrNotFound) {
				t.Fatalf("load of nothing: %v", err)
			}
			made, err := s.Create("ca", keys.P256)
			if err != nil {
				t.Fatal(err)
			}
			if k, ok := made.(*ecdsa.PrivateKey); !ok || k.Curve != elliptic.P256() {
				t.Fatalf("default key is %T", made)
			}
			if _, err := s.Create("ca", keys.P256); !errors.Is(err, keys.ErrExists) {
				t.Fatalf("second create: %v", err)
			}
			got, err := keys.Ensure(s, "ca", keys.P256)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(made.Public()) {
				t.Fatal("another key came back")
			}
			if k, err := keys.Ensure(s, "audit", keys.Ed25519); err != nil || k.(ed25519.PrivateKey) == nil {
				t.Fatalf("ed25519: %T, %v", k, err)
			}
			for range 2 {
				if err := s.Delete("ca"); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Load("ca"); !errors.Is(err, keys.ErrNotFound) {
				t.Fatalf("load after delete: %v", err)
			}
			for _, name := range []string{"", ".x", "-x", "a/b", "../a", "a b", strings.Repeat("a", 101)} {
				if _, err := s.Create(name, keys.P256); err == nil {
					t.Errorf("name %q was taken", name)
				}
			}
			if _, err := s.Create("odd", keys.Algorithm(99)); err == nil {
				t.Error("unknown algorithm accepted")
			}
		})
	}
}

func TestOneCreatorWins(t *testing.T) {
	for kind, s := range stores(t) {
		t.Run(kind, func(t *testing.T) {
			var wins atomic.Int32
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					_, err := s.Create("one", keys.P256)
					if err == nil {
						wins.Add(1)
					} else if !errors.Is(err, keys.ErrExists) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if wins.Load() != 1 {
				t.Fatalf("%d creators won", wins.Load())
			}
		})
	}
}

func TestDiskRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	d, err := keys.OpenDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create("good", keys.P256); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "good.pem")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		data []byte
		mode os.FileMode
		want string
	}{
		"readable by group": {good, 0o640, "lets others in"},
		"readable by all":   {good, 0o604, "lets others in"},
		"writable by all":   {good, 0o602, "lets others in"},
		"empty":             {nil, 0o600, "no PEM block"},
		"cut short":         {good[:len(good)/2], 0o600, "no PEM block"},
		"two blocks":        {append(append([]byte{}, good...), good...), 0o600, "more than one"},
		"not a key":         {[]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600, "not a PKCS #8"},
		"a certificate":     {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600, "CERTIFICATE"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := filepath.Join(dir, "case.pem")
			if err := os.WriteFile(f, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(f, c.mode); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(f)
			_, err := d.Load("case")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := os.Symlink(file, filepath.Join(dir, "link.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load("link"); err == nil {
		t.Error("followed a symbolic link")
	}
	if err := os.WriteFile(filepath.Join(dir, ".new-123"), good[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.OpenDisk(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".new-123")); !os.IsNotExist(err) {
		t.Error("a half-written key was left")
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.OpenDisk(dir); err == nil {
		t.Error("opened a directory that others can enter")
	}
}
