package issuer

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/internal/skew"
)

const (
	// maxRequest bounds a request, in bytes. It is gRPC's own default, said out
	// loud.
	maxRequest = 4 << 20
	// maxStreams bounds the calls that one connection has open.
	maxStreams = 1000
	// readBuffer is for what comes in small: TLS has a buffer of its own, of whole
	// records, and large messages are read past this one. gRPC's own 32 KB would be
	// a third of what a connection takes.
	readBuffer = 1 << 10
)

// TLSConfig is that of the issuer listener: the server shows an SVID for
// spiffe://TD/spire/server, made anew before it expires. A client certificate
// is asked for but not required, for an agent has none before attestation; one
// that is shown must be an X509-SVID that chains to our bundle.
func (i *Issuer) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		ClientAuth: tls.RequestClientCert,
		Time:       i.cfg.Clock,
		// A resumed session would skip the check of the client's chain.
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			svid, _, err := i.self.current()
			if err != nil {
				return nil, err
			}
			return tlsCertificate(svid), nil
		},
		// VerifyConnection, unlike VerifyPeerCertificate, runs on every
		// handshake, resumed or not.
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			bundle, _ := i.ca.Bundle()
			now := i.now()
			if _, _, err := x509svid.Verify(state.PeerCertificates, bundle, x509svid.WithTime(now)); err != nil {
				i.refusedClient(state.PeerCertificates, bundle, now)
				return fmt.Errorf("client certificate: %w", err)
			}
			return nil
		},
	}
}

// refusedClient says in the log of a certificate that is ours, but not of this time:
// its owner hears no more than that it is bad. gRPC logs nothing of handshakes.
func (i *Issuer) refusedClient(chain []*x509.Certificate, bundle *ca.Bundle, now time.Time) {
	off := skew.In(chain, now)
	if off == nil {
		return
	}
	id, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(chain[0].NotAfter.Add(-time.Second)))
	if err == nil && i.refusing.Allow(id) {
		i.log.Warn("a caller was refused whose certificate is not valid by this machine's clock", "spiffe_id", id.String(), "error", off)
	}
}

// ServerOptions are those of the gRPC server on the issuer listener: TLS,
// limits on messages and streams, keepalive that finds dead agents, and traces.
func (i *Issuer) ServerOptions() []grpc.ServerOption {
	return append(i.cfg.Tracer.ServerOptions(),
		grpc.Creds(i.orderedTLS()),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ReadBufferSize(readBuffer),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
}

func tlsCertificate(svid *x509svid.SVID) *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}
