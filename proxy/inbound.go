package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/pep/httppep"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/http1"
	"github.com/writ-dev/writ/proxy/http2"
	"github.com/writ-dev/writ/proxy/mtls"
	"github.com/writ-dev/writ/proxy/upstream"
)

// inbound is the listener in front of the application, and the way to it.
type inbound struct {
	p        *Proxy
	cfg      Inbound
	port     int
	listener *mtls.Listener
	http1    *http1.Server
	http2    *http.Server
	pep      *httppep.Handler
	app      *http.Transport
	refusals *refusals
	inflight inflight
}

// connKey holds the *servedConn in a request's context.
type connKey struct{}

// servedConn is a connection on which requests come.
type servedConn struct {
	*mtls.Conn
	age connAge
}

// serverSlack is how much more than the limit on heads net/http reads, so that
// it is our refusal, with a record, that a caller meets.
const serverSlack = 16 << 10

func newInbound(p *Proxy, cfg Inbound, tcp net.Listener, base context.Context) (*inbound, error) {
	if cfg.MaxConnectionAge == 0 {
		cfg.MaxConnectionAge = defaultMaxConnectionAge
	}
	in := &inbound{p: p, cfg: cfg, refusals: newRefusals(p.enforcer)}
	_, in.port = pep.Address(tcp.Addr().String())
	grpc := cfg.Protocol == policy.GRPC
	protocols := []string{mtls.HTTP2, mtls.HTTP1}
	dial := dialApp(cfg.App)
	if grpc {
		protocols = []string{mtls.HTTP2}
		in.app = http2.NewTransport(http2.TransportConfig{Dial: dial})
	} else {
		in.app = http1.NewTransport(http1.TransportConfig{Dial: dial})
	}
	in.listener = mtls.Listen(tcp, mtls.ListenerConfig{
		ServerConfig:     mtls.ServerConfig{Source: p.opts.Source, TrustDomain: p.id.TrustDomain(), Protocols: protocols, Revoked: p.revoked(), Now: p.enforcer.Now},
		HandshakeTimeout: p.opts.HeadTimeout,
		Refused:          in.refusedConn,
		Revoked:          in.revokedConn,
		Log:              p.log,
	})
	head := cfg.MaxHeadBytes
	if head == 0 {
		head = defaultMaxHeadBytes
	}
	var err error
	in.pep, err = httppep.New(httppep.Config{
		Enforcer: p.enforcer, GRPC: grpc, Port: in.port, MaxHeadBytes: head,
		Peer: func(r *http.Request) (*pep.Peer, error) {
			if c, ok := r.Context().Value(connKey{}).(*servedConn); ok {
				return c.Peer(), nil
			}
			return nil, errors.New("no verified peer on this connection")
		},
		Next: &forwarder{transport: in.app, scheme: "http", fromApp: true, failed: in.appFailed, log: p.log},
	})
	if err != nil {
		return nil, err
	}
	errorLog := slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)
	in.http1 = http1.NewServer(http1.Config{
		Handler: in, MaxHeadBytes: head + serverSlack, HeadTimeout: p.opts.HeadTimeout, Malformed: in.malformed,
		ConnContext: in.connContext, BaseContext: base, ErrorLog: errorLog,
	})
	in.http2 = http2.NewServer(http2.Config{
		Handler: in, MaxHeadBytes: head + serverSlack, PrefaceTimeout: p.opts.HeadTimeout,
		ConnContext: in.connContext, BaseContext: base, ErrorLog: errorLog,
	})
	return in, nil
}

// dialApp connects to the application, host:port or unix:///path.
func dialApp(address string) func(context.Context) (net.Conn, error) {
	network := "tcp"
	if path, ok := upstream.UnixPath(address); ok {
		network, address = "unix", path
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, network, address) }
}

// connContext ends with the identity of the peer, so that no request that is
// still open then outlives it.
func (in *inbound) connContext(ctx context.Context, nc net.Conn) context.Context {
	c, ok := nc.(*mtls.Conn)
	if !ok {
		return ctx
	}
	served := &servedConn{Conn: c}
	ctx = context.WithValue(ctx, connKey{}, served)
	left := c.Peer().NotAfter.Sub(in.p.enforcer.Now())
	ctx, cancel := context.WithTimeoutCause(ctx, left, httppep.ErrRightEnded)
	c.OnClose(cancel)
	c.OnClose(served.age.start(in.cfg.MaxConnectionAge, func() { _ = c.Close() }))
	return ctx
}

// ServeHTTP implements http.Handler: hop by hop first, then the decision.
func (in *inbound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in.inflight.enter()
	defer in.inflight.leave()
	if c, ok := r.Context().Value(connKey{}).(*servedConn); ok {
		defer c.age.leave()
		if c.age.enter() {
			// HTTP/1.1 closes after this response; HTTP/2 sends GOAWAY and lets the
			// open streams end.
			w.Header()["Connection"] = []string{"close"}
		}
	}
	r = prepare(r)
	if in.cfg.Underscores != "allow" {
		stripUnderscores(r.Header)
		stripUnderscores(r.Trailer)
	}
	in.pep.ServeHTTP(w, r)
}

