package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/pep"
)

// ListenerConfig is what a Listener is made of.
type ListenerConfig struct {
	ServerConfig
	// HandshakeTimeout bounds the handshake; 10 s when 0.
	HandshakeTimeout time.Duration
	// MaxConnections open at once, handshakes included; 10,000 when 0. A
	// connection above it is closed at once.
	MaxConnections int
	// MaxHandshakes under way at once; 1024 when 0. More wait to be accepted.
	MaxHandshakes int
	// MaxHandshakesPerPeer under way at once with one IPv4 address or IPv6 /64
	// network; 64 when 0. Four times as many wait for their turn, and more are
	// closed at once.
	MaxHandshakesPerPeer int
	// Refused is called before the peer learns that it is refused. The Peer has
	// no identity.
	Refused func(*pep.Peer, *Error)
	// Revoked is called when Reverify has closed a connection. The Peer has
	// the identity that it proved once.
	Revoked func(*pep.Peer, *Error)
	Log     *slog.Logger
}

// Listener accepts TCP connections, shakes hands with each on its own, and
// hands those whose peer is verified to the Queue of the protocol agreed on.
type Listener struct {
	cfg    ListenerConfig
	tcp    net.Listener
	tls    *tls.Config
	v      *verifier
	queues map[string]*Queue
	slots  chan struct{}
	turns  turns
	open   atomic.Int64
	wg     sync.WaitGroup

	mu sync.Mutex
	// conns are open and were handed out, or are about to be.
	conns map[*Conn]struct{}
	// verified counts the calls of Reverify.
	verified uint64
}

// Listen takes over tcp, and closes it at the end of Serve.
func Listen(tcp net.Listener, cfg ListenerConfig) *Listener {
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 10_000
	}
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = 1024
	}
	if cfg.MaxHandshakesPerPeer == 0 {
		cfg.MaxHandshakesPerPeer = 64
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Listener{cfg: cfg, tcp: tcp, queues: map[string]*Queue{}, conns: map[*Conn]struct{}{}, slots: make(chan struct{}, cfg.MaxHandshakes)}
	l.turns = turns{limit: cfg.MaxHandshakesPerPeer, peers: map[netip.Addr]*turn{}}
	l.tls, l.v = server(cfg.ServerConfig)
	for _, p := range cfg.Protocols {
		l.queues[p] = newQueue(tcp.Addr())
	}
	return l
}

// Queue gives the connections that agreed on an ALPN protocol of the
// configuration, as a net.Listener. Each is a *Conn.
func (l *Listener) Queue(protocol string) *Queue { return l.queues[protocol] }

// Addr is where the listener listens.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Open is the number of open connections, handshakes included.
func (l *Listener) Open() int { return int(l.open.Load()) }

// Serve accepts until ctx ends, and returns when no handshake is under way any
// more and the queues are closed. Connections handed out stay open.
func (l *Listener) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.tcp.Close() })
	defer func() {
		stop()
		cancel()
		l.tcp.Close()
		for _, q := range l.queues {
			q.Close()
		}
		l.wg.Wait()
	}()
	for {
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := accept(ctx, l.tcp, l.cfg.Log)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", l.tcp.Addr(), err)
		}
		if l.open.Add(1) > int64(l.cfg.MaxConnections) {
			l.open.Add(-1)
			conn.Close()
			<-l.slots
			l.cfg.Log.Warn("connection limit reached", "limit", l.cfg.MaxConnections, "peer", conn.RemoteAddr().String())
			continue
		}
		l.begin(ctx, conn)
	}
}

// begin starts a handshake, which takes over the slot, or gives the slot back.
func (l *Listener) begin(ctx context.Context, conn net.Conn) {
	from := origin(conn.RemoteAddr())
	place := l.turns.enter(from, conn)
	if place == begins {
		l.wg.Go(func() { l.handshake(ctx, from, conn) })
		return
	}
	<-l.slots
	if place == waits {
		return // the handshake that ends before it starts it
	}
	l.open.Add(-1)
	conn.Close()
	if place == full {
		l.cfg.Log.Warn("one address has too many handshakes under way", "limit", l.cfg.MaxHandshakesPerPeer, "peer", from.String())
	}
}

