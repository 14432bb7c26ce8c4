package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/tracing"
)

const (
	// securityHeader must come with each call. A browser or a server that can
	// be talked into a request on the socket cannot be made to send it
	// (SPIFFE Workload Endpoint, section 3).
	securityHeader = "workload.spiffe.io"

	// maxRequest is in bytes. Envoy says with its first request which of its
	// hundreds of extensions it has.
	maxRequest    = 512 << 10
	readBuffer    = 1 << 10  // bytes
	writeBuffer   = 8 << 10  // bytes; there is none while nothing is written
	maxHeaders    = 16 << 10 // bytes
	handshakeTime = 10 * time.Second
)

// Config is what a Server needs.
type Config struct {
	Source Source
	Attest Attest
	// ReattestInterval is how often, give or take a tenth, the process behind an
	// open stream is attested again. Zero is never.
	ReattestInterval time.Duration
	// AttestAgain, if given, is Attest for that: it also returns the types of
	// selectors that could not be looked for, which hold meanwhile.
	AttestAgain func(ctx context.Context, p peercred.Peer) (selectors, silent []string, err error)
	// Running, if given, identifies the program that a process runs now. While
	// it is the one that was attested, selectors that OfProgram knows hold
	// without being found again.
	Running   func(peercred.Peer) (string, error)
	OfProgram func(selector string) bool
	// RevokedJWT, if given, refuses JWT-SVIDs that are otherwise valid.
	RevokedJWT func(*jwtsvid.SVID) error
	// MaxConnectionsPerUID and MaxStreamsPerUID bound what the processes of one
	// user may hold open: connections, and calls whether they stream or not.
	MaxConnectionsPerUID int
	MaxStreamsPerUID     int
	Log                  *slog.Logger
	// Observe, if given, is told of each call that ended.
	Observe func(method string, code codes.Code)
	// Tracer, if given, traces calls; of those that last, their messages.
	Tracer *tracing.Tracer
}

// errStopping ends streams, which would never end by themselves.
var errStopping = status.Error(codes.Unavailable, "the agent is stopping")

// workloadAPI is how its methods begin. It is the one service that asks for the
// security header.
var workloadAPI = "/" + workloadpb.SpiffeWorkloadAPI_ServiceDesc.ServiceName + "/"

// Server serves the Workload API, and what else is registered with it, to the
// same callers.
type Server struct {
	workloadpb.UnimplementedSpiffeWorkloadAPIServer

	c       Config
	grpc    *grpc.Server
	conns   *perUID
	streams *perUID

	stopping chan struct{}
	stop     sync.Once
}

// NewServer returns a Server that does not serve yet.
func NewServer(c Config) (*Server, error) {
	if c.MaxConnectionsPerUID <= 0 || c.MaxStreamsPerUID <= 0 {
		return nil, fmt.Errorf("limits of %d connections and %d streams for each user leave nothing", c.MaxConnectionsPerUID, c.MaxStreamsPerUID)
	}
	if c.ReattestInterval < 0 || (c.Running == nil) != (c.OfProgram == nil) {
		return nil, errors.New("re-attestation needs a positive interval, and Running and OfProgram together")
	}
	s := &Server{
		c:        c,
		conns:    newPerUID(c.MaxConnectionsPerUID),
		streams:  newPerUID(c.MaxStreamsPerUID),
		stopping: make(chan struct{}),
	}
	s.grpc = grpc.NewServer(append(c.Tracer.ServerOptions(),
		grpc.Creds(limited{TransportCredentials: peercred.Credentials(), conns: s.conns, log: c.Log}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.MaxConcurrentStreams(uint32(c.MaxStreamsPerUID)),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.WaitForHandlers(true),
		// Thousands of connections that say nothing for hours: what gRPC keeps
		// for each by default (two buffers of 32 KB) would be most of the memory
		// of the agent.
		grpc.ReadBufferSize(readBuffer),
		grpc.WriteBufferSize(writeBuffer),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)...)
	workloadpb.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	return s, nil
}

// Registrar takes further services, before Serve. Their calls count like those
// of the Workload API; who calls they ask Caller.
func (s *Server) Registrar() grpc.ServiceRegistrar { return s.grpc }

// Answer begins the trace of the first answer to a call that lasts; the call
// itself may last for months. The context is for what that answer takes.
func (s *Server) Answer(ctx context.Context) (context.Context, tracing.Span) {
	if s.c.Tracer == nil {
		return ctx, tracing.Span{}
	}
	method, _ := grpc.Method(ctx)
	return s.c.Tracer.Serve(ctx, strings.TrimPrefix(method, "/"))
}

// Pushed begins the span of a further message of such a call, or of its end: a part of
// what changed the caller's grant. Where that is not known there is none.
func (s *Server) Pushed(ctx context.Context, g Grant) tracing.Span {
	if s.c.Tracer == nil || !g.Cause.Known() {
		return tracing.Span{}
	}
	method, _ := grpc.Method(ctx)
	_, span := s.c.Tracer.Serve(ctx, strings.TrimPrefix(method, "/"), g.Cause)
	named(span, g)
	return span
}

func named(span tracing.Span, g Grant) {
	tracing.List(span, tracing.SPIFFEIDs, g.Identities, func(id *Identity) string { return id.ID.String() })
}

// Stopping is closed when Stop begins: streams are to end then.
func (s *Server) Stopping() <-chan struct{} { return s.stopping }

// Serve answers calls on ln, a Unix socket, until Stop.
func (s *Server) Serve(ln net.Listener) error { return s.grpc.Serve(ln) }

// Stop ends the streams, which would never end by themselves, with Unavailable,
// and waits for the calls that run. When ctx is done it cuts them off.
func (s *Server) Stop(ctx context.Context) {
	s.stop.Do(func() { close(s.stopping) })
	drained := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		s.grpc.Stop()
		<-drained
	}
}

// Connections is how many are open.
func (s *Server) Connections() int { return s.conns.total() }

// Streams is how many calls are being answered.
func (s *Server) Streams() int { return s.streams.total() }

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	var resp any
	err := s.admit(ctx, info.FullMethod, func() (err error) {
		resp, err = next(ctx, req)
		return err
	})
	return resp, err
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return s.admit(ss.Context(), info.FullMethod, func() error { return next(srv, ss) })
}

// admit lets a call through that carries the security header, where it must, and
// is within the limits of its user.
func (s *Server) admit(ctx context.Context, method string, call func() error) error {
	err := func() error {
		md, _ := metadata.FromIncomingContext(ctx)
		if strings.HasPrefix(method, workloadAPI) && (len(md[securityHeader]) != 1 || md[securityHeader][0] != "true") {
			return status.Errorf(codes.InvalidArgument, "the call lacks the security header (metadata %s: true)", securityHeader)
		}
		p, ok := peercred.FromContext(ctx)
		if !ok {
			return status.Error(codes.Internal, "the caller is not known")
		}
		if !s.streams.take(p.UID) {
			return status.Errorf(codes.ResourceExhausted, "user %d has %d calls open, as many as are allowed", p.UID, s.c.MaxStreamsPerUID)
		}
		defer s.streams.release(p.UID)
		return call()
	}()
	if s.c.Observe != nil {
		s.c.Observe(method, status.Code(err))
	}
	return err
}
