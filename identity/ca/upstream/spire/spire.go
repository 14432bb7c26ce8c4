// Package spire is an upstream authority that is an issuer with SPIRE's server
// API: a SPIRE server, or another control plane. The control plane below it is a
// workload of that issuer, whose entry says downstream, and takes its SVID from
// the Workload API of an agent there.
package spire

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
)

// pollInterval is how often the upstream's bundle is looked at, less or more a fifth
// so that issuers below it do not ask as one. SPIRE's server API pushes it to nobody,
// and what its agents push, the Workload API, lacks what is tainted. Its refresh hint
// is for other trust domains: minutes, in which a tainted root would go on signing.
const pollInterval = 5 * time.Second

// Config of an Upstream. All but Log are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// ServerAddress of the issuer, host:port.
	ServerAddress string
	// WorkloadAPI is the socket of an agent of that issuer, unix:///path or
	// tcp://IP:port.
	WorkloadAPI string
	Log         *slog.Logger
	// Poll is the time between two looks at the bundle; about five seconds if zero.
	// What comes by the Workload API has it looked at as well, at once.
	Poll time.Duration
}

// Upstream signs by way of another issuer. Close it.
type Upstream struct {
	cfg Config

	mu     sync.Mutex
	source *workloadapi.X509Source
	conn   *grpc.ClientConn
}

var _ ca.Upstream = (*Upstream)(nil)

// New connects to nothing yet.
func New(cfg Config) *Upstream {
	if cfg.Poll == 0 {
		cfg.Poll = pollInterval
	}
	return &Upstream{cfg: cfg}
}

// Close ends the connections.
func (u *Upstream) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn == nil {
		return nil
	}
	err := errors.Join(u.conn.Close(), u.source.Close())
	u.conn, u.source = nil, nil
	return err
}

// connect gets the own SVID, the first time, and the connection on which it is
// shown. Later SVIDs and bundles come by themselves.
func (u *Upstream) connect(ctx context.Context) (*grpc.ClientConn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil {
		return u.conn, nil
	}
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(waiting, workloadapi.WithClientOptions(workloadapi.WithAddr(u.cfg.WorkloadAPI)))
	if err != nil {
		return nil, fmt.Errorf("own SVID from %s: %w", u.cfg.WorkloadAPI, err)
	}
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(identity.IssuerID(u.cfg.TrustDomain)))
	conn, err := grpc.NewClient(u.cfg.ServerAddress, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("issuer %s: %w", u.cfg.ServerAddress, err), source.Close())
	}
	u.source, u.conn = source, conn
	return conn, nil
}

// MintX509CA implements ca.Upstream. The roots are those of the bundle, which
// says of each whether it is tainted.
func (u *Upstream) MintX509CA(ctx context.Context, csr []byte, life time.Duration) ([]*x509.Certificate, []ca.Root, error) {
	conn, err := u.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	resp, err := svidv1.NewSVIDClient(conn).NewDownstreamX509CA(ctx, &svidv1.NewDownstreamX509CARequest{Csr: csr, PreferredTtl: int32(min(life, 1<<30*time.Second) / time.Second)})
	if err != nil {
		return nil, nil, fmt.Errorf("issuer %s does not sign an authority: %w", u.cfg.ServerAddress, explain(err))
	}
	var chain []*x509.Certificate
	for n, der := range resp.GetCaCertChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("issuer %s: certificate %d of the chain: %w", u.cfg.ServerAddress, n, err)
		}
		chain = append(chain, cert)
	}
	b, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, nil, fmt.Errorf("bundle of issuer %s: %w", u.cfg.ServerAddress, err)
	}
	bundle, err := parseBundle(b, u.cfg.TrustDomain)
	return chain, bundle.X509, err
}

func explain(err error) error {
	if status.Code(err) == codes.PermissionDenied {
		return fmt.Errorf("%w (does the entry of this control plane there say downstream?)", err)
	}
	return err
}

// PublishJWTKey implements ca.Upstream.
func (u *Upstream) PublishJWTKey(ctx context.Context, key ca.JWTAuthority) error {
	conn, err := u.connect(ctx)
	if err != nil {
		return err
	}
	pb := &types.JWTKey{KeyId: key.KeyID, PublicKey: key.PublicKey, Tainted: key.Tainted}
	if !key.ExpiresAt.IsZero() {
		pb.ExpiresAt = key.ExpiresAt.Unix()
	}
	_, err = bundlev1.NewBundleClient(conn).PublishJWTAuthority(ctx, &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: pb})
	if status.Code(err) == codes.Unimplemented {
		return errors.ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("issuer %s: %w", u.cfg.ServerAddress, explain(err))
	}
	return nil
}

// Follow implements ca.Upstream.
func (u *Upstream) Follow(ctx context.Context, changed func(ca.UpstreamBundle)) error {
	var last *types.Bundle
	for {
		conn, err := u.connect(ctx)
		if err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		b, err := bundlev1.NewBundleClient(conn).GetBundle(limited, &bundlev1.GetBundleRequest{})
		cancel()
		if err != nil {
			return fmt.Errorf("bundle of issuer %s: %w", u.cfg.ServerAddress, err)
		}
		if last == nil || !proto.Equal(last, b) {
			bundle, err := parseBundle(b, u.cfg.TrustDomain)
			if err != nil {
				return fmt.Errorf("issuer %s: %w", u.cfg.ServerAddress, err)
			}
			last = b
			changed(bundle)
		}
		timer := time.NewTimer(u.cfg.Poll*4/5 + rand.N(u.cfg.Poll*2/5))
		select {
		case <-ctx.Done():
		case <-u.pushed():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// pushed gets something when the Workload API has told of another SVID or bundle: of
// new roots, and of a new SVID in place of one that a tainted root signed.
func (u *Upstream) pushed() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.source == nil {
		return nil // closed
	}
	return u.source.Updated()
}

// parseBundle takes a bundle whole or not at all.
func parseBundle(b *types.Bundle, want spiffeid.TrustDomain) (out ca.UpstreamBundle, err error) {
	td, err := spiffeid.TrustDomainFromString(b.GetTrustDomain())
	if err != nil || td != want {
		return out, fmt.Errorf("its bundle is of trust domain %q, want %q", b.GetTrustDomain(), want.Name())
	}
	for n, a := range b.GetX509Authorities() {
		certs, err := x509.ParseCertificates(a.GetAsn1())
		if err != nil || len(certs) == 0 {
			return out, fmt.Errorf("bundle: X.509 authority %d: not a certificate", n)
		}
		for _, cert := range certs {
			out.X509 = append(out.X509, ca.Root{Cert: cert, Tainted: a.GetTainted()})
		}
	}
	if len(out.X509) == 0 {
		return out, errors.New("bundle: no X.509 authority in it")
	}
	for n, k := range b.GetJwtAuthorities() {
		if _, err := x509.ParsePKIXPublicKey(k.GetPublicKey()); err != nil || k.GetKeyId() == "" {
			return out, fmt.Errorf("bundle: JWT authority %d (%q): not a public key with an ID", n, k.GetKeyId())
		}
		key := ca.JWTAuthority{KeyID: k.GetKeyId(), PublicKey: k.GetPublicKey(), Tainted: k.GetTainted()}
		if at := k.GetExpiresAt(); at != 0 {
			key.ExpiresAt = time.Unix(at, 0).UTC()
		}
		out.JWT = append(out.JWT, key)
	}
	return out, nil
}
