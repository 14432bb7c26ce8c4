//go:build interop

package interop

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// program gives the path of one of our programs (WRIT_BIN) or of another's
// (WRIT_INTEROP).
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("WRIT_BIN"), os.Getenv("WRIT_INTEROP")} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); dir != "" && err == nil {
			return path
		}
	}
	t.Fatalf("%s is neither in WRIT_BIN (%q) nor in WRIT_INTEROP (%q): start with test/interop/run.sh", name, os.Getenv("WRIT_BIN"), os.Getenv("WRIT_INTEROP"))
	return ""
}

// shortDir is a directory for sockets, whose paths have at most 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "interop")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func bounded(t *testing.T, length time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
