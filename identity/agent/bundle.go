package agent

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/workload"
)

// bundle is a trust bundle in the two forms in which it is needed.
type bundle struct {
	x509   *x509bundle.Bundle
	served *workload.Bundle
	trust  *trust
	serial uint64
}

// parseBundle takes the bundle of the own trust domain whole or not at all.
func parseBundle(b *types.Bundle, want spiffeid.TrustDomain) (*bundle, error) {
	parsed, err := parseFederated(b, want)
	if err == nil && parsed.x509.Empty() {
		return nil, fmt.Errorf("trust bundle of %s: no X.509 authority", want)
	}
	return parsed, err
}

// parseFederated takes a bundle of another trust domain whole or not at all.
// That one may be without authorities: then it has revoked them all, and what
// was known of it must not stay.
func parseFederated(b *types.Bundle, want spiffeid.TrustDomain) (*bundle, error) {
	td, err := spiffeid.TrustDomainFromString(b.GetTrustDomain())
	if err != nil || td != want {
		return nil, fmt.Errorf("trust bundle of %s: the issuer sent one of %q", want, b.GetTrustDomain())
	}
	var certs []*x509.Certificate
	for i, a := range b.X509Authorities {
		parsed, err := x509.ParseCertificates(a.Asn1)
		if err != nil || len(parsed) == 0 {
			return nil, fmt.Errorf("trust bundle of %s: X.509 authority %d: not a certificate", td, i)
		}
		certs = append(certs, parsed...)
	}
	keys := map[string]crypto.PublicKey{}
	for _, k := range b.JwtAuthorities {
		if k.ExpiresAt != 0 && time.Now().Unix() >= k.ExpiresAt {
			continue
		}
		key, err := x509.ParsePKIXPublicKey(k.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("trust bundle of %s: JWT authority %q: %w", td, k.KeyId, err)
		}
		keys[k.KeyId] = key
	}
	served, err := workload.NewBundle(td, certs, keys)
	if err != nil {
		return nil, err
	}
	return &bundle{
		x509: x509bundle.FromX509Authorities(td, certs), served: served, serial: b.SequenceNumber,
		trust: newTrust(b, certs, slices.Collect(maps.Keys(keys))),
	}, nil
}

// fetchBundle gets the bundle of the own trust domain.
func (a *Agent) fetchBundle(ctx context.Context) (serial uint64, err error) {
	var reply *types.Bundle
	err = a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) (err error) {
		reply, err = bundlev1.NewBundleClient(cc).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("get trust bundle: %w", err)
	}
	return a.takeBundle(reply)
}

// takeBundle keeps a bundle of the own trust domain and puts it into force.
func (a *Agent) takeBundle(got *types.Bundle) (serial uint64, err error) {
	b, err := parseBundle(got, a.td)
	if err != nil {
		return 0, fmt.Errorf("get trust bundle: %w", err)
	}
	if old := a.self.bundle.Load(); old == nil || !old.Equal(b.x509) {
		if err := a.keep.saveBundle(b.x509); err != nil {
			return 0, fmt.Errorf("keep trust bundle: %w", err)
		}
		a.self.bundle.Store(b.x509)
		a.log.Info("trust bundle changed", "serial", b.serial, "x509_authorities", len(b.x509.X509Authorities()))
	}
	a.cache.setBundle(b.served)
	a.noteCRLs()
	a.follow(b)
	return b.serial, nil
}

// fetchFederated gets the bundles of the trust domains that entries federate
// with. One that cannot be had is left as it was; it must not hold up the rest.
func (a *Agent) fetchFederated(ctx context.Context) {
	got := map[spiffeid.TrustDomain]*workload.Bundle{}
	wanted := a.cache.federatesWith()
	for _, td := range wanted {
		err := a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) error {
			reply, err := bundlev1.NewBundleClient(cc).GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: td.Name()})
			switch status.Code(err) {
			case codes.OK:
			case codes.NotFound, codes.Unimplemented:
				got[td] = nil
				return nil
			default:
				return err
			}
			b, err := parseFederated(reply, td)
			if err != nil {
				a.log.Error("federated bundle refused", "error", err)
				return nil
			}
			got[td] = b.served
			return nil
		})
		if err != nil {
			a.log.Warn("federated bundle not fetched", "trust_domain", td.Name(), "error", err)
		}
	}
	a.cache.setFederated(wanted, got)
}
