package unix

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// executable is the program of a process, held by one file descriptor so that
// its path and its content are of the same file even where the process runs
// another program meanwhile.
type executable struct {
	fd      *os.File // O_PATH
	version fileVersion
	links   uint64
}

// fileVersion changes whenever the file or its content does. The change time
// cannot be set, and a file that runs cannot be written.
type fileVersion struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// openExecutable opens what process pid runs. The link in /proc leads to the
// file itself, whatever its name is now.
func openExecutable(pid int) (*executable, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/exe", pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc/%d/exe: %w", pid, err)
	}
	e := &executable{fd: os.NewFile(uintptr(fd), "exe")}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		e.Close()
		return nil, fmt.Errorf("stat /proc/%d/exe: %w", pid, err)
	}
	e.version, e.links = versionOf(&st), uint64(st.Nlink)
	return e, nil
}

// Running identifies the program that process pid runs: the file itself, which
// stays the same when it is renamed, deleted or replaced by another. It is not
// known where the process cannot be seen.
func Running(pid int) (string, error) {
	e, err := openExecutable(pid)
	if err != nil {
		return "", err
	}
	defer e.Close()
	return fmt.Sprintf("%d:%d", e.version.dev, e.version.ino), nil
}

// OfProgram tells of a selector whether it holds for as long as a process runs
// the same file: sha256 is found again in any case, but a path is no longer
// found once the file is replaced.
func OfProgram(s string) bool { return strings.HasPrefix(s, selector("path", "")) }

func versionOf(st *unix.Stat_t) fileVersion {
	return fileVersion{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

func (e *executable) Close() error { return e.fd.Close() }

func (e *executable) self() string { return fmt.Sprintf("/proc/self/fd/%d", e.fd.Fd()) }

// open opens the same file for reading.
func (e *executable) open() (*os.File, error) { return os.Open(e.self()) }

// path is the name under which the file was run. It is given only where that
// name leads to the very same file from here: not for a deleted file, whose
// name may belong to another by now, and not for one whose name is a matter of
// the process's own mount namespace or root directory.
func (e *executable) path(pid int) (string, error) {
	name, err := os.Readlink(e.self())
	if err != nil {
		return "", err
	}
	// The kernel marks such paths, but a file may also have this name.
	if !strings.HasPrefix(name, "/") {
		return "", fmt.Errorf("%q is not an absolute path", name)
	}
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return "", fmt.Errorf("look up %q: %w", name, err)
	}
	if uint64(st.Dev) != e.version.dev || st.Ino != e.version.ino {
		return "", fmt.Errorf("%q is another file here", name)
	}
	// A file with several names can be run, in a mount namespace of the
	// caller's making, under a name of the caller's choice.
	if e.links > 1 {
		if err := sameMounts(pid); err != nil {
			return "", fmt.Errorf("%q is one of %d names of its file: %w", name, e.links, err)
		}
	}
	return name, nil
}

// sameMounts returns nil if process pid sees the same mounts as this one.
func sameMounts(pid int) error {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if theirs != ours {
		return errors.New("the process is in another mount namespace")
	}
	return nil
}
