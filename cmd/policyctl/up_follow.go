package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// debounce is how long a followed directory must be quiet: editors write a
// file in several steps.
const debounce = 50 * time.Millisecond

// rescan is the time between two looks at whether the path of a followed
// directory leads elsewhere. Events tell of almost everything sooner; what
// they miss is a directory above that was replaced.
const rescan = time.Second

// dirFollower says which directory to follow, and whom to tell.
type dirFollower struct {
	// dir is an absolute path. It is followed by name: what counts is what it
	// leads to, through symbolic links and after it was replaced.
	dir    string
	rescan time.Duration
	// changed is told once at the start and after each change; it reads what
	// is there. No change that it cannot see remains untold.
	changed func()
	// warn is told what the watch lacks.
	warn func(error)
}

// followDir follows a directory until ctx ends.
func followDir(ctx context.Context, f dirFollower) error {
	w, err := watchDir(f.dir)
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.dir, err)
	}
	defer func() { w.Close() }()
	f.changed()
	quiet := time.NewTimer(debounce)
	quiet.Stop()
	defer quiet.Stop()
	scan := time.NewTicker(f.rescan)
	defer scan.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-w.Events:
			if !ok {
				return errors.New("the watch of the policy directory ended")
			}
			if w.concerns(event) {
				quiet.Reset(debounce)
			}
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("the watch of the policy directory ended")
			}
			// Events were lost: look at everything.
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				f.warn(err)
			}
			quiet.Reset(debounce)
		case <-scan.C:
			if w.elsewhere() {
				quiet.Reset(debounce)
			}
		case <-quiet.C:
			// A watch is of inodes, and these may have been replaced: all of it
			// is made anew, before the directory is read.
			next, err := watchDir(f.dir)
			if err != nil {
				f.warn(err)
			} else {
				w.Close()
				w = next
			}
			f.changed()
		}
	}
}

// dirWatch watches what a path led to when it was made.
type dirWatch struct {
	*fsnotify.Watcher
	dir string
	// root is dir without symbolic links, and info what was there; empty and
	// nil when there was nothing.
	root string
	info fs.FileInfo
	// names are the path itself and the links that it leads through.
	names map[string]bool
}

// watchDir watches the tree that dir leads to, dir's own name, and the links
// on the way. Nothing need be there.
func watchDir(dir string) (*dirWatch, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	w := &dirWatch{Watcher: watcher, dir: dir, names: map[string]bool{}}
	w.watchNames()
	if w.root, err = filepath.EvalSymlinks(dir); err == nil {
		if w.info, err = os.Stat(w.root); err == nil {
			err = w.watchTree()
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		watcher.Close()
		return nil, err
	}
	return w, nil
}

// maxLinks is how many symbolic links a path may lead through, as in Linux
// (path_resolution(7)).
const maxLinks = 40

// watchNames watches the directories in which the path's last name and each
// link on the way lie. One that may not be read is left to the rescan.
func (w *dirWatch) watchNames() {
	at, rest := "/", strings.Split(filepath.Clean(w.dir), "/")
	for links := 0; len(rest) > 0 && links < maxLinks; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		path := filepath.Join(at, name)
		target, err := os.Readlink(path)
		if err == nil || len(rest) == 0 {
			_ = w.Add(at)
			w.names[path] = true
		}
		if err != nil {
			at = path
			continue
		}
		links++
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
}

// watchTree watches the root and the directories below it.
func (w *dirWatch) watchTree() error {
	return filepath.WalkDir(w.root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile, of which there is an event
		case err != nil:
			return err
		case !e.IsDir():
			return nil
		case path != w.root && strings.HasPrefix(e.Name(), "."):
			return filepath.SkipDir
		}
		if err := w.Add(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// concerns reports whether an event may have changed what there is to read.
func (w *dirWatch) concerns(event fsnotify.Event) bool {
	switch {
	case event.Op == fsnotify.Chmod:
		return false
	case w.names[event.Name], event.Name == w.root:
		return true
	case w.root == "" || !strings.HasPrefix(event.Name, strings.TrimSuffix(w.root, "/")+"/"):
		return false // a neighbour
	}
	// Editors keep hidden files beside what they edit. A mounted ConfigMap
	// changes by its link ..data alone.
	base := filepath.Base(event.Name)
	return !strings.HasPrefix(base, ".") || strings.HasPrefix(base, "..")
}

// elsewhere reports whether dir leads to another directory than when it was
// asked before, or made.
func (w *dirWatch) elsewhere() bool {
	was := w.info
	w.info = nil
	if info, err := os.Stat(w.dir); err == nil {
		w.info = info
	}
	if was == nil || w.info == nil {
		return (was == nil) != (w.info == nil)
	}
	return !os.SameFile(was, w.info)
}
