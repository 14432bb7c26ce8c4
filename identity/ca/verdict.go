package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity"
)

// verdict is what an administrator said of an authority that is in the bundle by
// somebody else's word, or may come back by it: an upstream's, a replica's that is
// gone, one of ours that an upstream goes on to publish. Each is in the journal of the
// replica that was asked, and holds at all of them.
type verdict struct {
	kind Kind
	id   string // public ID
	// revoked: it is in no bundle. Otherwise it is tainted.
	revoked bool
	// until is when nobody can bring it back any more; zero is never.
	until time.Time
}

// verdicts are replaced, never changed.
type verdicts []verdict

// of says what was said of an authority.
func (v verdicts) of(kind Kind, id string) (tainted, revoked bool) {
	for _, one := range v {
		if one.kind == kind && one.id == id {
			tainted, revoked = true, revoked || one.revoked
		}
	}
	return tainted, revoked
}

// with is v and one more.
func (v verdicts) with(one verdict) verdicts {
	out := slices.DeleteFunc(slices.Clone(v), func(o verdict) bool { return o.kind == one.kind && o.id == one.id })
	return append(out, one)
}

// say puts a verdict into the change.
func (ch *change) say(kind Kind, id string, revoked bool, ends time.Time) {
	v := verdict{kind: kind, id: id, revoked: revoked}
	if !ends.IsZero() {
		v.until = ends.Add(2 * retention)
	}
	ch.verdicts, ch.published = ch.verdicts.with(v), true
}

// pruneVerdicts forgets what concerns nobody any more. It is no act, and goes with the
// next one.
func (ch *change) pruneVerdicts(now time.Time) {
	ch.verdicts = slices.DeleteFunc(slices.Clone(ch.verdicts), func(v verdict) bool { return !v.until.IsZero() && !now.Before(v.until) })
}

// verdictsNow are those of all replicas. Hold mu, or rotating.
func (c *CA) verdictsNow() verdicts { return slices.Concat(c.verdicts, c.peers.verdicts) }

// PeerAuthority is an authority of another replica.
type PeerAuthority struct {
	Replica string
	Kind    Kind
	AuthorityState
	// Removed: the replica was removed; Live: it was there a moment ago.
	Removed, Live bool
	// root is nil of a JWT authority; chain is of one that an upstream signed.
	root  *x509.Certificate
	chain []*x509.Certificate
}

// PeerAuthorities lists those of the other replicas that have not expired and were
// not revoked.
func (c *CA) PeerAuthorities() []PeerAuthority {
	c.mu.RLock()
	defer c.mu.RUnlock()
	now, said := c.Now(), c.verdictsNow()
	return slices.DeleteFunc(slices.Clone(c.peers.authorities), func(a PeerAuthority) bool {
		_, revoked := said.of(a.Kind, a.ID)
		return revoked || !now.Before(a.ExpiresAt)
	})
}

// authorities are a peer's own.
func (p *Peer) authorities(jn *journal) (list []PeerAuthority, err error) {
	for kind, records := range map[Kind][]journalRecord{X509: jn.X509, JWT: jn.JWT} {
		for _, r := range records {
			a := PeerAuthority{Replica: p.Name, Kind: kind, Removed: p.Removed, Live: p.Live}
			a.AuthorityState = AuthorityState{ID: r.ID, State: Old, ExpiresAt: r.NotAfter}
			switch {
			case r.Tainted || p.Tainted:
				a.State = Tainted
			case r.Slot == slotActive:
				a.State = Active
			case r.Slot == slotNext:
				a.State = Prepared
			}
			if kind == X509 {
				if a.root, err = x509.ParseCertificate(r.Cert); err != nil {
					return nil, err
				}
				a.ID = KeyID(a.root.SubjectKeyId)
			}
			for _, der := range r.Chain {
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return nil, err
				}
				a.chain, a.UpstreamKeyID = append(a.chain, cert), KeyID(a.root.AuthorityKeyId)
			}
			list = append(list, a)
		}
	}
	return list, nil
}

// peerAuthority is the authority of another replica by that ID, nil if there is none.
// Hold rotating.
func (c *CA) peerAuthority(kind Kind, id string) *PeerAuthority {
	n := slices.IndexFunc(c.peers.authorities, func(a PeerAuthority) bool { return a.Kind == kind && a.ID == id })
	if n < 0 {
		return nil
	}
	return &c.peers.authorities[n]
}

// IsPeer tells whether an authority by that ID is another replica's.
func (c *CA) IsPeer(kind Kind, id string) bool {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	return c.peerAuthority(kind, id) != nil
}

// TaintPeer says why it taints no authority of another replica: that replica does it,
// or its removal.
func (c *CA) TaintPeer(_ context.Context, kind Kind, id, _ string) (AuthorityState, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	a := c.peerAuthority(kind, id)
	err := fmt.Errorf("%w: %s is not one of the %s authorities here", ErrNoAuthority, id, kind)
	switch {
	case a == nil:
	case len(a.chain) > 0:
		err = a.belowUpstream()
	case a.Removed:
		err = fmt.Errorf("%w: %s is tainted already, since its replica %s was removed", ErrWrongState, id, a.Replica)
	default:
		err = a.elsewhere("taint")
	}
	return AuthorityState{}, fmt.Errorf("taint %s authority: %w", kind, err)
}

