package http2

import (
	"context"
	"log"
	"net"
	"net/http"
	"time"
)

// Config is what a Server is made of.
type Config struct {
	Handler http.Handler
	// MaxHeadBytes limits what one header block may take; 64 KiB when 0. A
	// handler that wants its refusal on record checks a lower limit itself.
	MaxHeadBytes int
	// PrefaceTimeout bounds the wait for the preface; 10 s when 0.
	PrefaceTimeout time.Duration
	// IdleTimeout closes a connection without streams; 2 min when 0.
	IdleTimeout time.Duration
	// MaxStreams open on one connection; 250 when 0.
	MaxStreams  int
	ConnContext func(context.Context, net.Conn) context.Context
	BaseContext context.Context
	ErrorLog    *log.Logger
}

// NewServer gives a server whose connections begin with the preface of HTTP/2.
// Shutdown sends GOAWAY and waits for open streams.
func NewServer(cfg Config) *http.Server {
	if cfg.MaxHeadBytes == 0 {
		cfg.MaxHeadBytes = 64 << 10
	}
	if cfg.PrefaceTimeout == 0 {
		cfg.PrefaceTimeout = 10 * time.Second
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 2 * time.Minute
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 250
	}
	if cfg.BaseContext == nil {
		cfg.BaseContext = context.Background()
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           cfg.Handler,
		ReadHeaderTimeout: cfg.PrefaceTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeadBytes,
		ErrorLog:          cfg.ErrorLog,
		Protocols:         &protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: cfg.MaxStreams,
			// A peer that vanished without a word is noticed, and one that does
			// not read cannot hold a writer for ever.
			SendPingTimeout:  30 * time.Second,
			PingTimeout:      15 * time.Second,
			WriteByteTimeout: 30 * time.Second,
		},
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return cfg.BaseContext },
		ConnContext:                  cfg.ConnContext,
	}
}

// TransportConfig is how the other end is reached.
type TransportConfig struct {
	// Dial makes a connection that is ready to be spoken on. With TLS it is a
	// *tls.Conn after its handshake.
	Dial func(context.Context) (net.Conn, error)
	TLS  bool
	// IdleTimeout closes a connection without streams; 1 min when 0.
	IdleTimeout time.Duration
}

// NewTransport speaks HTTP/2 to one place, with many requests on a connection.
// The URL of a request must have scheme http, or https with TLS; its host
// plays no part.
func NewTransport(cfg TransportConfig) *http.Transport {
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Minute
	}
	var protocols http.Protocols
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) }
	t := &http.Transport{
		Protocols:              &protocols,
		IdleConnTimeout:        cfg.IdleTimeout,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  30 * time.Second,
			PingTimeout:      15 * time.Second,
			WriteByteTimeout: 30 * time.Second,
		},
	}
	if cfg.TLS {
		protocols.SetHTTP2(true)
		t.DialTLSContext = dial
	} else {
		protocols.SetUnencryptedHTTP2(true)
		t.DialContext = dial
	}
	return t
}