// endTurn passes slot and turn on to the connection that waits for them.
func (l *Listener) endTurn(ctx context.Context, from netip.Addr) {
	if next := l.turns.leave(from); next != nil {
		l.wg.Go(func() { l.handshake(ctx, from, next) })
		return
	}
	<-l.slots
}

// accept retries what passes: a peer that left, or no file descriptors for a
// moment.
func accept(ctx context.Context, l net.Listener, log *slog.Logger) (net.Conn, error) {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		conn, err := l.Accept()
		var ne interface{ Temporary() bool }
		if err == nil || ctx.Err() != nil || !errors.As(err, &ne) || !ne.Temporary() {
			return conn, err
		}
		log.Warn("accept failed, trying again", "error", err, "after", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (l *Listener) handshake(ctx context.Context, from netip.Addr, raw net.Conn) {
	wire := &countedConn{Conn: raw}
	said := false
	refused := func(state tls.ConnectionState, err *Error) {
		if !said && l.cfg.Refused != nil {
			l.cfg.Refused(pep.NewPeer(raw.RemoteAddr().String(), state, spiffeid.ID{}, nil), err)
		}
		said = true
	}
	l.mu.Lock()
	round := l.verified
	l.mu.Unlock()
	var peer *pep.Peer
	cfg := l.tls.Clone()
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		id, chains, err := l.v.verify(state)
		if err == nil && l.queues[protocol(state)] == nil {
			err = refuse(BadHandshake, "the peer offered no application protocol (ALPN)")
		}
		if err != nil {
			// On record before crypto/tls sends the alert.
			refused(state, asError(err))
			return err
		}
		peer = pep.NewPeer(raw.RemoteAddr().String(), state, id, chains)
		return nil
	}
	conn := tls.Server(wire, cfg)
	hctx, cancel := context.WithTimeout(ctx, l.cfg.HandshakeTimeout)
	err := conn.HandshakeContext(hctx)
	cancel()
	l.endTurn(ctx, from)
	if err == nil && peer == nil {
		err = errors.New("the handshake ended without a verified peer")
	}
	if err != nil {
		if !said && wire.read.Load() > 0 && ctx.Err() == nil {
			refused(conn.ConnectionState(), classify(err))
		}
		raw.Close()
		l.open.Add(-1)
		return
	}
	c := &Conn{Conn: conn, peer: peer, state: conn.ConnectionState()}
	c.closed = []func(){func() {
		l.open.Add(-1)
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
	}}
	l.mu.Lock()
	l.conns[c] = struct{}{}
	missed := l.verified != round
	l.mu.Unlock()
	if missed {
		// Reverify did not see this connection, and the handshake may have seen
		// the bundle of before.
		l.reverify([]*Conn{c})
	}
	l.queues[protocol(c.state)].put(c)
}

// Reverify checks the peers of all open connections against the trust bundle of
// now, and closes the connections of those that it no longer vouches for.
func (l *Listener) Reverify() {
	l.mu.Lock()
	l.verified++
	open := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	l.reverify(open)
}

func (l *Listener) reverify(open []*Conn) {
	revoked := map[*Conn]*Error{}
	for _, c := range open {
		if _, _, err := l.v.verify(c.state); err != nil {
			c.abort()
			revoked[c] = asError(err)
		}
	}
	// All are closed before the first is recorded, which may have to wait.
	if l.cfg.Revoked != nil {
		for c, err := range revoked {
			l.cfg.Revoked(c.peer, err)
		}
	}
}

// asError gives an error of verify its cause.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return refuse(BadSVID, "%v", err)
}

// protocol is what is spoken on a connection: HTTP/1.1 where the client does
// not know ALPN.
func protocol(state tls.ConnectionState) string {
	if state.NegotiatedProtocol == "" {
		return HTTP1
	}
	return state.NegotiatedProtocol
}

// classify names the cause of a handshake that failed before a certificate was
// looked at.
func classify(err error) *Error {
	switch {
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(TimedOut, "the TLS handshake took too long")
	case errors.Is(err, io.EOF):
		return refuse(BadHandshake, "the peer left during the TLS handshake")
	}
	return refuse(BadHandshake, "TLS handshake: %v", err)
}

// countedConn knows whether anything was ever received. A port scan or a
// health check that only connects is not worth an event.
type countedConn struct {
	net.Conn
	read atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.read.Load() == 0 {
		c.read.Store(1)
	}
	return n, err
}
