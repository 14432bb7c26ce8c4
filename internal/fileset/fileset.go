// Package fileset writes files that belong together, such as a certificate and
// its key, so that no reader sees a mixture of two versions.
//
// Each version is a directory of its own. A symbolic link, current, leads to the
// newest and is replaced in one step; the names in the directory itself lead
// through it:
//
//	key.pem  -> current/key.pem
//	svid.pem -> current/svid.pem
//	current  -> .v-1838271
//
// A reader that opens svid.pem and then key.pem can still meet the moment between
// the two. One that must not follows current once, or reads a file that holds
// both.
package fileset

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/writ-dev/writ/internal/atomicfile"
)

// Current is the link to the newest version.
const Current = "current"

const versionPrefix = ".v-"

// File is one of a set.
type File struct {
	Name string
	Data []byte
	Mode fs.FileMode
}

// IsVersion tells whether the link current leads to a version of a set.
func IsVersion(to string) bool { return strings.HasPrefix(to, versionPrefix) }

// Write makes files the whole content of the set in dir, on disk and visible
// when it returns, and returns their paths. After an error the set is what it
// was. The version before stays for readers that are at it. One process writes
// to a directory at a time.
func Write(dir string, files []File) (paths []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	version, err := os.MkdirTemp(dir, versionPrefix)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(version)
		}
	}()
	for _, f := range files {
		if f.Name != filepath.Base(f.Name) || strings.HasPrefix(f.Name, ".") || f.Name == Current {
			return nil, fmt.Errorf("%q cannot be the name of a file here", f.Name)
		}
		if err := writeFile(filepath.Join(version, f.Name), f.Data, f.Mode); err != nil {
			return nil, err
		}
	}
	// Whoever may look into the directory may look into the version: the files
	// have modes of their own.
	if err := errors.Join(os.Chmod(version, info.Mode().Perm()), atomicfile.SyncDir(version)); err != nil {
		return nil, err
	}
	before, _ := os.Readlink(filepath.Join(dir, Current))
	if err := link(dir, filepath.Base(version), Current); err != nil {
		return nil, err
	}
	for _, f := range files {
		paths = append(paths, filepath.Join(dir, f.Name))
		to := filepath.Join(Current, f.Name)
		if old, _ := os.Readlink(filepath.Join(dir, f.Name)); old == to {
			continue
		}
		if lerr := link(dir, to, f.Name); lerr != nil {
			return nil, errors.Join(lerr, link(dir, before, Current))
		}
	}
	return paths, errors.Join(atomicfile.SyncDir(dir), tidy(dir, files, filepath.Base(version), before))
}

// link makes name in dir a symbolic link to, in one step also where there is
// one, or a file, already.
func link(dir, to, name string) error {
	if to == "" {
		return os.Remove(filepath.Join(dir, name))
	}
	temp := filepath.Join(dir, ".link-"+name)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, temp); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, name))
}

// tidy removes versions that nobody is at, and names that the set has no longer.
func tidy(dir string, files []File, keep ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	names := map[string]bool{Current: true}
	for _, f := range files {
		names[f.Name] = true
	}
	for _, k := range keep {
		names[k] = true
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		to, _ := os.Readlink(path)
		switch {
		case names[e.Name()]:
		case e.IsDir() && strings.HasPrefix(e.Name(), versionPrefix):
			errs = append(errs, os.RemoveAll(path))
		case to == filepath.Join(Current, e.Name()):
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}
