package http1

import (
	"context"
	"net"
	"net/http"
	"time"
)

// TransportConfig is how the other end is reached.
type TransportConfig struct {
	// Dial makes a connection that is ready to be spoken on. With TLS it is a
	// *tls.Conn after its handshake.
	Dial func(context.Context) (net.Conn, error)
	TLS  bool
	// Header timeout: how long the other end may take from the end of the
	// request to the head of its response; 0 is no limit.
	HeaderTimeout time.Duration
	// MaxIdle connections kept; 256 when 0. IdleTimeout is how long; 1 min when
	// 0, below the IdleTimeout of a Server, so that the end that sends requests
	// is the one that closes, and no request meets a closing connection.
	MaxIdle     int
	IdleTimeout time.Duration
}

// NewTransport speaks HTTP/1.1 to one place. The URL of a request must have
// scheme http, or https with TLS; its host plays no part.
func NewTransport(cfg TransportConfig) *http.Transport {
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = 256
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Minute
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) }
	t := &http.Transport{
		Protocols:              &protocols,
		MaxIdleConns:           cfg.MaxIdle,
		MaxIdleConnsPerHost:    cfg.MaxIdle,
		IdleConnTimeout:        cfg.IdleTimeout,
		ResponseHeaderTimeout:  cfg.HeaderTimeout,
		MaxResponseHeaderBytes: 256 << 10,
		// The client decides what it can decode, not the proxy.
		DisableCompression: true,
		// Expect: 100-continue is forwarded; a server that never answers it gets
		// the body after this time (RFC 9110, section 10.1.1).
		ExpectContinueTimeout: time.Second,
	}
	if cfg.TLS {
		t.DialTLSContext = dial
	} else {
		t.DialContext = dial
	}
	return t
}
