package issuer

import (
	"context"
	"crypto/x509"
	"net/netip"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Caller is who calls. The zero Caller may call nothing.
type Caller struct {
	kind    callerKind
	uid     uint32
	addr    netip.Addr
	id      spiffeid.ID // svid only
	serial  string      // svid only
	expires time.Time   // svid only
	leaf    *x509.Certificate
}

type callerKind int

const (
	nobody callerKind = iota
	// anonymous came over TLS without a certificate.
	anonymous
	// svid came over TLS with an X509-SVID that chains to our bundle.
	svid
	// local came over the admin socket.
	local
	// remote came over the admin listener, and the admin policy allowed this
	// call.
	remote
)

// CallerFunc says who makes a call. An error refuses it.
type CallerFunc func(ctx context.Context) (Caller, error)

// LocalCaller is a caller on the admin socket with a user ID that may
// administer. Whether it may is for whoever serves the socket to decide.
func LocalCaller(uid uint32) Caller { return Caller{kind: local, uid: uid} }

// Actor is the caller's name in an identity.Act.
func (c Caller) Actor() string {
	switch c.kind {
	case svid, remote:
		return c.id.String()
	case local:
		return "unix:uid:" + strconv.FormatUint(uint64(c.uid), 10)
	case anonymous:
		return "ip:" + c.addr.String()
	}
	return "unknown"
}

// TLSCaller is the CallerFunc of the issuer listener: an X509-SVID, which the
// TLS configuration has verified, or none.
func TLSCaller(ctx context.Context) (Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, status.Error(codes.Internal, "no peer")
	}
	tlsInfo, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Caller{}, status.Error(codes.Unauthenticated, "not a TLS connection")
	}
	c := Caller{kind: anonymous}
	if addr, err := netip.ParseAddrPort(p.Addr.String()); err == nil {
		c.addr = addr.Addr().Unmap()
	}
	certs := tlsInfo.State.PeerCertificates
	if len(certs) == 0 {
		return c, nil
	}
	id, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return Caller{}, status.Error(codes.Unauthenticated, "client certificate is not an X509-SVID")
	}
	c.kind, c.id, c.leaf = svid, id, certs[0]
	c.serial, c.expires = certs[0].SerialNumber.String(), certs[0].NotAfter
	return c, nil
}

type remoteKey struct{}

// AllowRemote marks the context of a call that an administrator makes over the
// network, with a verified SVID, and that the admin policy allowed.
func AllowRemote(ctx context.Context, id spiffeid.ID) context.Context {
	return context.WithValue(ctx, remoteKey{}, Caller{kind: remote, id: id})
}

// RemoteCaller is the CallerFunc of the admin listener: whoever AllowRemote
// marked, and nobody else.
func RemoteCaller(ctx context.Context) (Caller, error) {
	c, ok := ctx.Value(remoteKey{}).(Caller)
	if !ok {
		return Caller{}, status.Error(codes.PermissionDenied, "the admin policy has not allowed this call")
	}
	return c, nil
}

type callerKey struct{}

func withCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf is the caller that the interceptor has admitted, nobody without one.
func callerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
