package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/identity"
)

// Foreign are authorities that are published in the bundle and are somebody
// else's: an upstream's, those of an issuer downstream of this one, another
// replica's. This CA never signs with them.
type Foreign struct {
	// Owner says whose they are. There is one Foreign for each.
	Owner string
	X509  []Root
	JWT   []JWTAuthority
}

// Root is an X.509 authority of a Foreign.
type Root struct {
	Cert    *x509.Certificate
	Tainted bool
	// revoked here, while the owner publishes it still: it is not in the bundle.
	revoked bool
}

const (
	ownerUpstream = "upstream"
	ownerAdmin    = "admin"
	// maxForeignJWT bounds what one owner publishes.
	maxForeignJWT = 128
)

// foreign is sorted by owner. Neither it nor what is in it changes.
type foreign []*Foreign

func (f foreign) of(owner string) *Foreign {
	for _, set := range f {
		if set.Owner == owner {
			return set
		}
	}
	return &Foreign{Owner: owner}
}

// with is f with an owner's set replaced; an empty one is left out.
func (f foreign) with(set *Foreign) foreign {
	out := slices.DeleteFunc(slices.Clone(f), func(s *Foreign) bool { return s.Owner == set.Owner })
	if len(set.X509)+len(set.JWT) > 0 {
		out = append(out, set)
	}
	slices.SortFunc(out, func(a, b *Foreign) int { return strings.Compare(a.Owner, b.Owner) })
	return out
}

// expired tells when somebody else's authority is of no use any more.
func (r Root) expired(now time.Time) bool { return !now.Before(r.Cert.NotAfter) }

func (a JWTAuthority) expired(now time.Time) bool {
	return !a.ExpiresAt.IsZero() && !now.Before(a.ExpiresAt)
}

// SetForeign makes set the whole of what its owner publishes; an empty one is
// nothing any more. A root that was tainted or revoked here stays so.
func (c *CA) SetForeign(ctx context.Context, set Foreign, actor string) error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ch := c.begin(actor)
	ch.setForeign(set, c.gone())
	if err := c.commit(ctx, ch); err != nil {
		return fmt.Errorf("publish authorities of %s: %w", set.Owner, err)
	}
	return nil
}

// gone is when an authority must have ended to be left out: see retention.
func (c *CA) gone() time.Time { return c.Now().Add(-c.foreignRetention()) }

// setForeign puts an owner's set into the change, as far as it is new, without
// what ended before gone.
func (ch *change) setForeign(set Foreign, gone time.Time) {
	old := ch.foreign.of(set.Owner)
	next := &Foreign{Owner: set.Owner}
	changed := false
	act := func(verb, object, id string) {
		ch.act(verb, object, id, [2]string{"owner", set.Owner})
		changed = true
	}
	for _, root := range set.X509 {
		if root.expired(gone) || slices.ContainsFunc(next.X509, root.same) {
			continue
		}
		if n := slices.IndexFunc(old.X509, root.same); n >= 0 {
			was := old.X509[n]
			root.revoked = was.revoked
			if root.Tainted && !was.Tainted {
				act("tainted", objectX509, KeyID(root.Cert.SubjectKeyId))
			}
			root.Tainted = root.Tainted || was.Tainted
		} else {
			act("published", objectX509, KeyID(root.Cert.SubjectKeyId))
		}
		next.X509 = append(next.X509, root)
	}
	for _, a := range set.JWT {
		if a.expired(gone) || slices.ContainsFunc(next.JWT, func(o JWTAuthority) bool { return o.KeyID == a.KeyID }) {
			continue
		}
		n := slices.IndexFunc(old.JWT, func(o JWTAuthority) bool { return o.KeyID == a.KeyID })
		switch {
		case n < 0:
			act("published", objectJWT, a.KeyID)
		case a.Tainted && !old.JWT[n].Tainted:
			act("tainted", objectJWT, a.KeyID)
		case !bytes.Equal(a.PublicKey, old.JWT[n].PublicKey), !a.ExpiresAt.Equal(old.JWT[n].ExpiresAt):
			act("published", objectJWT, a.KeyID)
		}
		if n >= 0 {
			a.Tainted = a.Tainted || old.JWT[n].Tainted
		}
		next.JWT = append(next.JWT, a)
	}
	for _, root := range old.X509 {
		if !slices.ContainsFunc(next.X509, root.same) {
			act(goneVerb(root.expired(gone)), objectX509, KeyID(root.Cert.SubjectKeyId))
		}
	}
	for _, a := range old.JWT {
		if !slices.ContainsFunc(next.JWT, func(o JWTAuthority) bool { return o.KeyID == a.KeyID }) {
			act(goneVerb(a.expired(gone)), objectJWT, a.KeyID)
		}
	}
	if changed {
		ch.foreign, ch.published = ch.foreign.with(next), true
	}
}

func (r Root) same(other Root) bool { return r.Cert.Equal(other.Cert) }

func goneVerb(expired bool) string {
	if expired {
		return "expired"
	}
	return "withdrawn"
}