// RevokePeer takes an authority of a replica that was removed out of the bundle of all
// replicas. That tainted it, so that what it signed could be replaced.
func (c *CA) RevokePeer(ctx context.Context, kind Kind, id, actor string) (AuthorityState, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	a := c.peerAuthority(kind, id)
	_, revoked := c.verdictsNow().of(kind, id)
	err := func() error {
		switch {
		case a == nil || revoked:
			return fmt.Errorf("%w: %s is not one of the %s authorities here", ErrNoAuthority, id, kind)
		case len(a.chain) > 0:
			return a.belowUpstream()
		case !a.Removed:
			return a.elsewhere("revoke")
		}
		ch := c.begin(actor)
		ch.say(kind, id, true, a.ExpiresAt)
		ch.act("revoked", kind.object(), id, [2]string{"owner", "replica " + a.Replica})
		return c.commit(ctx, ch)
	}()
	if err != nil {
		return AuthorityState{}, fmt.Errorf("revoke %s authority: %w", kind, err)
	}
	return AuthorityState{ID: id, State: Tainted, ExpiresAt: a.ExpiresAt}, nil
}

func (a *PeerAuthority) belowUpstream() error {
	return fmt.Errorf("%w: %s, of replica %s, is signed by the upstream and not in the bundle itself: have the upstream sign by another authority, and taint and revoke %s there, or here as the upstream's", ErrWrongState, a.ID, a.Replica, a.UpstreamKeyID)
}

// elsewhere says where something is done to an authority of a replica that was not
// removed.
func (a *PeerAuthority) elsewhere(verb string) error {
	state := "away"
	if a.Live {
		state = "live"
	}
	return fmt.Errorf("%w: %s is of replica %s, which is %s: %s it there; if that replica is gone for good, or in other hands, remove it first (policyctl replica remove %s), which taints all of its authorities", ErrWrongState, a.ID, a.Replica, state, verb, a.Replica)
}

// standsOn finds a replica that would go on to sign below a root: ours, whose
// authorities these are, or another that was not removed.
func (c *CA) standsOn(ch *change, root *x509.Certificate) error {
	pool := x509.NewCertPool()
	pool.AddCert(root)
	id := KeyID(root.SubjectKeyId)
	for _, a := range []*authority{ch.x509.active, ch.x509.next} {
		if a != nil && len(a.chain) > 0 && leadsTo(a.chain, pool) {
			return fmt.Errorf("%w: the authority %s here is signed by %s: have the upstream sign by another, prepare and activate", ErrWrongState, a.publicID(), id)
		}
	}
	for _, a := range c.peers.authorities {
		if len(a.chain) > 0 && (a.State == Active || a.State == Prepared) && leadsTo(a.chain, pool) {
			return fmt.Errorf("%w: the authority %s of replica %s is signed by %s: have the upstream sign by another, prepare and activate there; if that replica is gone for good, remove it", ErrWrongState, a.ID, a.Replica, id)
		}
	}
	return nil
}

// journalVerdict is a verdict on file.
type journalVerdict struct {
	Kind    Kind      `json:"kind"`
	ID      string    `json:"id"`
	Revoked bool      `json:"revoked,omitempty"`
	Until   time.Time `json:"until,omitzero"`
}

func encodeVerdicts(list verdicts) (out []journalVerdict) {
	for _, v := range list {
		out = append(out, journalVerdict{Kind: v.kind, ID: v.id, Revoked: v.revoked, Until: v.until})
	}
	return out
}

func decodeVerdicts(list []journalVerdict) (out verdicts) {
	for _, v := range list {
		out = append(out, verdict{kind: v.Kind, id: v.ID, revoked: v.Revoked, until: v.Until})
	}
	return out
}

// changeForeignJWT does what was said to a JWT authority that an issuer downstream, or
// an administrator, published here or at another replica.
func (c *CA) changeForeignJWT(ctx context.Context, id, actor string, revoke bool) error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ch := c.begin(actor)
	said := c.verdictsNow()
	tainted, revoked := said.of(JWT, id)
	for _, set := range slices.Concat(ch.foreign, c.peers.published) {
		n := slices.IndexFunc(set.JWT, func(a JWTAuthority) bool { return a.KeyID == id })
		if n < 0 || revoked {
			continue
		}
		tainted = tainted || set.JWT[n].Tainted
		switch {
		case set.Owner == ownerUpstream:
			return fmt.Errorf("%w: %s is the upstream's: that is done there", ErrWrongState, id)
		case tainted && !revoke:
			return fmt.Errorf("%w: %s is tainted already", ErrWrongState, id)
		case !tainted && revoke:
			return fmt.Errorf("%w: %s is not tainted: taint it first", ErrWrongState, id)
		}
		ch.say(JWT, id, revoke, set.JWT[n].ExpiresAt)
		verb := "tainted"
		if revoke {
			verb = "revoked"
		}
		ch.acts = append(ch.acts, identity.Act{
			Kind: identity.ActCredential, Verb: verb, Actor: ch.actor, Object: objectJWT, ObjectID: id, Details: [][2]string{{"owner", set.Owner}},
		})
		return c.commit(ctx, ch)
	}
	return fmt.Errorf("%w: %s is not one of the JWT authorities here", ErrNoAuthority, id)
}
