package backup

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/internal/atomicfile"
)

// MarkName is the file that tells a control plane at its next start that its
// data directory was restored.
const MarkName = "restored.json"

// Mark is the content of that file.
type Mark struct {
	// Created is when the backup was made, Restored when it was restored.
	Created  time.Time `json:"created"`
	Restored time.Time `json:"restored"`
}

// Restore puts a backup into dir, which is empty or not there: all of it, or
// nothing. The sums are verified before anything is written, and again of what
// is written.
func Restore(file, dir string, now time.Time) (*Manifest, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := checkEmpty(dir); err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := Verify(f); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	// Beside dir, so that it gets its place in one step.
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".restore-*") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("restore beside %s: %w", dir, err)
	}
	m, err := unpack(f, tmp, now)
	if err == nil {
		// Onto an empty directory only; os.Rename would not do even that.
		err = unix.Rename(tmp, dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	return m, atomicfile.SyncDir(filepath.Dir(dir))
}

func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty (%s): a backup is restored into a new directory", dir, entries[0].Name())
	}
	return nil
}

func unpack(r io.Reader, dir string, now time.Time) (*Manifest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dirs := map[string]bool{".": true}
	m, err := scan(r, func(h *tar.Header, r io.Reader) error {
		if d := path.Dir(h.Name); !dirs[d] {
			dirs[d] = true
			if err := root.Mkdir(d, dirMode(d)); err != nil {
				return err
			}
			if err := root.Chmod(d, dirMode(d)); err != nil { // whatever the umask
				return err
			}
		}
		mode := fs.FileMode(0o600)
		if path.Dir(h.Name) == "public" {
			mode = 0o644
		}
		return writeFile(root, h.Name, mode, r)
	})
	if err != nil {
		return nil, err
	}
	mark, err := json.Marshal(Mark{Created: m.Created, Restored: now.UTC()})
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(dir, MarkName), append(mark, '\n'), 0o600); err != nil {
		return nil, err
	}
	for d := range dirs {
		if err := atomicfile.SyncDir(filepath.Join(dir, d)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func writeFile(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// ReadMark reads the mark in a data directory; nil when there is none.
func ReadMark(dir string) (*Mark, error) {
	data, err := os.ReadFile(filepath.Join(dir, MarkName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m Mark
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, MarkName), err)
	}
	return &m, nil
}

// RemoveMark ends what Restore began.
func RemoveMark(dir string) error {
	if err := os.Remove(filepath.Join(dir, MarkName)); err != nil {
		return err
	}
	return atomicfile.SyncDir(dir)
}
