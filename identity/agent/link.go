package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
)

const (
	callTimeout = 30 * time.Second
	maxReply    = 32 << 20 // bytes; issuers stay under 4 MB, but the list of entries is one message
)

// link is the connection to the issuer, which is replaced when the agent's SVID
// is: the issuer takes the new one into use at its first connection.
type link struct {
	open func(*link) (*session, error)
	// others is how many replicas there are beside one.
	others int

	mu      sync.Mutex
	closed  bool
	current *session
	// distrust is why the last handshake failed for a reason that is not the
	// network's: the issuer did not prove itself, or refused our certificate.
	distrust error
}

// session is one connection. It closes when it was replaced and no call is on it.
type session struct {
	*grpc.ClientConn
	// done ends the streams that would last.
	done context.CancelFunc
	ctx  context.Context

	users    int
	replaced bool
}

func newLink(others int, open func(*link) (*session, error)) *link {
	return &link{open: open, others: others}
}

func (l *link) take() (*session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the agent has stopped")
	}
	if l.current == nil {
		s, err := l.open(l)
		if err != nil {
			return nil, err
		}
		l.current = s
	}
	l.current.users++
	return l.current, nil
}

func (l *link) release(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.users--
	s.closeIfUnused()
}

// replace makes the next call open a new connection, unless s is not the
// current one any more. nil stands for whatever is current.
func (l *link) replace(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil || s != nil && l.current != s {
		return
	}
	l.current.replaced = true
	l.current.done()
	l.current.closeIfUnused()
	l.current = nil
}

// close ends the link for good.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.replace(nil)
}

func (s *session) closeIfUnused() {
	if s.replaced && s.users == 0 {
		s.Close()
	}
}

// call runs do, which makes one call of the issuer, within callTimeout. A call
// that the new SVID overtook on its way is repeated with that. One that a replica
// does not answer goes to each of the others.
func (l *link) call(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) error {
	overtaken, err := l.callOnce(ctx, do)
	for n := 0; n < l.others && ctx.Err() == nil && status.Code(err) == codes.Unavailable; n++ {
		overtaken, err = l.callOnce(ctx, do)
	}
	if overtaken && denial(err) == types.PermissionDeniedDetails_AGENT_NOT_ACTIVE {
		_, err = l.callOnce(ctx, do)
	}
	return err
}

func (l *link) callOnce(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) (overtaken bool, err error) {
	s, err := l.take()
	if err != nil {
		return false, err
	}
	defer l.release(s)
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = do(limited, s.ClientConn)
	overtaken = s.ctx.Err() != nil
	switch {
	case err == nil:
		l.setDistrust(nil)
	case limited.Err() != nil && ctx.Err() == nil, status.Code(err) == codes.Unavailable:
		// Whoever tries again does so with a connection of its own: when to
		// is decided in one place, which is not gRPC.
		l.replace(s)
	}
	return overtaken, err
}

func (l *link) setDistrust(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.distrust = err
}

func (l *link) distrusted() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.distrust
}

// nextServer is the replica to connect to: each connection goes to another, so
// that one that does not answer is left.
func (a *Agent) nextServer() string {
	servers := a.cfg.servers()
	return servers[(a.firstServer+int(a.connections.Add(1)))%len(servers)]
}

// dial makes a connection that is opened by its first call.
func (a *Agent) dial(l *link, config *tls.Config) (*session, error) {
	config = config.Clone()
	config.NextProtos = []string{a.protocol(), "h2"}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(watchful{TransportCredentials: credentials.NewTLS(config), report: l.setDistrust}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	}
	options = append(options, a.opt.Tracer.DialOptions()...)
	target := a.nextServer()
	if a.opt.Dial != nil {
		target = "passthrough:///" + target
		options = append(options, grpc.WithContextDialer(a.opt.Dial))
	}
	cc, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to issuer %s: %w", target, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &session{ClientConn: cc, ctx: ctx, done: cancel}, nil
}

// protocol says to an issuer, before it begins a handshake, how soon something of
// this agent is of no use any more if it is not renewed.
func (a *Agent) protocol() string {
	if a.self.svid.Load() == nil {
		return admit.FirstProtocol
	}
	return admit.Protocol(a.lifeLeft())
}

// lifeLeft is how soon something of this agent is of no use any more, itself or what
// its workloads have.
func (a *Agent) lifeLeft() time.Duration {
	until := a.self.svid.Load().Certificates[0].NotAfter
	if soonest := a.cache.soonest(); !soonest.IsZero() && soonest.Before(until) {
		until = soonest
	}
	return time.Until(until)
}

// mutualTLS shows the agent's SVID and demands the issuer's.
func (a *Agent) mutualTLS() *tls.Config {
	c := a.issuerTLS(&a.self)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		svid, err := a.self.GetX509SVID()
		if err != nil {
			return nil, err
		}
		cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
		for _, c := range svid.Certificates {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		return cert, nil
	}
	return c
}

// issuerTLS accepts nobody but the issuer of the trust domain. There is no
// session cache, so no handshake goes without the check.
func (a *Agent) issuerTLS(bundle x509bundle.Source) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // SPIFFE IDs are verified instead of host names, below
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := verify(cs.PeerCertificates, bundle)
			if off := ofClocks(err); off != nil {
				err = fmt.Errorf("its certificate %w", off)
			} else if err == nil {
				if id, _ := x509svid.IDFromCert(cs.PeerCertificates[0]); id != a.issuerID {
					err = fmt.Errorf("it is %s", id)
				}
			}
			if err != nil {
				return &distrust{fmt.Errorf("who answers at %s does not prove to be %s: %w", a.cfg.ServerAddress, a.issuerID, err)}
			}
			return nil
		},
	}
}

// distrust is a handshake that failed on proof.
type distrust struct{ err error }

func (d *distrust) Error() string { return d.err.Error() }
func (d *distrust) Unwrap() error { return d.err }

// watchful reports handshakes that fail on proof, at either end: gRPC makes
// plain text of all errors, and with TLS 1.3 the other end's refusal comes only
// after the handshake.
type watchful struct {
	credentials.TransportCredentials
	report func(error)
}

func (w watchful) Clone() credentials.TransportCredentials {
	return watchful{w.TransportCredentials.Clone(), w.report}
}

func (w watchful) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		w.note(err)
		return conn, info, err
	}
	return &watchedConn{Conn: conn, watchful: w}, info, nil
}

// note reports err if it is about proof.
func (w watchful) note(err error) {
	var d *distrust
	var op *net.OpError
	switch {
	case errors.As(err, &d):
		w.report(err)
	case errors.As(err, &op) && op.Op == "remote error":
		w.report(fmt.Errorf("the issuer refuses the agent's certificate: %w", err))
	}
}

type watchedConn struct {
	net.Conn
	watchful watchful
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.watchful.note(err)
	}
	return n, err
}

// denial is the reason that the issuer gives for refusing this agent.
func denial(err error) types.PermissionDeniedDetails_Reason {
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.PermissionDenied {
		return types.PermissionDeniedDetails_UNKNOWN
	}
	for _, d := range s.Details() {
		if d, ok := d.(*types.PermissionDeniedDetails); ok {
			return d.Reason
		}
	}
	return types.PermissionDeniedDetails_UNKNOWN
}

// passing tells whether the same call may succeed later.
func passing(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return false // ours, not the issuer's
	}
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Internal, codes.Unknown:
		return true
	}
	return false
}
