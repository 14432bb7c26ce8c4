package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	// ErrNoAuthority: there is no authority of that ID, or it is not one that
	// this can be done to at all. Look at the list, name another.
	ErrNoAuthority = errors.New("no such authority")
	// ErrWrongState: the authority is there and in a state in which this cannot
	// be done. Do first what the message says.
	ErrWrongState = errors.New("the authority's state does not permit it")
	// ErrBadAuthority: what should be published cannot be.
	ErrBadAuthority = errors.New("not an authority to publish")
)

// State of an authority of this CA.
type State string

// The states, in the order in which they are passed through.
const (
	Prepared State = "prepared" // published, does not sign yet
	Active   State = "active"   // signs
	Old      State = "old"      // signed what is still in use
	Tainted  State = "tainted"  // old, and what it signed is to be replaced now
)

// AuthorityState is a look at an authority of this CA.
type AuthorityState struct {
	// ID is the key ID of a JWT authority, the subject key identifier of an
	// X.509 one.
	ID        string
	State     State
	ExpiresAt time.Time
	// UpstreamKeyID is the subject key identifier of the upstream's authority
	// that signed this one.
	UpstreamKeyID string
}

// Authorities lists those of this CA: the active one, the prepared one, and the
// old ones, latest first, without those that have expired.
func (c *CA) Authorities(kind Kind) []AuthorityState {
	c.mu.RLock()
	s := c.x509
	if kind == JWT {
		s = c.jwt
	}
	c.mu.RUnlock()
	var list []AuthorityState
	if s.active != nil {
		list = append(list, s.active.state(Active))
	}
	if s.next != nil {
		list = append(list, s.next.state(Prepared))
	}
	for _, a := range slices.Backward(s.old) {
		if !a.ended || !a.expired(c.Now()) {
			list = append(list, a.state(Old))
		}
	}
	return list
}

func (a *authority) state(state State) AuthorityState {
	if a.tainted {
		state = Tainted
	}
	look := AuthorityState{ID: a.publicID(), State: state, ExpiresAt: a.notAfter}
	if len(a.chain) > 0 {
		look.UpstreamKeyID = KeyID(a.cert.AuthorityKeyId)
	}
	return look
}

// HasUpstream tells whether somebody else signs the X.509 authorities.
func (c *CA) HasUpstream() bool { return c.cfg.Upstream != nil }

// PrepareAuthority makes and publishes the next authority of a kind before its
// time. One that was prepared before, and has signed nothing, makes way.
func (c *CA) PrepareAuthority(ctx context.Context, kind Kind, actor string) (AuthorityState, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ch := c.begin(actor)
	s := ch.slots(kind)
	if s.next != nil {
		ch.drop("discarded", kind, s.next)
		s.next = nil
	}
	err := c.prepare(ctx, ch, kind, c.Now())
	if err == nil {
		err = c.commit(ctx, ch)
	}
	if err != nil {
		return AuthorityState{}, fmt.Errorf("prepare %s authority: %w", kind, err)
	}
	return s.next.state(Prepared), nil
}

// ActivateAuthority has the prepared authority sign from now on.
func (c *CA) ActivateAuthority(ctx context.Context, kind Kind, id, actor string) (AuthorityState, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ch := c.begin(actor)
	s := ch.slots(kind)
	err := func() error {
		switch {
		case s.next != nil && s.next.publicID() == id:
			if !s.next.able(c.Now()) {
				return fmt.Errorf("%w: %s has expired: prepare another", ErrWrongState, id)
			}
		case s.find(id) == nil:
			return fmt.Errorf("%w: %s is not one of the %s authorities here", ErrNoAuthority, id, kind)
		case s.active != nil && s.active.publicID() == id:
			return fmt.Errorf("%w: %s is active already", ErrWrongState, id)
		default:
			return fmt.Errorf("%w: %s was active before; only a prepared authority can be activated", ErrWrongState, id)
		}
		ch.activate(kind)
		return c.commit(ctx, ch)
	}()
	if err != nil {
		return AuthorityState{}, fmt.Errorf("activate %s authority: %w", kind, err)
	}
	return s.active.state(Active), nil
}

// TaintAuthority says of an old authority that what it signed is to be replaced
// at once. It stays in the bundle until it is revoked.
func (c *CA) TaintAuthority(ctx context.Context, kind Kind, id, actor string) (AuthorityState, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ch := c.begin(actor)
	s := ch.slots(kind)
	var tainted authority
	err := func() error {
		n, err := s.findOld(kind, id, "tainted")
		if err != nil {
			return err
		}
		if s.old[n].tainted {
			return fmt.Errorf("%w: %s is tainted already", ErrWrongState, id)
		}
		tainted = *s.old[n]
		tainted.tainted = true
		s.old[n] = &tainted
		ch.published = true
		ch.actOn("tainted", kind, &tainted)
		if err := c.commit(ctx, ch); err != nil {
			return err
		}
		if kind == JWT {
			c.tellUpstream(ctx, &tainted)
		}
		return nil
	}()
	if err != nil {
		return AuthorityState{}, fmt.Errorf("taint %s authority: %w", kind, err)
	}
	return tainted.state(Tainted), nil
}

