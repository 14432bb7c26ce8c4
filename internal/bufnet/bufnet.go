// Package bufnet is bufconn for tests in a synctest bubble. TLS ends each connection
// with a deadline that is over, bufconn makes a timer of it, and Go 1.26 runs such a
// timer at once, on the goroutine that makes it. Where two do so at a time, the race
// detector crashes: both use what it keeps of the bubble's timers. So a deadline that
// is over is one a nanosecond ahead here.
package bufnet

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

// Listener is a bufconn.Listener whose connections are made for bubbles.
type Listener struct{ *bufconn.Listener }

// Listen makes a listener with so many bytes of buffer each way of a connection.
func Listen(size int) *Listener { return &Listener{bufconn.Listen(size)} }

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) { return wrap(l.Listener.Accept()) }

// DialContext connects to the listener.
func (l *Listener) DialContext(ctx context.Context) (net.Conn, error) {
	return wrap(l.Listener.DialContext(ctx))
}

func wrap(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return conn{c}, nil
}

type conn struct{ net.Conn }

func (c conn) SetDeadline(t time.Time) error      { return c.Conn.SetDeadline(ahead(t)) }
func (c conn) SetReadDeadline(t time.Time) error  { return c.Conn.SetReadDeadline(ahead(t)) }
func (c conn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(ahead(t)) }

func ahead(t time.Time) time.Time {
	if now := time.Now(); !t.IsZero() && !t.After(now) {
		return now.Add(time.Nanosecond)
	}
	return t
}
