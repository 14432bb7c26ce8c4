package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// makeDir makes dir with mode, and its missing parents with it, or checks that
// the one there can be trusted.
func makeDir(dir string, mode fs.FileMode) error {
	if err := checkParents(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), mode); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, mode); {
	case err == nil:
		// The umask may have taken bits away.
		return os.Chmod(dir, mode)
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	case owner(info) != os.Geteuid():
		return fmt.Errorf("directory %s belongs to uid %d, not to this process (uid %d)", dir, owner(info), os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others can write directory %s (mode %04o): use one of its own, or chmod go-w", dir, info.Mode().Perm())
	}
	return nil
}

// checkParents refuses a directory that anybody could move away and replace:
// one below a directory that all can write and that is not sticky.
func checkParents(dir string) error {
	for dir != "/" && dir != "." {
		dir = filepath.Dir(dir)
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("anybody can write %s, and so replace what lies below it", dir)
		}
	}
	return nil
}
