package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/writ-dev/writ/deploy"
	"github.com/writ-dev/writ/internal/atomicfile"
)

// upDir is the data directory of a local mesh. writd keeps its state in the
// same directory; what is named here is ours.
type upDir string

func (d upDir) path(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// lockFile keeps a second up out of a data directory.
const lockFile = "up.lock"

// checkUpDir refuses an existing directory that is not for us: one that holds
// somebody else's files, or in which others may write. Its mode is left as it
// is: to narrow that of a directory such as /tmp would break the machine.
func checkUpDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(files) > 0 && !slices.ContainsFunc(files, isMark) {
		return fmt.Errorf("%s holds files (%s) but no mesh: choose an empty or a new directory with --data-dir", dir, files[0].Name())
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s may be written by others (mode %#o), and who can write there is in control of the mesh: choose another --data-dir, or chmod go-w it", dir, info.Mode().Perm())
	}
	return nil
}

// isMark reports whether a file in a data directory is that of an up or writd.
func isMark(f fs.DirEntry) bool {
	return f.Type().IsRegular() && slices.Contains([]string{lockFile, "ports.json", "writ.db"}, f.Name())
}

// openUpDir makes dir, resolves it (selectors compare resolved paths) and
// locks it against a second up. release gives the lock back. A directory that
// is refused is left as it was.
func openUpDir(dir string) (d upDir, release func(), err error) {
	if err := checkUpDir(dir); err != nil {
		return "", nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("data directory: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, fmt.Errorf("data directory: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, fmt.Errorf("%s is in use by another policyctl up%s: stop it, or choose another --data-dir", dir, holder(lock))
		}
		return "", nil, fmt.Errorf("lock data directory: %w", err)
	}
	// The pid is for people; the lock is what counts.
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		lock.Close()
		return "", nil, fmt.Errorf("lock data directory: %w", err)
	}
	return upDir(dir), func() { lock.Close() }, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func holder(lock *os.File) string {
	buf := make([]byte, 32)
	n, _ := lock.ReadAt(buf, 0)
	if pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n]))); err == nil {
		return fmt.Sprintf(" (pid %d)", pid)
	}
	return ""
}

// sameDomain refuses a directory whose certificates name another trust domain.
func (d upDir) sameDomain(td string) error {
	path := d.path("trust-domain")
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.WriteFile(path, []byte(td+"\n"), 0o600)
	case err != nil:
		return err
	}
	if was := strings.TrimSpace(string(data)); was != td {
		return fmt.Errorf("%s belongs to trust domain %q, the mesh file says %q: choose another --data-dir", d, was, td)
	}
	return nil
}

// unpackShop writes the example into the directory and returns the path of its
// mesh file. A copy that was edited is kept; one that was not is brought up to
// date with this program.
func (d upDir) unpackShop() (meshFile string, edited bool, err error) {
	dir, stamp := d.path("shop"), d.path("shop.sum")
	meshFile = filepath.Join(dir, "mesh.yaml")
	embedded, err := treeSum(deploy.Shop())
	if err != nil {
		return "", false, fmt.Errorf("example: %w", err)
	}
	have, err := treeSum(os.DirFS(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", false, fmt.Errorf("example: %w", err)
	case have == embedded:
		return meshFile, false, os.WriteFile(stamp, []byte(embedded), 0o600)
	default:
		written, err := os.ReadFile(stamp)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", false, fmt.Errorf("example: %w", err)
		}
		if string(written) != have {
			return meshFile, true, nil
		}
		if err := os.RemoveAll(dir); err != nil {
			return "", false, fmt.Errorf("example: %w", err)
		}
	}
	if err := os.CopyFS(dir, deploy.Shop()); err != nil {
		return "", false, fmt.Errorf("example: %w", err)
	}
	return meshFile, false, os.WriteFile(stamp, []byte(embedded), 0o600)
}

// treeSum is a digest of all files below fsys, names and content.
func treeSum(fsys fs.FS) (string, error) {
	var all []byte
	err := fs.WalkDir(fsys, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, path)
		all = protowire.AppendString(all, path)
		all = protowire.AppendBytes(all, data)
		return err
	})
	sum := sha256.Sum256(all)
	return hex.EncodeToString(sum[:]), err
}

// writeFile replaces the file at path, and makes its directory where it is
// missing.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}
