// Package unixsock listens on Unix sockets that only the right people can
// reach and nobody else can put in place.
//
// A socket is as trustworthy as its directory: who can write there can put
// another socket under the name. So Listen creates the directory, or accepts
// one that already belongs to this user and that nobody else can write.
//
// Beside the socket lies <name>.lock, locked as long as the socket is served.
// The kernel drops the lock with the process, however that ends, and whoever
// then gets it may remove the socket left behind. A socket that somebody still
// answers is never removed.
package unixsock

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxPath is the longest path in bytes that a Unix socket address holds on
// Linux (unix(7): 108 bytes with the terminating NUL).
const MaxPath = 107

// fallbackRoot holds the directories of sockets whose own path is too long.
// It is fixed, and not $TMPDIR, because server and clients must agree on it.
const fallbackRoot = "/tmp"

// ErrInUse reports that another process serves the socket.
var ErrInUse = errors.New("already served by another process")

// Option changes what Listen makes.
type Option func(*options)

type options struct{ public bool }

// Public lets processes of every user connect: the socket has mode 0777 and a
// directory that Listen creates 0755. Without it they are 0600 and 0700.
func Public() Option { return func(o *options) { o.public = true } }

// Path is where the socket for path really is: path itself, made absolute, or
// where that is over MaxPath bytes a short path that depends only on it and on
// the owner of its directory. Servers and clients get the same answer, before
// and after the socket exists.
func Path(path string) string {
	abs := resolve(path)
	if len(abs) <= MaxPath {
		return abs
	}
	sum := sha256.Sum256([]byte(abs))
	return filepath.Join(fallbackDir(ownerOf(abs)), hex.EncodeToString(sum[:12]), "s")
}

func fallbackDir(uid int) string {
	return filepath.Join(fallbackRoot, "writ-"+strconv.Itoa(uid))
}

// resolve makes path absolute and follows the symbolic links of the directories
// that exist, so that two names of one directory give one socket.
func resolve(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = filepath.Clean(path)
	}
	dir, rest := filepath.Dir(abs), filepath.Base(abs)
	for {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		if dir == "/" || dir == "." {
			return abs
		}
		dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest)
	}
}

// ownerOf is the user who serves, or would serve, the socket at abs: the owner
// of its directory where that exists.
func ownerOf(abs string) int {
	if info, err := os.Stat(filepath.Dir(abs)); err == nil {
		return owner(info)
	}
	return os.Geteuid()
}

func owner(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// Listen serves the socket at Path(path). It fails with ErrInUse where another
// process serves it. Closing the listener removes the socket.
func Listen(path string, opts ...Option) (net.Listener, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	ln, err := listen(path, o)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

func listen(path string, o options) (net.Listener, error) {
	dirMode, sockMode := fs.FileMode(0o700), fs.FileMode(0o600)
	if o.public {
		dirMode, sockMode = 0o755, 0o777
	}
	// The directory that was asked for is made in any case: its owner is what
	// clients find a fallback by.
	if err := makeDir(filepath.Dir(resolve(path)), dirMode); err != nil {
		return nil, err
	}
	real := Path(path)
	if real != resolve(path) {
		// Others may pass through the first level, without seeing what is in
		// it; each socket's own directory says who may enter.
		if err := makeDir(filepath.Dir(filepath.Dir(real)), 0o711); err != nil {
			return nil, err
		}
		if err := makeDir(filepath.Dir(real), dirMode); err != nil {
			return nil, err
		}
	}
	lock, err := acquire(real + ".lock")
	if err != nil {
		return nil, err
	}
	ln, err := bind(real, sockMode)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &listener{UnixListener: ln, lock: lock}, nil
}

func acquire(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return lock, nil
}

// bind makes the socket. The lock is held.
func bind(path string, mode fs.FileMode) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// Linux creates the file with the mode that the unbound socket has,
		// so there is no moment in which it is more open than it should be.
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode)) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	// The umask may have taken bits away.
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	// The lock is ours, so nothing of ours serves it; another program might.
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		conn.Close()
		return ErrInUse
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("probe the socket that is there: %w", err)
}

type listener struct {
	*net.UnixListener
	lock *os.File
}

// Close stops listening and removes the socket before it lets go of the lock:
// a successor's socket is never the one removed.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	return errors.Join(err, l.lock.Close())
}
