package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/writ-dev/writ/internal/mesh"
)

func TestDirectoryHasOneUser(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	d, release, err := openUpDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(string(d)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	_, _, err = openUpDir(dir)
	if err == nil || !strings.Contains(err.Error(), "another policyctl up (pid "+strconv.Itoa(os.Getpid())+")") {
		t.Errorf("second: %v", err)
	}
	release()
	if _, release, err = openUpDir(dir); err != nil {
		t.Errorf("after release: %v", err)
	} else {
		release()
	}
}

func TestDirectoryOfOthers(t *testing.T) {
	file := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600)) }
	}
	tests := []struct {
		name string
		mode os.FileMode
		fill func(*testing.T, string)
		want string // empty: taken
	}{
		{name: "empty", mode: 0o755},
		{name: "a stopped up", mode: 0o755, fill: file("up.lock")},
		{name: "ports", mode: 0o700, fill: file("ports.json")},
		{name: "a control plane", mode: 0o750, fill: file("writ.db")},
		{name: "files", mode: 0o755, fill: file("thesis.tex"), want: "holds files (thesis.tex) but no mesh"},
		{name: "hidden file", mode: 0o755, fill: file(".profile"), want: "holds files (.profile) but no mesh"},
		{name: "no mark", mode: 0o755, fill: func(t *testing.T, dir string) { must(t, os.Mkdir(filepath.Join(dir, "writ.db"), 0o700)) }, want: "but no mesh"},
		{name: "group", mode: 0o770, want: "may be written by others (mode 0770)"},
		{name: "everybody", mode: 0o777 | os.ModeSticky, fill: file("up.lock"), want: "may be written by others (mode 0777)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.fill != nil {
				tt.fill(t, dir)
			}
			must(t, os.Chmod(dir, tt.mode))
			before, err := os.ReadDir(dir)
			must(t, err)
			_, release, err := openUpDir(dir)
			if info, statErr := os.Stat(dir); statErr != nil || info.Mode()&^os.ModeDir != tt.mode {
				t.Errorf("the mode is now %v, %v", info.Mode(), statErr)
			}
			if tt.want == "" {
				must(t, err)
				release()
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if after, _ := os.ReadDir(dir); len(after) != len(before) {
				t.Errorf("holds %v", after)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, nil, 0o600))
	if _, _, err := openUpDir(path); err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("a file: %v", err)
	}
}

func TestUnpackShop(t *testing.T) {
	d := upDir(t.TempDir())
	unpack := func() (string, bool) {
		t.Helper()
		file, edited, err := d.unpackShop()
		if err != nil {
			t.Fatal(err)
		}
		return file, edited
	}
	file, edited := unpack()
	if _, err := mesh.Load(file); err != nil || edited {
		t.Fatalf("edited %v, %v", edited, err)
	}
	if _, edited := unpack(); edited {
		t.Error("an untouched copy is called edited")
	}
	// A copy of an earlier release, untouched since.
	rule := filepath.Join(filepath.Dir(file), "policy", "orders.rego")
	if err := os.WriteFile(rule, []byte("package services.orders\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sum, err := treeSum(os.DirFS(filepath.Dir(file)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path("shop.sum"), []byte(sum), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, edited := unpack(); edited {
		t.Error("an earlier release's copy is called edited")
	}
	if data, err := os.ReadFile(rule); err != nil || !bytes.Contains(data, []byte("web-orders")) {
		t.Errorf("it was not brought up to date: %s, %v", data, err)
	}
	// An edited one.
	if err := os.WriteFile(rule, []byte("package services.orders\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, edited := unpack(); !edited {
		t.Error("an edited copy is not noticed")
	}
	if data, _ := os.ReadFile(rule); string(data) != "package services.orders\n" {
		t.Error("an edited copy was overwritten")
	}
}
