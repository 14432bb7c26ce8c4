package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Two agents would take the identity of the node from each other.
func TestSecondAgentOfDirectory(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		first := *b
		b.agent = nil
		if err := b.run(); err == nil || !strings.Contains(err.Error(), "in use by another writ-agent") {
			t.Errorf("got %v", err)
		}
		b.halt()
		first.halt()
		b.mustRun() // the first has let it go
	})
}

// A key that others can read, or a directory that they can write, is refused with
// what to do; one that they can merely look into is closed.
func TestKeptIsPrivate(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		b.halt()
		path := filepath.Join(b.cfg.DataDir, svidFile)
		need(0, os.Chmod(path, 0o644))
		if err := b.run(); err == nil || !strings.Contains(err.Error(), "chmod 600") || !strings.Contains(err.Error(), path) {
			t.Errorf("key that others can read: %v", err)
		}
		b.halt()
		need(0, os.Chmod(path, 0o600))
		need(0, os.Chmod(b.cfg.DataDir, 0o755))
		b.mustRun()
		if mode := need(os.Stat(b.cfg.DataDir)).Mode().Perm(); mode != 0o700 {
			t.Errorf("the directory has mode %04o", mode)
		}
		b.halt()
		need(0, os.Chmod(b.cfg.DataDir, 0o777))
		if _, err := New(b.cfg, Options{Token: b.token}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
			t.Errorf("directory that others can write: %v", err)
		}
		need(0, os.Chmod(b.cfg.DataDir, 0o700))
	})
}

// What is damaged is not used: with something to attest by the agent starts anew,
// and without it says which file it is.
func TestDamagedFiles(t *testing.T) {
	for _, name := range []string{svidFile, bundleFile} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.mustRun()
				b.halt()
				path := filepath.Join(b.cfg.DataDir, name)
				need(0, os.WriteFile(path, []byte("-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n"), 0o600))
				if err := b.run(); !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), path+" is damaged") {
					t.Errorf("with a used token: %v", err)
				}
				b.halt()
				b.token = func() (string, error) { return "token-2", nil }
				b.mustRun()
				b.halt()
				b.token = func() (string, error) { return "", nil }
				b.mustRun() // what was damaged is replaced
			})
		})
	}
}
