package http1

import (
	"bytes"
	"context"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a Server is made of.
type Config struct {
	Handler http.Handler
	// MaxHeadBytes limits request line and headers; 64 KiB when 0.
	MaxHeadBytes int
	// HeadTimeout bounds the reading of a head; 10 s when 0. IdleTimeout is the
	// time between requests; 2 min when 0.
	HeadTimeout time.Duration
	IdleTimeout time.Duration
	// Malformed is called with a head that cannot be read as a request, before
	// it is answered with status. It returns header and body of the answer.
	Malformed func(conn net.Conn, status int, reason string) (header http.Header, body []byte)
	// ConnContext and BaseContext are those of http.Server.
	ConnContext func(context.Context, net.Conn) context.Context
	BaseContext context.Context
	ErrorLog    *log.Logger
	// PriorKnowledge also serves HTTP/2 to clients that begin with its preface
	// (RFC 9113, section 3.3).
	PriorKnowledge bool
}

// NewServer gives an http.Server for HTTP/1.1. It must be served through
// Serve.
func NewServer(cfg Config) *Server {
	if cfg.MaxHeadBytes == 0 {
		cfg.MaxHeadBytes = 64 << 10
	}
	if cfg.HeadTimeout == 0 {
		cfg.HeadTimeout = 10 * time.Second
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 2 * time.Minute
	}
	if cfg.BaseContext == nil {
		cfg.BaseContext = context.Background()
	}
	s := &Server{cfg: cfg}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(cfg.PriorKnowledge)
	s.http = &http.Server{
		Handler:                      http.HandlerFunc(s.serve),
		ReadHeaderTimeout:            cfg.HeadTimeout,
		IdleTimeout:                  cfg.IdleTimeout,
		MaxHeaderBytes:               cfg.MaxHeadBytes,
		ErrorLog:                     cfg.ErrorLog,
		Protocols:                    &protocols,
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return cfg.BaseContext },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			w := c.(*conn)
			if cfg.ConnContext != nil {
				ctx = cfg.ConnContext(ctx, w.Conn)
			}
			return context.WithValue(ctx, connKey{}, w)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			// From the end of a response, or the first byte of the first head, until
			// the handler runs: what is written now, net/http says by itself. A
			// head that came with the one before it is not announced as active.
			if w, ok := c.(*conn); ok && (state == http.StateActive || state == http.StateIdle) {
				w.unheard.Store(true)
			}
		},
	}
	return s
}

// Server serves HTTP/1.1.
type Server struct {
	cfg  Config
	http *http.Server
}

type connKey struct{}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		if r.ProtoMajor == 2 {
			// What looks like an answer here is part of somebody's body.
			c.framed.Store(true)
		}
		c.unheard.Store(false)
	}
	s.cfg.Handler.ServeHTTP(w, r)
}

// Serve serves the connections of l until Shutdown, and then returns
// http.ErrServerClosed.
func (s *Server) Serve(l net.Listener) error { return s.http.Serve(&listener{Listener: l, server: s}) }

// Shutdown closes idle connections, lets open requests end, and gives up on
// them with ctx. Upgraded connections are not waited for.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close closes every connection.
func (s *Server) Close() error { return s.http.Close() }

type listener struct {
	net.Listener
	server *Server
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, server: l.server}, nil
}

// conn sees the answers that net/http writes without a handler.
type conn struct {
	net.Conn
	server  *Server
	unheard atomic.Bool
	framed  atomic.Bool
	once    sync.Once
}

// Unwrap gives the connection below.
func (c *conn) Unwrap() net.Conn { return c.Conn }

// CloseWrite lets net/http wait for a client that is still sending.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

func (c *conn) Write(p []byte) (int, error) {
	if !c.unheard.Load() || c.framed.Load() || c.server.cfg.Malformed == nil {
		return c.Conn.Write(p)
	}
	status, reason := parseAnswer(p)
	if status < 400 {
		return c.Conn.Write(p)
	}
	var err error
	c.once.Do(func() { err = c.answer(status, reason) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// answer puts an answer with a decision id in the place of net/http's, which
// closes the connection in any case.
func (c *conn) answer(status int, reason string) error {
	header, body := c.server.cfg.Malformed(c.Conn, status, reason)
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) + "\r\n")
	if header == nil {
		header = http.Header{}
	}
	header.Set("Connection", "close")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	_ = header.Write(&b)
	b.WriteString("\r\n")
	b.Write(body)
	_, err := c.Conn.Write(b.Bytes())
	return err
}

// parseAnswer reads the status line of an answer of net/http.
func parseAnswer(p []byte) (status int, reason string) {
	line, _, _ := bytes.Cut(p, []byte("\r\n"))
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 "))
	if !ok || len(rest) < 3 {
		return 0, ""
	}
	status, err := strconv.Atoi(string(rest[:3]))
	if err != nil {
		return 0, ""
	}
	return status, string(bytes.TrimSpace(rest[3:]))
}
