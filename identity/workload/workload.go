// Package workload serves the SPIFFE Workload API on a Unix socket
// (https://spiffe.io/docs/latest/spiffe-specs/spiffe_workload_api/).
//
// A caller proves nothing by itself: who it is comes from the kernel by way of
// internal/peercred and an attestor, and what it may have from a Source. WIT
// SVIDs are not supported; their methods answer Unimplemented, as the standard
// asks.
package workload

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/tracing"
)

// ErrStarting is returned by a Source that does not know yet. Callers are told
// to try again.
var ErrStarting = errors.New("identities are not known yet")

// ErrTooMany is returned by a Source to a user who asks for more than there is
// for one user. Others get theirs.
var ErrTooMany = errors.New("too many requests of this user")

// Source says what processes may have.
type Source interface {
	// Lookup returns what a process with these selectors may have now, and a
	// channel that is closed when that may have changed, by the passing of time
	// as well: SVIDs that have expired are not among them.
	Lookup(ctx context.Context, selectors []string) (Grant, <-chan struct{}, error)

	// Hold begins look-ups of a process of user uid that stays. With keys, X509-SVIDs
	// are made for it on demand, and kept until its Release.
	Hold(uid uint32, keys bool) Hold

	// JWTSVID returns a valid JWT-SVID of an identity that Lookup gave, to a
	// process of user uid.
	JWTSVID(ctx context.Context, uid uint32, id *Identity, audience []string) (string, error)
}

// Hold is one caller that stays.
type Hold interface {
	// Lookup is that of Source. ErrTooMany means that the user has more made than
	// there is for one user. What is made is a part of the trace of ctx.
	Lookup(ctx context.Context, selectors []string) (Grant, <-chan struct{}, error)
	// Release ends it. Look-ups that follow hold nothing.
	Release()
}

// Attest returns the selectors of a caller, each as type:value, at least of the
// kinds that are asked for. It fails where the process is not, or no longer, the
// one that connected.
type Attest func(ctx context.Context, p peercred.Peer) ([]string, error)

// Grant is what one process may have.
type Grant struct {
	// Identities, the default one first. None means that the process has no
	// identity here.
	Identities []*Identity
	// Bundle of our own trust domain.
	Bundle *Bundle
	// CRLs are the certificate revocation lists of our own trust domain (RFC 5280
	// section 5, DER), each of an authority of Bundle; none where the issuer signs
	// none, or nobody asked for them.
	CRLs [][]byte
	// Federated bundles: those of the trust domains that the identities
	// federate with.
	Federated []*Bundle
	// Asked grows when entries ask for a kind of selector that none asked for
	// before. Attest may then find more than it did.
	Asked int
	// Cause is what the last change at the Source was a part of; none where that is
	// not traced.
	Cause tracing.Cause
	// Pending tells that an X509-SVID is being made for the first time: it is
	// there, or has failed, when the channel that came with it closes.
	Pending bool
}

// signed tells whether there is an X509-SVID in it.
func (g *Grant) signed() bool {
	return slices.ContainsFunc(g.Identities, func(id *Identity) bool { return id.Chain != nil })
}

// Identity is one name of a process. It does not change once made.
type Identity struct {
	// EntryID is of the registration entry, or of the template.
	EntryID string
	ID      spiffeid.ID
	// Selectors that the identity was made of by a template; nil by an entry.
	Selectors []string
	// Hint is unique in a Grant, or empty.
	Hint string
	// Chain is the X509-SVID and its intermediates, DER, concatenated; Key its
	// private key, PKCS #8. Both are nil while there is no valid SVID, and by a
	// template where nobody holds it.
	Chain, Key []byte
}

// Bundle is what a trust domain is recognised by. It does not change once made.
type Bundle struct {
	trustDomain spiffeid.TrustDomain
	x509        []byte
	jwt         *jwtbundle.Bundle
	jwks        []byte
}

// NewBundle makes a Bundle of X.509 authorities and of JWT authorities by key
// id.
func NewBundle(td spiffeid.TrustDomain, authorities []*x509.Certificate, jwt map[string]crypto.PublicKey) (*Bundle, error) {
	b := &Bundle{trustDomain: td, jwt: jwtbundle.FromJWTAuthorities(td, jwt)}
	for _, cert := range authorities {
		b.x509 = append(b.x509, cert.Raw...)
	}
	// In a fixed order, so that equal bundles are equal bytes. The only keys
	// are those of JWT-SVIDs: the standard wants no others in a reply.
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, id := range slices.Sorted(maps.Keys(jwt)) {
		key := jose.JSONWebKey{Key: jwt[id], KeyID: id, Use: "jwt-svid"}
		if id == "" || !key.Valid() || !key.IsPublic() {
			return nil, fmt.Errorf("bundle of %s: JWT authority %q is not a public key with an id", td, id)
		}
		set.Keys = append(set.Keys, key)
	}
	var err error
	if b.jwks, err = json.Marshal(set); err != nil {
		return nil, fmt.Errorf("bundle of %s: %w", td, err)
	}
	return b, nil
}

// TrustDomain is whose bundle it is.
func (b *Bundle) TrustDomain() spiffeid.TrustDomain { return b.trustDomain }

// X509 are the X.509 authorities, DER, concatenated.
func (b *Bundle) X509() []byte { return b.x509 }

// Equal tells whether two bundles recognise the same.
func (b *Bundle) Equal(other *Bundle) bool {
	return b.trustDomain == other.trustDomain && bytes.Equal(b.x509, other.x509) && bytes.Equal(b.jwks, other.jwks)
}
