package issuer

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

func (i *Issuer) newRefresher() *federation.Refresher {
	client := &federation.Client{Bundles: latest{i}, Roots: i.cfg.FederationRoots, Now: i.now}
	return federation.NewRefresher(federation.Config{
		Fetch: client.Fetch, Bundles: client.Bundles, Index: i.index, Keep: i.keepFetched, Log: i.log,
		Record: func(ctx context.Context, act identity.Act) error {
			act.Actor = identity.IssuerID(i.cfg.TrustDomain).String()
			return i.record(ctx, act)
		},
	})
}

// Federation tells how the refreshing of each federated bundle goes.
func (i *Issuer) Federation() []federation.State { return i.refresher.States() }

// latest gives the X.509 authorities of any trust domain that is known, as they
// are now.
type latest struct{ *Issuer }

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (l latest) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td == l.cfg.TrustDomain {
		own, _ := l.ca.Bundle()
		return own.X509(), nil
	}
	b := l.index.FederatedBundle(td)
	if b == nil {
		return nil, fmt.Errorf("no bundle of trust domain %q", td.Name())
	}
	return x509bundle.FromX509Authorities(td, b.X509Authorities), nil
}

// keepFetched makes a bundle durable that was fetched for a relationship. It
// looks at what is kept within the transaction, so that nothing older comes
// after something newer.
func (i *Issuer) keepFetched(ctx context.Context, r *registry.Relationship, b *registry.FederatedBundle) error {
	if err := i.checkNotOurs(b); err != nil {
		return federation.Refuse(federation.ClaimsOurs, "the endpoint's bundle is refused: %v", err)
	}
	if kept := i.index.FederatedBundle(b.TrustDomain); kept != nil && kept.Equal(b) {
		return nil
	}
	return i.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		current, err := tx.Relationship(r.TrustDomain)
		switch {
		case errors.Is(err, registry.ErrNotFound), err == nil && *current != *r:
			return federation.Refuse(federation.Superseded, "the relationship with %s was changed meanwhile", r.TrustDomain.Name())
		case err != nil:
			return err
		}
		old, err := tx.FederatedBundle(b.TrustDomain)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
		// A bundle without a sequence number is as new as it was fetched
		// (SPIFFE Federation, section 4.2).
		if old != nil && b.Sequence != 0 && b.Sequence < old.Sequence {
			return federation.Refuse(federation.RanBackwards, "the endpoint's bundle has sequence number %d, and %d is kept: it runs backwards", b.Sequence, old.Sequence)
		}
		if old != nil && b.Sequence != 0 && b.Sequence == old.Sequence && b.Digest() != old.Digest() {
			i.log.WarnContext(ctx, "a bundle changed and its sequence number did not", "trust_domain", b.TrustDomain.Name(), "sequence", b.Sequence)
		}
		return i.writeBundle(tx, record, old, b, r.EndpointURL)
	})
}

// OwnBundle is our bundle in the form in which others get it. It is made anew
// when there is another.
func (i *Issuer) OwnBundle() *registry.FederatedBundle {
	b, _ := i.ca.Bundle()
	i.shown.Lock()
	defer i.shown.Unlock()
	if i.shown.of != b {
		own := &registry.FederatedBundle{TrustDomain: b.TrustDomain, X509Authorities: b.X509Authorities, RefreshHint: b.RefreshHint, Sequence: b.Sequence}
		for _, a := range b.JWTAuthorities {
			own.JWTAuthorities = append(own.JWTAuthorities, registry.JWTAuthority{KeyID: a.KeyID, PublicKey: a.PublicKey, ExpiresAt: a.ExpiresAt})
		}
		i.shown.of, i.shown.own = b, own
	}
	return i.shown.own
}

// EndpointSource is the identity of our own bundle endpoint, which is the
// issuer's, as in SPIRE. Close it.
func (i *Issuer) EndpointSource() (*Source, error) {
	return i.SelfSource(identity.IssuerID(i.cfg.TrustDomain))
}

type shownBundle struct {
	of  *ca.Bundle
	own *registry.FederatedBundle
}
