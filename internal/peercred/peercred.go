// Package peercred tells a gRPC server on a Unix socket which process is at
// the other end, in a way that a reused process id cannot deceive.
//
// The kernel records who connected. A process id alone says little: the
// process may end and another get its number before /proc is read. So each
// connection holds a pidfd, which keeps naming the process that connected.
// Read what you want to know from /proc, and then call Peer.Alive: when it
// returns nil, what was read belonged to the caller. When the process ends its
// connection is closed, also where a child inherited it.
//
// From Linux 6.5 on the kernel hands out the pidfd of the process that
// connected. Before, the process id is opened right after the connection was
// accepted, and refused if that process is younger than the connection or of
// another user. What stays possible there is a process that dies, and whose
// number goes to another process of the same user, between connect and accept
// (or within the clock tick of 10 ms in which it was accepted).
package peercred

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// ErrGone reports that the process at the other end has ended.
var ErrGone = errors.New("the calling process has ended")

// Peer is the process that connected, as it was then.
type Peer struct {
	PID int
	// UID and GID are the effective ids at the time it connected.
	UID, GID uint32
	// Groups are the supplementary groups at that time.
	Groups []uint32

	pidfd *os.File
}

// Alive returns nil while the process has not ended, and otherwise ErrGone. It
// fails also once the connection is closed.
func (p Peer) Alive() error {
	if p.pidfd == nil {
		return errors.New("peer without a process")
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("check process %d: %w", p.PID, err)
	}
	var ended bool
	var perr error
	if err := raw.Control(func(fd uintptr) { ended, perr = hasEnded(int(fd)) }); err != nil {
		return fmt.Errorf("check process %d: %w", p.PID, err)
	}
	switch {
	case perr != nil:
		return fmt.Errorf("check process %d: %w", p.PID, perr)
	case ended:
		return ErrGone
	}
	return nil
}

// Effective returns the effective user and group that the process has now,
// which differ from UID and GID where it ran a set-user-ID program or gave up
// privileges since it connected. Call Alive afterwards.
func (p Peer) Effective() (uid, gid uint32, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return 0, 0, err
	}
	return parseEffective(string(status))
}

// Close releases the pidfd. Peers that came out of a context are closed with
// their connection.
func (p Peer) Close() error { return p.pidfd.Close() }

// hasEnded asks a pidfd, which is readable once the process has ended
// (pidfd_open(2)).
func hasEnded(pidfd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// wait returns when the process has ended, or with an error when Close is
// called.
func (p Peer) wait() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		ended, err := hasEnded(int(fd))
		return ended || err != nil
	})
}

// Of returns the process at the other end of conn. The caller closes it.
func Of(conn *net.UnixConn) (Peer, error) {
	p, err := of(conn, kernel{})
	if err != nil {
		return Peer{}, fmt.Errorf("identify the process at the other end: %w", err)
	}
	return p, nil
}

func of(conn *net.UnixConn, k facts) (Peer, error) {
	accepted, err := k.uptime()
	if err != nil {
		return Peer{}, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var perr error
	if err := raw.Control(func(fd uintptr) { p, perr = inspect(int(fd), accepted, k) }); err != nil {
		return Peer{}, err
	}
	return p, perr
}

// AuthInfo is what Credentials knows of a connection.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Peer Peer
}

// AuthType implements credentials.AuthInfo.
func (AuthInfo) AuthType() string { return "peercred" }

// ValidateAuthority accepts any :authority: names mean nothing on a Unix socket.
func (AuthInfo) ValidateAuthority(string) error { return nil }

// FromContext returns the caller of a gRPC method served with Credentials.
func FromContext(ctx context.Context) (Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, false
	}
	info, ok := p.AuthInfo.(AuthInfo)
	return info.Peer, ok
}

// Credentials are transport credentials for gRPC on Unix sockets. Connections
// of any other kind, and those whose process cannot be identified, fail.
func Credentials() credentials.TransportCredentials { return transport{} }

type transport struct{}

func (transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("peer credentials need a Unix socket, not %T", c)
	}
	p, err := Of(uc)
	if err != nil {
		return nil, nil, err
	}
	bound := &conn{UnixConn: uc, peer: p}
	bound.watch.Go(bound.closeAtEnd)
	return bound, AuthInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		Peer:           p,
	}, nil
}

// ClientHandshake identifies the process that listens.
func (t transport) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.ServerHandshake(c)
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

func (transport) OverrideServerName(string) error { return nil }

// conn lives no longer than the process that opened it.
type conn struct {
	*net.UnixConn
	peer  Peer
	watch sync.WaitGroup
}

func (c *conn) closeAtEnd() {
	if c.peer.wait() == nil {
		c.UnixConn.Close()
	}
}

func (c *conn) Close() error {
	err := c.UnixConn.Close()
	// Ends the watch, if the end of the process did not.
	c.peer.Close()
	c.watch.Wait()
	return err
}
