package ledger

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// evidence is a ledger's files, in a directory or in a tar file.
type evidence struct {
	files  map[string]*io.SectionReader
	opened []*os.File
	live   bool
}

func openEvidence(name string) (_ *evidence, err error) {
	e := &evidence{files: make(map[string]*io.SectionReader)}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	if info.IsDir() {
		err = e.dir(name)
	} else {
		err = e.tar(name)
	}
	if err != nil {
		return nil, fmt.Errorf("open evidence %s: %w", name, err)
	}
	if len(e.files) == 0 {
		return nil, fmt.Errorf("open evidence %s: no ledger in it", name)
	}
	return e, nil
}

func (e *evidence) dir(name string) error {
	if lock, err := os.Open(filepath.Join(name, lockName)); err == nil {
		e.live = errors.Is(unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
		lock.Close()
	}
	// The heads are read first, so that what they cover is there when the
	// segments of a ledger in use are looked at.
	if err := e.open(name, headsFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, ok := segmentIndex(entry.Name()); ok {
			if err := e.open(name, entry.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *evidence) open(dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	e.opened = append(e.opened, f)
	info, err := f.Stat()
	if err != nil {
		return err
	}
	e.files[name] = io.NewSectionReader(f, 0, info.Size())
	return nil
}

// tar finds the members of an archive, in whatever order it has them.
func (e *evidence) tar(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	e.opened = append(e.opened, f)
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		base := path.Base(h.Name)
		if _, ok := segmentIndex(base); h.Typeflag != tar.TypeReg || !ok && base != headsFile {
			continue
		}
		if e.files[base] != nil {
			return fmt.Errorf("%s is in it twice", base)
		}
		// The tar reader does not read ahead of a seekable file.
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		e.files[base] = io.NewSectionReader(f, at, h.Size)
	}
}

func (e *evidence) heads() ([]byte, error) {
	r := e.files[headsFile]
	if r == nil {
		return nil, nil
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	return b, nil
}

// segments are the names of the segment files in order.
func (e *evidence) segments() []string {
	var names []string
	for name := range e.files {
		if name != headsFile {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, strings.Compare)
	return names
}

func (e *evidence) close() {
	for _, f := range e.opened {
		f.Close()
	}
}
