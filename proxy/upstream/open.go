package upstream

import (
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"sync"
)

// openConns are the connections of a pool, whatever carries requests on them.
type openConns struct {
	verify func(tls.ConnectionState) error

	mu    sync.Mutex
	conns map[*openConn]struct{}
	// rounds counts the calls of reverify.
	rounds uint64
}

// openConn is the wire below TLS, which leaves the pool when it is closed.
type openConn struct {
	net.Conn
	of    *openConns
	state tls.ConnectionState
}

func (c *openConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func (o *openConns) round() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rounds
}

// add takes in a connection whose handshake began in a round. If there was
// another since, it is checked once more.
func (o *openConns) add(c *openConn, state tls.ConnectionState, round uint64) error {
	c.state = state
	o.mu.Lock()
	if o.conns == nil {
		o.conns = map[*openConn]struct{}{}
	}
	o.conns[c] = struct{}{}
	missed := o.rounds != round
	o.mu.Unlock()
	if missed {
		return o.verify(state)
	}
	return nil
}

// reverify closes the connections that no longer verify, and says why it closed
// the last of them.
func (o *openConns) reverify() (ended error) {
	o.mu.Lock()
	o.rounds++
	open := slices.Collect(maps.Keys(o.conns))
	o.mu.Unlock()
	for _, c := range open {
		if err := o.verify(c.state); err != nil {
			_ = c.Close()
			ended = err
		}
	}
	return ended
}
