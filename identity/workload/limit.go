package workload

import (
	"fmt"
	"log/slog"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/internal/peercred"
)

// perUID counts what each user holds.
type perUID struct {
	max int

	mu   sync.Mutex
	held map[uint32]int
	sum  int
}

func newPerUID(max int) *perUID { return &perUID{max: max, held: map[uint32]int{}} }

func (l *perUID) take(uid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[uid] >= l.max {
		return false
	}
	l.held[uid]++
	l.sum++
	return true
}

func (l *perUID) release(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum--
	if l.held[uid]--; l.held[uid] == 0 {
		delete(l.held, uid)
	}
}

func (l *perUID) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sum
}

// limited refuses connections beyond the limit of their user, before anything
// is read from them.
type limited struct {
	credentials.TransportCredentials
	conns *perUID
	log   *slog.Logger
}

func (l limited) Clone() credentials.TransportCredentials { return l }

func (l limited) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := l.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		l.log.Warn("connection to the Workload API refused", "error", err)
		return nil, nil, err
	}
	uid := info.(peercred.AuthInfo).Peer.UID
	if !l.conns.take(uid) {
		conn.Close()
		l.log.Warn("connection to the Workload API refused: too many of this user", "uid", uid, "limit", l.conns.max)
		return nil, nil, fmt.Errorf("user %d has %d connections open, as many as are allowed", uid, l.conns.max)
	}
	return &counted{Conn: conn, release: sync.OnceFunc(func() { l.conns.release(uid) })}, info, nil
}

type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}