// pruneForeign drops what has expired, and the upstream's where there is none
// any more and nothing of ours depends on it.
func (ch *change) pruneForeign(now time.Time, retention time.Duration, upstream bool) {
	gone := now.Add(-retention)
	for _, set := range ch.foreign {
		if set.Owner == ownerUpstream && !upstream && !slices.ContainsFunc(ch.x509.all(), func(a *authority) bool { return len(a.chain) > 0 }) {
			ch.setForeign(Foreign{Owner: ownerUpstream}, gone)
			continue
		}
		ch.setForeign(*set, gone)
	}
}

// PublishJWT puts the JWT authority of an issuer downstream into the bundle,
// and into the upstream's. It returns all JWT authorities there are. The same
// key again changes its expiry, or taints it.
func (c *CA) PublishJWT(ctx context.Context, owner string, key JWTAuthority, actor string) ([]JWTAuthority, error) {
	if err := c.append(ctx, owner, nil, []JWTAuthority{key}, actor); err != nil {
		return nil, fmt.Errorf("publish JWT authority %q: %w", key.KeyID, err)
	}
	b, _ := c.Bundle()
	return b.JWTAuthorities, nil
}

// Append puts authorities into the bundle that an administrator vouches for.
func (c *CA) Append(ctx context.Context, roots []Root, keys []JWTAuthority, actor string) error {
	if err := c.append(ctx, ownerAdmin, roots, keys, actor); err != nil {
		return fmt.Errorf("append authorities: %w", err)
	}
	return nil
}

func (c *CA) append(ctx context.Context, owner string, roots []Root, keys []JWTAuthority, actor string) error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	now, said := c.Now(), c.verdictsNow()
	ch := c.begin(actor)
	old := ch.foreign.of(owner)
	set := Foreign{Owner: owner, X509: slices.Clone(old.X509), JWT: slices.Clone(old.JWT)}
	present, _ := c.Bundle()
	for _, root := range roots {
		if _, revoked := said.of(X509, KeyID(root.Cert.SubjectKeyId)); revoked {
			return fmt.Errorf("%w: X.509 authority %s was revoked here", ErrBadAuthority, KeyID(root.Cert.SubjectKeyId))
		}
		if root.expired(now) {
			return fmt.Errorf("%w: X.509 authority %s has expired", ErrBadAuthority, KeyID(root.Cert.SubjectKeyId))
		}
		if n := slices.IndexFunc(set.X509, root.same); n >= 0 {
			set.X509[n].Tainted = set.X509[n].Tainted || root.Tainted
		} else if !slices.ContainsFunc(present.X509Authorities, root.Cert.Equal) {
			set.X509 = append(set.X509, root)
		}
	}
	for _, key := range keys {
		if err := checkForeignJWT(key, now); err != nil {
			return err
		}
		if _, revoked := said.of(JWT, key.KeyID); revoked {
			return fmt.Errorf("%w: JWT authority %s was revoked here", ErrBadAuthority, key.KeyID)
		}
		n := slices.IndexFunc(set.JWT, func(o JWTAuthority) bool { return o.KeyID == key.KeyID })
		known := slices.IndexFunc(present.JWTAuthorities, func(o JWTAuthority) bool { return o.KeyID == key.KeyID })
		switch {
		case known >= 0 && !bytes.Equal(present.JWTAuthorities[known].PublicKey, key.PublicKey):
			return fmt.Errorf("%w: key ID %q is another key's", ErrBadAuthority, key.KeyID)
		case n >= 0:
			set.JWT[n] = key
		case known < 0:
			set.JWT = append(set.JWT, key)
		}
		if c.cfg.Upstream != nil {
			if err := c.publishKeyUpstream(ctx, key); err != nil {
				return err
			}
		}
	}
	ch.setForeign(set, c.gone())
	if len(ch.foreign.of(owner).JWT) > maxForeignJWT {
		return fmt.Errorf("%w: more than %d JWT authorities of %s", ErrBadAuthority, maxForeignJWT, owner)
	}
	return c.commit(ctx, ch)
}

func checkForeignJWT(key JWTAuthority, now time.Time) error {
	if key.KeyID == "" || len(key.KeyID) > 256 {
		return fmt.Errorf("%w: a JWT authority needs a key ID of at most 256 bytes: verifiers find it by that", ErrBadAuthority)
	}
	if key.expired(now) {
		return fmt.Errorf("%w: JWT authority %q has expired", ErrBadAuthority, key.KeyID)
	}
	public, err := x509.ParsePKIXPublicKey(key.PublicKey)
	if err != nil {
		return fmt.Errorf("%w: JWT authority %q: not a public key (PKIX, DER)", ErrBadAuthority, key.KeyID)
	}
	if err := checkSigningKey(public); err != nil {
		return fmt.Errorf("%w: JWT authority %q: %w", ErrBadAuthority, key.KeyID, err)
	}
	return nil
}

func (ch *change) act(verb, object, id string, details ...[2]string) {
	ch.acts = append(ch.acts, identity.Act{
		Kind: identity.ActCredential, Verb: verb, Actor: ch.actor, Object: object, ObjectID: id, Details: details,
	})
}