// appFailed answers a request that was allowed and recorded, and that the
// application could not be given.
func (in *inbound) appFailed(w http.ResponseWriter, r *http.Request, err error) {
	res := pep.Result{Status: http.StatusBadGateway}
	switch {
	case errors.Is(err, errTarget):
		res.Status = http.StatusBadRequest
	case timedOut(err):
		res.Status = http.StatusGatewayTimeout
	}
	if id := w.Header()[httppep.DecisionID]; len(id) == 1 {
		res.DecisionID = id[0]
	}
	in.p.log.Warn("the application did not answer", "error", err, "decision", res.DecisionID, "status", res.Status)
	httppep.Answer(w, in.cfg.Protocol == policy.GRPC, res)
}

// malformed puts a head that is no request on record.
func (in *inbound) malformed(nc net.Conn, status int, reason string) (http.Header, []byte) {
	pi := policy.Input{Direction: policy.Inbound, Layer: policy.LayerRequest, TokenStatus: policy.TokenAbsent}
	pi.Destination.Port = in.port
	pi.Request = policy.Request{Protocol: policy.HTTP, ContentLength: -1}
	if c, ok := nc.(*mtls.Conn); ok {
		c.Peer().Describe(&pi)
	}
	return refuseHead(in.p.enforcer, &pi, status, reason)
}

// refuseHead records a head that is no request and makes its answer.
func refuseHead(e *pep.Enforcer, in *policy.Input, status int, reason string) (http.Header, []byte) {
	res := e.Refuse(context.Background(), in, pep.Refusal{Status: status, Reason: "malformed request head: " + reason})
	h := http.Header{"Content-Type": {"application/json"}}
	if res.DecisionID != "" {
		h[httppep.DecisionID] = []string{res.DecisionID}
	}
	res.Status = status
	return h, httppep.Body(res)
}

// refusedConn puts a connection that never became one on record.
func (in *inbound) refusedConn(peer *pep.Peer, why *mtls.Error) {
	in.p.opts.Metrics.HandshakeFailed(string(why.Cause))
	in.p.log.Info("connection refused", "peer", fmt.Sprintf("%s:%d", peer.IP, peer.Port), "cause", why.Cause, "reason", why.Reason)
	pi := policy.Input{Direction: policy.Inbound, Layer: policy.LayerConnection, TokenStatus: policy.TokenAbsent}
	pi.Destination.Port = in.port
	peer.Describe(&pi)
	in.refusals.record(&pi, why.Reason)
}

// revokedConn puts a connection on record that had to end.
func (in *inbound) revokedConn(peer *pep.Peer, why *mtls.Error) {
	in.p.log.Warn("connection ended", "peer", fmt.Sprintf("%s:%d", peer.IP, peer.Port), "spiffe_id", peer.ID.String(), "cause", why.Cause, "reason", why.Reason)
	pi := policy.Input{Direction: policy.Inbound, Layer: policy.LayerConnection, TokenStatus: policy.TokenAbsent}
	pi.Destination.Port = in.port
	peer.Describe(&pi)
	in.refusals.record(&pi, "open connection ended: "+why.Reason)
}

// serve runs until ctx ends, and then accepts nothing more.
func (in *inbound) serve(ctx context.Context, run *runner) {
	run.start("inbound listener", func() error { return in.listener.Serve(ctx) })
	if q := in.listener.Queue(mtls.HTTP1); q != nil {
		run.start("inbound HTTP/1.1", func() error { return served(in.http1.Serve(q)) })
	}
	run.start("inbound HTTP/2", func() error { return served(in.http2.Serve(in.listener.Queue(mtls.HTTP2))) })
}

// served drops the errors that only say that serving has ended.
func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// shutdown lets open requests end until ctx does.
func (in *inbound) shutdown(ctx context.Context) {
	drain(ctx, in.http1.Shutdown, in.http2.Shutdown)
	in.inflight.wait(ctx) // upgraded connections
}

func (in *inbound) close() {
	_ = in.http1.Close()
	_ = in.http2.Close()
	in.app.CloseIdleConnections()
}

// appBypass says in which way the application can be reached around the
// inbound listener.
func (i *Inbound) appBypass() string {
	if _, ok := upstream.UnixPath(i.App); ok {
		return ""
	}
	host, _, err := net.SplitHostPort(i.App)
	if ip := net.ParseIP(host); err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()) {
		return fmt.Sprintf("the application listens on loopback TCP %s: any process of this machine can reach it without a decision (a Unix socket in a private directory closes this)", i.App)
	}
	return fmt.Sprintf("the application listens on %s, beyond loopback: the network can reach it without a decision", i.App)
}

// peerID parses a SPIFFE ID that was validated.
func peerID(s string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	return id, nil
}
