package mtls

import (
	"crypto/tls"
	"net"
	"sync"

	"github.com/writ-dev/writ/pep"
)

// Conn is a connection with a verified peer. It does not show that it is TLS:
// what is served on it has been agreed on already.
type Conn struct {
	net.Conn
	peer *pep.Peer
	// state holds the chain that the peer showed.
	state tls.ConnectionState

	mu       sync.Mutex
	isClosed bool
	closed   []func()
}

// Peer is who is at the other end.
func (c *Conn) Peer() *pep.Peer { return c.peer }

// OnClose has f called once when the connection is closed from this side, or
// at once if it is closed already.
func (c *Conn) OnClose(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed {
		f()
		return
	}
	c.closed = append(c.closed, f)
}

// CloseWrite ends the sending side (RFC 8446, section 6.1).
func (c *Conn) CloseWrite() error { return c.Conn.(*tls.Conn).CloseWrite() }

// Close closes the connection.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isClosed {
		c.isClosed = true
		for _, f := range c.closed {
			f()
		}
	}
	return err
}

// abort closes the connection and waits for nobody, not even for room to say
// goodbye.
func (c *Conn) abort() {
	_ = c.Conn.(*tls.Conn).NetConn().Close()
	_ = c.Close()
}

// Queue is a net.Listener over connections that were accepted elsewhere.
type Queue struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newQueue(addr net.Addr) *Queue {
	return &Queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// put waits until somebody accepts c, and closes it when nobody will.
func (q *Queue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		c.Close()
	}
}

// Accept implements net.Listener.
func (q *Queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *Queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *Queue) Addr() net.Addr { return q.addr }
