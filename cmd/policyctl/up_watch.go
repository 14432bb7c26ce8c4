package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/writ-dev/writ/policy"
)

// debounce is how long the policy directory must be quiet: editors write a
// file in several steps.
const debounce = 50 * time.Millisecond

// pushTimeout bounds one push, its tests included.
const pushTimeout = 30 * time.Second

// watchPolicy pushes the policy directory after each change, until ctx ends.
func (u *upRun) watchPolicy(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", u.mesh.Policy, err)
	}
	defer w.Close()
	if err := watchTree(w, u.mesh.Policy); err != nil {
		return fmt.Errorf("watch %s: %w", u.mesh.Policy, err)
	}
	// What changed between the first push and the watch.
	u.pushAgain(ctx, true)
	quiet := time.NewTimer(debounce)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-w.Events:
			if !ok {
				return errors.New("the watch of the policy directory ended")
			}
			if event.Op == fsnotify.Chmod || strings.HasPrefix(filepath.Base(event.Name), ".") {
				continue
			}
			if event.Has(fsnotify.Create) {
				// A new directory may hold files already; the push reads them.
				_ = watchTree(w, event.Name)
			}
			quiet.Reset(debounce)
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("the watch of the policy directory ended")
			}
			// Events were lost: look at everything.
			u.view.warn("watch of %s: %v", display(u.mesh.Policy), err)
			_ = watchTree(w, u.mesh.Policy)
			quiet.Reset(debounce)
		case <-quiet.C:
			u.pushAgain(ctx, false)
		}
	}
}

// watchTree watches dir and the directories below it. fsnotify ignores those
// that it watches already.
func watchTree(w *fsnotify.Watcher, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return nil
		}
		if path != dir && strings.HasPrefix(e.Name(), ".") {
			return filepath.SkipDir
		}
		return w.Add(path)
	})
}

// pushAgain pushes what was saved and says what came of it. quietly says
// nothing where nothing changed.
func (u *upRun) pushAgain(ctx context.Context, quietly bool) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	resp, err := u.pushPolicy(ctx)
	var refused policy.Refused
	switch {
	case ctx.Err() != nil && err != nil:
	case errors.As(err, &refused):
		u.view.printf("%s", u.view.style(red, "✗ policy refused; the last good revision stays in force"))
		for _, p := range refused {
			u.view.printf("    %s", p)
		}
	case err != nil:
		u.view.warn("policy: %v", err)
	case resp.GetUnchanged():
		if !quietly {
			u.view.printf("%s", u.view.style(dim, "  policy saved, nothing changed"))
		}
	default:
		if err := u.enforced(ctx, resp.GetRevision()); err != nil {
			u.view.warn("%v", err)
			return
		}
		u.view.printf("%s", u.view.style(green, fmt.Sprintf("✓ policy %s in force at all %d sidecars after %d ms, %d tests passed",
			revisionText(resp.GetRevision()), len(u.mesh.Services), time.Since(began).Milliseconds(), resp.GetTests().GetPassed())))
	}
}
