package main

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// followed follows dir and returns what waits until the file rules.rego there
// was read with the given text, "" while it is missing. Where rescan is long,
// only events can tell of a change.
func followed(t *testing.T, dir string, rescan time.Duration) (await func(want string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	read := make(chan string, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := followDir(ctx, dirFollower{
			dir: dir, rescan: rescan,
			changed: func() {
				data, _ := os.ReadFile(filepath.Join(dir, "rules.rego"))
				read <- string(data)
			},
			warn: func(err error) { t.Errorf("watch: %v", err) },
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return func(want string) {
		t.Helper()
		limit := time.After(20 * time.Second)
		for {
			select {
			case got := <-read:
				if got == want {
					return
				}
			case <-limit:
				t.Fatalf("nobody read %q", want)
			}
		}
	}
}

// rules makes a policy directory.
func rules(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rules.rego"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestFollowReplacedDirectory(t *testing.T) {
	top := t.TempDir()
	dir, aside, next := filepath.Join(top, "policy"), filepath.Join(top, "p.x"), filepath.Join(top, "next")
	rules(t, dir, "one")
	await := followed(t, dir, time.Hour)
	await("one")
	rules(t, dir, "two")
	await("two")

	// Moved away and back: the same directory.
	must(t, os.Rename(dir, aside))
	await("")
	must(t, os.Rename(aside, dir))
	await("two")
	rules(t, dir, "three")
	await("three")

	// Replaced by another one.
	rules(t, next, "four")
	must(t, os.Rename(dir, aside), os.Rename(next, dir))
	await("four")
	rules(t, dir, "five")
	await("five")

	// Removed and made again.
	must(t, os.RemoveAll(dir))
	await("")
	rules(t, dir, "six")
	await("six")
	rules(t, dir, "seven")
	await("seven")
}

func TestFollowLinkedDirectory(t *testing.T) {
	top := t.TempDir()
	dir, one, two := filepath.Join(top, "policy"), filepath.Join(top, "a", "one"), filepath.Join(top, "b", "two")
	rules(t, one, "one")
	rules(t, two, "two")
	must(t, os.Symlink(filepath.Join("a", "one"), dir))
	await := followed(t, dir, time.Hour)
	await("one")
	rules(t, one, "one, edited")
	await("one, edited")

	// The link is retargeted, at once as ln -sfn cannot.
	must(t, os.Symlink(two, dir+".new"), os.Rename(dir+".new", dir))
	await("two")
	rules(t, two, "two, edited")
	await("two, edited")

	// Its target is replaced, and later missing for a while.
	rules(t, filepath.Join(top, "b", "next"), "three")
	must(t, os.Rename(two, two+".x"), os.Rename(filepath.Join(top, "b", "next"), two))
	await("three")
	must(t, os.RemoveAll(two))
	await("")
	rules(t, two, "four")
	await("four")
	rules(t, two, "five")
	await("five")
}

// current -> releases/1, with current/policy followed.
func TestFollowLinkOnTheWay(t *testing.T) {
	top := t.TempDir()
	current := filepath.Join(top, "current")
	rules(t, filepath.Join(top, "releases", "1", "policy"), "one")
	rules(t, filepath.Join(top, "releases", "2", "policy"), "two")
	must(t, os.Symlink(filepath.Join("releases", "1"), current))
	await := followed(t, filepath.Join(current, "policy"), time.Hour)
	await("one")
	must(t, os.Symlink(filepath.Join("releases", "2"), current+".new"), os.Rename(current+".new", current))
	await("two")
	rules(t, filepath.Join(current, "policy"), "two, edited")
	await("two, edited")
}

// A ConfigMap's files are links through ..data.
func TestFollowMountedConfigMap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policy")
	rules(t, filepath.Join(dir, "..1"), "one")
	rules(t, filepath.Join(dir, "..2"), "two")
	must(t, os.Symlink("..1", filepath.Join(dir, "..data")),
		os.Symlink(filepath.Join("..data", "rules.rego"), filepath.Join(dir, "rules.rego")))
	await := followed(t, dir, time.Hour)
	await("one")
	must(t, os.Symlink("..2", filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
	await("two")
}

// A directory above that is replaced has no event: the rescan finds it.
func TestFollowReplacedParent(t *testing.T) {
	top := t.TempDir()
	parent := filepath.Join(top, "x", "y")
	dir := filepath.Join(parent, "policy")
	rules(t, dir, "one")
	await := followed(t, dir, 10*time.Millisecond)
	await("one")
	rules(t, filepath.Join(top, "next", "policy"), "two")
	must(t, os.Rename(parent, parent+".x"), os.Rename(filepath.Join(top, "next"), parent))
	await("two")
	rules(t, dir, "three")
	await("three")
}
