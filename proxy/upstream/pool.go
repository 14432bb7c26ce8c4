package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/proxy/http1"
	"github.com/writ-dev/writ/proxy/http2"
	"github.com/writ-dev/writ/proxy/mtls"
)

// PoolConfig is what a Pool is made of.
type PoolConfig struct {
	// Address of the other sidecar, host:port.
	Address string
	// Peer is the SPIFFE ID that it must prove.
	Peer   spiffeid.ID
	Source mtls.Source
	// Revoked may be nil.
	Revoked mtls.Revoked
	// Ended is called with the reason when Reverify has closed connections.
	Ended func(err error)
	// Timeout bounds connecting and the handshake together; 10 s when 0.
	Timeout time.Duration
	Now     func() time.Time
}

// Pool sends requests to one service over mutual TLS, HTTP/2 for those that
// came by HTTP/2 and HTTP/1.1 for the others. It is an http.RoundTripper; the
// URL of a request has scheme https.
type Pool struct {
	cfg     PoolConfig
	dialer  net.Dialer
	http1   *tls.Config
	http2   *tls.Config
	current atomic.Pointer[generation]
	open    openConns
	// renewAt is when requests stop using the connections there are, Unix
	// nanoseconds; 0 is never. See renewalOf.
	renewAt atomic.Int64
}

// generation is the connections made with one SVID.
type generation struct{ http1, http2 *http.Transport }

// NewPool makes a pool without connections.
func NewPool(cfg PoolConfig) *Pool {
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Pool{cfg: cfg}
	config := func(protocol string) mtls.ClientConfig {
		return mtls.ClientConfig{Source: cfg.Source, Peer: cfg.Peer, Protocols: []string{protocol}, Revoked: cfg.Revoked, Now: cfg.Now}
	}
	client := func(protocol string) *tls.Config { return mtls.Client(config(protocol)) }
	p.open.verify = mtls.ClientVerify(config(mtls.HTTP2))
	p.http1, p.http2 = client(mtls.HTTP1), client(mtls.HTTP2)
	p.current.Store(p.generation())
	return p
}

func (p *Pool) generation() *generation {
	return &generation{
		http1: http1.NewTransport(http1.TransportConfig{Dial: p.dialWith(p.http1), TLS: true}),
		http2: http2.NewTransport(http2.TransportConfig{Dial: p.dialWith(p.http2), TLS: true}),
	}
}

func (p *Pool) dialWith(cfg *tls.Config) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
		defer cancel()
		raw, err := p.dialer.DialContext(ctx, "tcp", p.cfg.Address)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", p.cfg.Address, err)
		}
		tracked := &openConn{Conn: raw, of: &p.open}
		raw = tracked
		round := p.open.round()
		conn := tls.Client(raw, cfg)
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, fmt.Errorf("TLS with %s at %s: %w", p.cfg.Peer, p.cfg.Address, err)
		}
		if err := p.open.add(tracked, conn.ConnectionState(), round); err != nil {
			raw.Close()
			return nil, fmt.Errorf("TLS with %s at %s: %w", p.cfg.Peer, p.cfg.Address, err)
		}
		p.renewBefore(renewalOf(conn.ConnectionState().PeerCertificates[0], p.cfg.Now()))
		return conn, nil
	}
}

// renewalOf is when to leave a connection whose other end showed this
// certificate: with an eighth of its life left, which is long after it has been
// replaced, and so long before it expires that requests have ended. One that
// has less left is used for half of that, since there is no better.
func renewalOf(leaf *x509.Certificate, now time.Time) time.Time {
	at := leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 8)
	if at.After(now) {
		return at
	}
	return now.Add(max(leaf.NotAfter.Sub(now)/2, time.Second))
}

func (p *Pool) renewBefore(at time.Time) {
	for {
		have := p.renewAt.Load()
		if have != 0 && have <= at.UnixNano() || p.renewAt.CompareAndSwap(have, at.UnixNano()) {
			return
		}
	}
}

// RoundTrip implements http.RoundTripper.
func (p *Pool) RoundTrip(r *http.Request) (*http.Response, error) {
	if at := p.renewAt.Load(); at != 0 && p.cfg.Now().UnixNano() >= at && p.renewAt.CompareAndSwap(at, 0) {
		p.Retire()
	}
	g := p.current.Load()
	if r.ProtoMajor == 2 {
		return g.http2.RoundTrip(r)
	}
	return g.http1.RoundTrip(r)
}

// Retire is called when the SVID or the bundle has changed, and when the other
// end's SVID is about to expire. Requests that
// begin afterwards use connections made with the new one; old connections are
// closed when their requests have ended.
func (p *Pool) Retire() { p.current.Swap(p.generation()).closeIdle() }

// Reverify checks the peers of all open connections again, and closes the
// connections of those that no longer prove who they are.
func (p *Pool) Reverify() {
	if err := p.open.reverify(); err != nil && p.cfg.Ended != nil {
		p.cfg.Ended(err)
	}
}

// CloseIdle closes the connections that carry no request.
func (p *Pool) CloseIdle() { p.current.Load().closeIdle() }

// closeIdle also makes net/http close, instead of keep, a connection whose
// request ends later.
func (g *generation) closeIdle() {
	g.http1.CloseIdleConnections()
	g.http2.CloseIdleConnections()
}
