package registry

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// FederatedBundle is what another trust domain is recognised by. Without
// authorities it recognises nobody: that trust domain has revoked them all. One
// that an Index or a store returned is shared: copy before changing it.
type FederatedBundle struct {
	TrustDomain     spiffeid.TrustDomain
	X509Authorities []*x509.Certificate
	JWTAuthorities  []JWTAuthority
	// RefreshHint is how often to look for another; 0 is unknown.
	RefreshHint time.Duration // whole seconds
	// Sequence grows with every change, where whoever publishes it says so; 0 is
	// unknown.
	Sequence uint64
}

// JWTAuthority is a public key that verifies JWT-SVIDs.
type JWTAuthority struct {
	KeyID     string    // never empty: readers discard the whole bundle for one that is
	PublicKey []byte    // PKIX, DER
	ExpiresAt time.Time // zero is unknown
}

// Digest is the same for bundles that recognise the same, whatever their
// sequence and refresh hint.
func (b *FederatedBundle) Digest() [sha256.Size]byte {
	h := sha256.New()
	field := func(data []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(data))))
		h.Write(data)
	}
	field([]byte(b.TrustDomain.Name()))
	field(binary.BigEndian.AppendUint64(nil, uint64(len(b.X509Authorities))))
	for _, cert := range b.X509Authorities {
		field(cert.Raw)
	}
	for _, a := range b.JWTAuthorities {
		field([]byte(a.KeyID))
		field(a.PublicKey)
		field(fmt.Append(nil, unixOrZero(a.ExpiresAt)))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func unixOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// Equal tells whether two bundles are the same in every respect.
func (b *FederatedBundle) Equal(other *FederatedBundle) bool {
	return b.Sequence == other.Sequence && b.RefreshHint == other.RefreshHint && b.Digest() == other.Digest()
}

// Profiles of bundle endpoints (SPIFFE Federation, section 5.2).
const (
	// HTTPSWeb: the endpoint has a certificate of the web.
	HTTPSWeb = "https_web"
	// HTTPSSPIFFE: the endpoint has an X509-SVID.
	HTTPSSPIFFE = "https_spiffe"
)

// Relationship says where the bundle of another trust domain comes from. It is
// shared like an Entry.
type Relationship struct {
	TrustDomain spiffeid.TrustDomain
	EndpointURL string
	Profile     string
	// EndpointID is who serves it, with HTTPSSPIFFE.
	EndpointID spiffeid.ID
}

// BundleChange is a federated bundle before and after.
type BundleChange struct{ Old, New *FederatedBundle }

// RelationshipChange is a federation relationship before and after.
type RelationshipChange struct{ Old, New *Relationship }

// Empty tells that nothing was changed.
func (c *Change) Empty() bool {
	return len(c.Entries)+len(c.Agents)+len(c.Bundles)+len(c.Relationships)+len(c.Templates) == 0
}

// federation is the part of an Index that speaks of other trust domains.
type federation struct {
	bundles       map[spiffeid.TrustDomain]*FederatedBundle
	relationships map[spiffeid.TrustDomain]*Relationship
	// entries federate with the trust domain of that name.
	entries map[string]map[string]*Entry
	changed chan struct{} // closed when relationships change
}

func newFederation() federation {
	return federation{
		bundles: map[spiffeid.TrustDomain]*FederatedBundle{}, relationships: map[spiffeid.TrustDomain]*Relationship{},
		entries: map[string]map[string]*Entry{}, changed: make(chan struct{}),
	}
}

// LoadFederation replaces what is known of other trust domains. Whoever reloads
// an Index loads this first: the reload tells everyone.
func (x *Index) LoadFederation(bundles []*FederatedBundle, relationships []*Relationship) {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.federation.bundles)
	clear(x.federation.relationships)
	for _, b := range bundles {
		x.federation.bundles[b.TrustDomain] = b
	}
	for _, r := range relationships {
		x.federation.relationships[r.TrustDomain] = r
	}
	x.federation.tell()
}

func (f *federation) tell() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// applyFederation takes changes over, and finds the entries and templates that they
// touch.
func (x *Index) applyFederation(c *Change, touched *ancestry) {
	for _, b := range c.Bundles {
		var td spiffeid.TrustDomain
		if b.New != nil {
			td = b.New.TrustDomain
			x.federation.bundles[td] = b.New
		} else {
			td = b.Old.TrustDomain
			delete(x.federation.bundles, td)
		}
		for _, e := range x.federation.entries[td.Name()] {
			x.ascend(e, touched)
		}
		for _, t := range x.templates {
			if slices.Contains(t.FederatesWith, td.Name()) {
				x.ascendFrom(t.ParentID, touched)
			}
		}
	}
	for _, r := range c.Relationships {
		if r.New != nil {
			x.federation.relationships[r.New.TrustDomain] = r.New
		} else {
			delete(x.federation.relationships, r.Old.TrustDomain)
		}
	}
	if len(c.Relationships) > 0 {
		x.federation.tell()
	}
}

// FederatedBundle returns the bundle of another trust domain, or nil.
func (x *Index) FederatedBundle(td spiffeid.TrustDomain) *FederatedBundle {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.federation.bundles[td]
}

// FederatedBundles returns all of them, sorted by trust domain.
func (x *Index) FederatedBundles() []*FederatedBundle {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.SortedFunc(maps.Values(x.federation.bundles), func(a, b *FederatedBundle) int { return a.TrustDomain.Compare(b.TrustDomain) })
}

// Relationship returns the relationship with another trust domain, or nil.
func (x *Index) Relationship(td spiffeid.TrustDomain) *Relationship {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.federation.relationships[td]
}

// Relationships returns all of them, sorted by trust domain, and a channel that
// is closed when there are others.
func (x *Index) Relationships() ([]*Relationship, <-chan struct{}) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.SortedFunc(maps.Values(x.federation.relationships), func(a, b *Relationship) int { return a.TrustDomain.Compare(b.TrustDomain) }), x.federation.changed
}