// tellUpstream says there that a JWT authority of ours is tainted, as far as
// the upstream takes note.
func (c *CA) tellUpstream(ctx context.Context, a *authority) {
	if err := c.publishUpstream(ctx, a); err != nil {
		c.cfg.Log.WarnContext(ctx, "the upstream does not know that a JWT authority is tainted: revoke it there", "id", a.id, "error", err)
	}
}

// RevokeAuthority takes a tainted authority out of the bundle: what it signed is
// worth nothing from then on, wherever the new bundle arrives.
func (c *CA) RevokeAuthority(ctx context.Context, kind Kind, id, actor string) (AuthorityState, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ch := c.begin(actor)
	s := ch.slots(kind)
	var revoked *authority
	err := func() error {
		n, err := s.findOld(kind, id, "revoked")
		if err != nil {
			return err
		}
		if revoked = s.old[n]; !revoked.tainted {
			return fmt.Errorf("%w: %s is not tainted: taint it first, so that what it signed is replaced before it is worth nothing", ErrWrongState, id)
		}
		s.old = slices.Delete(s.old, n, n+1)
		ch.drop("revoked", kind, revoked)
		if len(revoked.chain) == 0 {
			ch.say(kind, id, true, revoked.notAfter)
		}
		return c.commit(ctx, ch)
	}()
	if err != nil {
		return AuthorityState{}, fmt.Errorf("revoke %s authority: %w", kind, err)
	}
	return revoked.state(Tainted), nil
}

// find returns the authority of that public ID, or nil.
func (s *slots) find(id string) *authority {
	for _, a := range s.all() {
		if a.publicID() == id {
			return a
		}
	}
	return nil
}

// findOld returns the place of an old authority. done is what would happen to
// it.
func (s *slots) findOld(kind Kind, id, done string) (int, error) {
	n := slices.IndexFunc(s.old, func(a *authority) bool { return a.publicID() == id })
	switch {
	case n >= 0:
		return n, nil
	case s.find(id) == nil:
		return 0, fmt.Errorf("%w: %s is not one of the %s authorities here", ErrNoAuthority, id, kind)
	case s.active.publicID() == id:
		return 0, fmt.Errorf("%w: %s is active; activate another first, only an old authority can be %s", ErrWrongState, id, done)
	}
	return 0, fmt.Errorf("%w: %s is prepared and has signed nothing: prepare another, and it is gone", ErrWrongState, id)
}

// TaintUpstream taints a root of the upstream, by its subject key identifier, in
// our bundle. Neither what signs here nor what is prepared may lead to it.
func (c *CA) TaintUpstream(ctx context.Context, id, actor string) error {
	err := c.changeUpstream(ctx, id, actor, func(root *Root) error {
		if root.Tainted {
			return fmt.Errorf("%w: %s is tainted already", ErrWrongState, id)
		}
		root.Tainted = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("taint upstream authority: %w", err)
	}
	return nil
}

// RevokeUpstream takes a tainted root of the upstream out of our bundle, also
// where the upstream goes on to publish it.
func (c *CA) RevokeUpstream(ctx context.Context, id, actor string) error {
	err := c.changeUpstream(ctx, id, actor, func(root *Root) error {
		if !root.Tainted {
			return fmt.Errorf("%w: %s is not tainted: taint it first", ErrWrongState, id)
		}
		root.revoked = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("revoke upstream authority: %w", err)
	}
	return nil
}

func (c *CA) changeUpstream(ctx context.Context, id, actor string, do func(*Root) error) error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	ch := c.begin(actor)
	old := ch.foreign.of(ownerUpstream)
	next := &Foreign{Owner: ownerUpstream, X509: slices.Clone(old.X509), JWT: old.JWT}
	tainted, revoked := c.verdictsNow().of(X509, id)
	found := false
	for n := range next.X509 {
		root := &next.X509[n]
		if KeyID(root.Cert.SubjectKeyId) != id || root.revoked || revoked {
			continue
		}
		root.Tainted = root.Tainted || tainted
		found = true
		if err := c.standsOn(ch, root.Cert); err != nil {
			return err
		}
		if err := do(root); err != nil {
			return err
		}
		verb := "tainted"
		if root.revoked {
			verb = "revoked"
		}
		// At the other replicas it holds by this, whatever they have of the upstream.
		ch.say(X509, id, root.revoked, root.Cert.NotAfter)
		ch.act(verb, objectX509, id, [2]string{"owner", ownerUpstream})
	}
	if !found {
		return fmt.Errorf("%w: the upstream has no X.509 authority %s", ErrNoAuthority, id)
	}
	ch.foreign, ch.published = ch.foreign.with(next), true
	return c.commit(ctx, ch)
}

// TaintForeignJWT taints a JWT authority that an issuer downstream, or an
// administrator, published, at whichever replica.
func (c *CA) TaintForeignJWT(ctx context.Context, id, actor string) error {
	if err := c.changeForeignJWT(ctx, id, actor, false); err != nil {
		return fmt.Errorf("taint JWT authority: %w", err)
	}
	return nil
}

// RevokeForeignJWT takes such a one, when it is tainted, out of the bundle.
func (c *CA) RevokeForeignJWT(ctx context.Context, id, actor string) error {
	if err := c.changeForeignJWT(ctx, id, actor, true); err != nil {
		return fmt.Errorf("revoke JWT authority: %w", err)
	}
	return nil
}
