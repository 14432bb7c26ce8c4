package upstream

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/internal/unixsock"
)

// ListenConfig is who may use a local listener.
type ListenConfig struct {
	// Address is ip:port on loopback, or unix:///path.
	Address string
	// UIDs that may connect; the process's own when empty.
	UIDs []int
	// Refused is called with each connection that is not admitted, before it is
	// closed. The peer is empty for a Unix socket.
	Refused func(peer net.Addr, reason string)
	Log     *slog.Logger
}

// UnixPath gives the path of an address of the form unix:///path.
func UnixPath(address string) (path string, ok bool) {
	path, ok = strings.CutPrefix(address, "unix://")
	return path, ok && strings.HasPrefix(path, "/")
}

// Listen opens a listener whose Accept gives only connections of sockets that
// the allowed users own.
//
// Loopback is no boundary: any process of the machine can connect there. The
// kernel is asked who owns the other end of each connection. That tells users
// apart, and not processes of one user.
func Listen(cfg ListenConfig) (net.Listener, error) {
	if len(cfg.UIDs) == 0 {
		cfg.UIDs = []int{os.Geteuid()}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ln, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("outbound listener: %w", err)
	}
	return &listener{Listener: ln, cfg: cfg}, nil
}

func open(cfg ListenConfig) (net.Listener, error) {
	if path, ok := UnixPath(cfg.Address); ok {
		if slices.Equal(cfg.UIDs, []int{os.Geteuid()}) {
			return unixsock.Listen(path)
		}
		// Others may knock; their credentials decide.
		return unixsock.Listen(path, unixsock.Public())
	}
	ap, err := netip.ParseAddrPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("%q is neither ip:port nor unix:///path", cfg.Address)
	}
	if !ap.Addr().Unmap().IsLoopback() {
		return nil, fmt.Errorf("%s is not a loopback address", ap.Addr())
	}
	return net.Listen("tcp", ap.String())
}

type listener struct {
	net.Listener
	cfg ListenConfig
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := owner(c)
		if err == nil && slices.Contains(l.cfg.UIDs, uid) {
			return c, nil
		}
		if errors.Is(err, errNoSocket) {
			// Gone before it was let in, as a probe of the port is: nothing that
			// it may have sent is read.
			l.cfg.Log.Debug("local connection closed by its owner at once")
			c.Close()
			continue
		}
		reason := fmt.Sprintf("uid %d may not use %s", uid, l.cfg.Address)
		if err != nil {
			reason = fmt.Sprintf("the owner of a connection to %s is not known: %v", l.cfg.Address, err)
		}
		l.cfg.Log.Warn("local connection refused", "reason", reason)
		if l.cfg.Refused != nil {
			l.cfg.Refused(c.RemoteAddr(), reason)
		}
		c.Close()
	}
}

// owner is the user who owns the other end of c.
func owner(c net.Conn) (int, error) {
	switch c := c.(type) {
	case *net.TCPConn:
		return ownerTCP(c)
	case *net.UnixConn:
		return ownerUnix(c)
	}
	return -1, fmt.Errorf("%T is neither TCP nor a Unix socket", c)
}

func ownerUnix(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return -1, err
	}
	if credErr != nil {
		return -1, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	return int(cred.Uid), nil
}
