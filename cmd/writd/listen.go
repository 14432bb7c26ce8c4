package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// listener is a server with its socket.
type listener struct {
	name     string
	addr     net.Addr
	serve    func() error
	graceful func()
	now      func()
}

func grpcListener(name string, s *grpc.Server, l net.Listener) *listener {
	return &listener{name: name, addr: l.Addr(), serve: func() error { return s.Serve(l) }, graceful: s.GracefulStop, now: s.Stop}
}

// listen opens the sockets of the roles that run. When one fails, those that
// are open already are closed.
func (w *writd) listen() (all []*listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.now()
			}
		}
	}()
	for _, open := range []func() (*listener, error){w.listenIssuer, w.listenControl, w.listenAdmin, w.listenRemoteAdmin, w.listenHealth, w.listenFederation, w.listenOIDC} {
		l, err := open()
		if err != nil {
			return all, err
		}
		if l != nil {
			all = append(all, l)
		}
	}
	return all, nil
}

// listenIssuer serves SPIRE's server API to agents.
func (w *writd) listenIssuer() (*listener, error) {
	if w.issuer == nil {
		return nil, nil
	}
	l, err := net.Listen("tcp", w.cfg.IssuerListen)
	if err != nil {
		return nil, fmt.Errorf("issuer listener: %w", err)
	}
	s := grpc.NewServer(w.issuer.ServerOptions()...)
	w.issuer.Register(s, issuer.TLSCaller)
	return grpcListener("issuer", s, l), nil
}

// listenControl serves policy down and audit up, to peers with an SVID of our
// trust domain.
func (w *writd) listenControl() (*listener, error) {
	if w.decision == nil && w.record.ledger == nil {
		return nil, nil
	}
	l, err := net.Listen("tcp", w.cfg.ControlListen)
	if err != nil {
		return nil, fmt.Errorf("control listener: %w", err)
	}
	s := w.newPeerServer(
		// TLS has a buffer of its own; there may be thousands of sidecars.
		grpc.ReadBufferSize(1<<10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// A sidecar has two streams; more is somebody's mistake or attack.
		grpc.MaxConcurrentStreams(16),
	)
	if w.decision != nil {
		w.decision.RegisterDistribution(s)
	}
	w.record.registerIngest(s, peerID)
	return grpcListener("control", s, l), nil
}

// newPeerServer is a server for peers with an SVID of our trust domain that is not
// revoked. Interceptors among the options come after that.
func (w *writd) newPeerServer(options ...grpc.ServerOption) *grpc.Server {
	config := tlsconfig.MTLSServerConfig(w.source, w.source, tlsconfig.AuthorizeMemberOf(w.td))
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{"h2"}
	// A resumed session would skip the check of the client's chain.
	config.SessionTicketsDisabled = true
	return grpc.NewServer(slices.Concat(w.traces.Tracer().ServerOptions(), []grpc.ServerOption{
		grpc.Creds(svidCredentials{credentials.NewTLS(config)}),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 30 * time.Second, Timeout: 20 * time.Second,
			// A peer proves itself again at least as often as its SVID changes.
			MaxConnectionAge:      max(time.Minute, w.cfg.SVIDTTL),
			MaxConnectionAgeGrace: 10 * time.Second,
		}),
		grpc.ChainUnaryInterceptor(w.notRevoked),
		grpc.ChainStreamInterceptor(w.endWhenRevoked),
	}, options)...)
}

// boundedStream is a stream with a context of its own, which handlers heed.
type boundedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *boundedStream) Context() context.Context { return s.ctx }

// peerID is the SPIFFE ID that the peer of a call has proved: the handshake
// verified the chain, so the leaf's name stands.
func peerID(ctx context.Context) (spiffeid.ID, error) {
	leaf, err := peerLeaf(ctx)
	if err != nil {
		return spiffeid.ID{}, err
	}
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return spiffeid.ID{}, status.Error(codes.Unauthenticated, "peer certificate is not an X509-SVID")
	}
	return id, nil
}

func peerLeaf(ctx context.Context) (*x509.Certificate, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(svidInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, status.Error(codes.Unauthenticated, "no verified SPIFFE ID")
	}
	return info.State.PeerCertificates[0], nil
}

// listenAdmin serves administration on a Unix socket that only this user and
// root can reach.
func (w *writd) listenAdmin() (*listener, error) {
	path := w.cfg.AdminSocket
	if path == "" {
		path = w.path("run", "admin.sock")
	}
	l, err := unixsock.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	s := grpc.NewServer(append(w.traces.Tracer().ServerOptions(),
		grpc.Creds(peercred.Credentials()), grpc.MaxRecvMsgSize(server.MaxMessageBytes), grpc.ChainUnaryInterceptor(onlyAdmins), grpc.ChainStreamInterceptor(onlyAdminStreams))...)
	w.registerAdmin(s, localCaller)
	return grpcListener("admin", s, l), nil
}

// registerAdmin puts everything that an administrator calls on a server.
func (w *writd) registerAdmin(s *grpc.Server, caller issuer.CallerFunc) {
	if w.issuer != nil {
		w.issuer.Register(s, caller)
	} else {
		healthv1.RegisterHealthServer(s, w.health)
	}
	if w.decision != nil {
		w.decision.RegisterAdmin(s)
	}
	w.record.registerAdmin(s, actor)
	policyv1.RegisterStatusServer(s, &statusService{w: w})
	policyv1.RegisterBackupServer(s, &backupService{w: w})
}

// admin is the caller on the admin socket: root, or the user that writd runs
// as. The socket's mode says the same; this does not depend on it.
func admin(ctx context.Context) (peercred.Peer, error) {
	p, ok := peercred.FromContext(ctx)
	if !ok {
		return p, status.Error(codes.Unauthenticated, "caller is not known")
	}
	if p.UID != 0 && int(p.UID) != os.Geteuid() {
		return p, status.Errorf(codes.PermissionDenied, "user id %d may not administer", p.UID)
	}
	return p, nil
}

func onlyAdmins(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if _, err := admin(ctx); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func onlyAdminStreams(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if _, err := admin(stream.Context()); err != nil {
		return err
	}
	return handler(srv, stream)
}

func localCaller(ctx context.Context) (issuer.Caller, error) {
	p, err := admin(ctx)
	if err != nil {
		return issuer.Caller{}, err
	}
	return issuer.LocalCaller(p.UID), nil
}

// actor names the administrator who calls in the record.
func actor(ctx context.Context) (string, error) {
	if c, err := issuer.RemoteCaller(ctx); err == nil {
		return c.Actor(), nil
	}
	p, err := admin(ctx)
	if err != nil {
		return "", err
	}
	return "unix:uid:" + strconv.FormatUint(uint64(p.UID), 10), nil
}

// listenHealth serves metrics and health, on loopback.
func (w *writd) listenHealth() (*listener, error) {
	if w.cfg.Admin == "" {
		return nil, nil
	}
	l, err := loopbackOnly(w.cfg.Admin)
	if err != nil {
		return nil, fmt.Errorf("metrics and health: %w", err)
	}
	s := &http.Server{Handler: w.healthHandler(), ReadHeaderTimeout: 5 * time.Second}
	return &listener{
		name: "health",
		serve: func() error {
			if err := s.Serve(l); err != http.ErrServerClosed {
				return err
			}
			return nil
		},
		graceful: func() { _ = s.Shutdown(context.Background()) },
		now:      func() { _ = s.Close() },
	}, nil
}
