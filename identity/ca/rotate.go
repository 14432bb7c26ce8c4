package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity"
)

// Kind of an authority.
type Kind string

// The kinds, as they are spoken of.
const (
	X509 Kind = "X.509"
	JWT  Kind = "JWT"
)

// keyPrefix begins the names of the kind's keys in the store.
func (k Kind) keyPrefix() string {
	if k == X509 {
		return "ca-x509"
	}
	return "ca-jwt"
}

const (
	objectX509 = "x509-authority"
	objectJWT  = "jwt-authority"
)

func (k Kind) object() string {
	if k == X509 {
		return objectX509
	}
	return objectJWT
}

// change is what the authorities are to be, with what goes on record before
// and what is to be cleaned up after.
type change struct {
	actor      string
	x509, jwt  slots
	foreign    foreign
	verdicts   verdicts
	said       verdicts // of all replicas
	made, gone []*authority
	acts       []identity.Act
	// published: the bundle becomes another.
	published bool
}

// begin is a change that changes nothing yet. Hold rotating.
func (c *CA) begin(actor string) *change {
	if actor == "" {
		actor = identity.IssuerID(c.cfg.TrustDomain).String()
	}
	ch := &change{actor: actor, x509: c.x509, jwt: c.jwt, foreign: c.foreign, verdicts: c.verdicts, said: c.verdictsNow()}
	// What was said elsewhere is kept here too: who takes a row away takes no verdict.
	for _, v := range c.peers.verdicts {
		if tainted, revoked := ch.verdicts.of(v.kind, v.id); !tainted || v.revoked && !revoked {
			ch.verdicts = ch.verdicts.with(v)
		}
	}
	ch.x509.old, ch.jwt.old = slices.Clone(c.x509.old), slices.Clone(c.jwt.old)
	return ch
}

func (ch *change) slots(kind Kind) *slots {
	if kind == X509 {
		return &ch.x509
	}
	return &ch.jwt
}

func (ch *change) actOn(verb string, kind Kind, a *authority) {
	details := [][2]string{{"not_after", a.notAfter.UTC().Format(time.RFC3339)}}
	if a.cert != nil {
		details = append(details, [2]string{"key_id", a.publicID()})
	}
	ch.act(verb, kind.object(), a.id, details...)
}

// commit puts the change on record, then into the journal, and then into force.
// Nothing changes when it fails.
func (c *CA) commit(ctx context.Context, ch *change) error {
	if len(ch.acts) == 0 {
		return nil
	}
	seq := c.seq
	if ch.published {
		seq++
	}
	ch.pruneVerdicts(c.Now())
	doc, err := encodeJournal(seq, &ch.x509, &ch.jwt, ch.foreign, ch.verdicts)
	if err == nil {
		err = c.record(ctx, ch.acts)
	}
	if err == nil {
		// First the lists: an authority without one has all refused that it signs.
		if err = c.saveCRLs(ctx, &ch.x509); err == nil {
			err = c.cfg.Journal.SaveJournal(ctx, doc)
		}
		if err != nil {
			c.retract(ctx, ch.acts, err)
		}
	}
	if err != nil {
		c.discard(ch.made)
		return err
	}
	c.install(ch.x509, ch.jwt, ch.foreign, ch.verdicts, seq)
	c.discard(ch.gone)
	if c.cfg.Peers != nil {
		// What was journaled has changed the sequence.
		if err := c.readPeers(ctx); err != nil {
			c.cfg.Log.ErrorContext(ctx, "cannot read the other replicas", "error", err)
		}
	}
	for _, act := range ch.acts {
		c.cfg.Log.InfoContext(ctx, "authority "+act.Verb, "kind", act.Object, "id", act.ObjectID)
	}
	return nil
}

func (c *CA) record(ctx context.Context, acts []identity.Act) error {
	for _, act := range acts {
		if err := c.cfg.Emit(ctx, act); err != nil {
			return fmt.Errorf("put it on record: %w", err)
		}
	}
	return nil
}

// retract puts on record that what was recorded did not happen.
func (c *CA) retract(ctx context.Context, acts []identity.Act, because error) {
	for _, act := range acts {
		act.Failed, act.Reason = true, "journal not saved: "+because.Error()
		if err := c.cfg.Emit(ctx, act); err != nil {
			c.cfg.Log.ErrorContext(ctx, "cannot record a failed rotation", "error", err)
			return
		}
	}
}

// Rotate does whatever is due: prepare and publish successors, activate them,
// end what has expired, and drop it after a while. What cannot be prepared now does not hold up the
// rest.
func (c *CA) Rotate(ctx context.Context) error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	now := c.Now()
	ch := c.begin("")
	var errs []error
	for _, kind := range []Kind{X509, JWT} {
		if err := c.turn(ctx, ch, kind, now); err != nil {
			errs = append(errs, fmt.Errorf("rotate %s authority: %w", kind, err))
		}
	}
	ch.pruneForeign(now, c.foreignRetention(), c.cfg.Upstream != nil)
	if err := c.commit(ctx, ch); err != nil {
		errs = append(errs, fmt.Errorf("rotate authorities: %w", err))
	}
	return errors.Join(errs...)
}

// turn puts into the change what is due for one kind. After an error the change
// is good without what failed.
func (c *CA) turn(ctx context.Context, ch *change, kind Kind, now time.Time) error {
	s := ch.slots(kind)
	ch.end(kind, now)
	// After a long stop the prepared one may have expired, too.
	if s.next != nil && s.next.ended {
		s.old, s.next = append(s.old, s.next), nil
	}
	// One that is not the configured upstream's, or that was made while the clock
	// was ahead, and signed nothing yet.
	if s.next != nil && (c.misplaced(s.next) || now.Before(s.next.notBefore)) {
		ch.drop("discarded", kind, s.next)
		s.next = nil
	}
	// One that begins in the future was made while the clock was ahead. It may
	// not be good before then, and its time comes too late for those who wait.
	idle := !s.active.able(now)
	if idle && s.next == nil {
		// One that nobody knows yet is better than none.
		if err := c.prepare(ctx, ch, kind, now); err != nil {
			return err
		}
	}
	if idle && c.introduced(s.next, now) || !idle && s.next != nil && !now.Before(c.takesOverAt(s)) {
		ch.activate(kind)
		idle = false
	}
	var failed error
	if s.next == nil && !now.Before(c.prepareAt(s.active)) {
		failed = c.prepare(ctx, ch, kind, now)
	}
	ch.withdraw(kind, now)
	return failed
}

// withdraw drops from the bundle what ended long ago, or before many others.
func (ch *change) withdraw(kind Kind, now time.Time) {
	s := ch.slots(kind)
	var ended []*authority
	for _, a := range s.old {
		if a.ended {
			ended = append(ended, a)
		}
	}
	slices.SortFunc(ended, func(a, b *authority) int { return b.notAfter.Compare(a.notAfter) })
	for n, a := range ended {
		if n >= maxEnded || a.expired(now.Add(-kind.retention())) {
			ch.drop("withdrawn", kind, a)
			s.old = slices.DeleteFunc(s.old, func(o *authority) bool { return o == a })
		}
	}
}

// end takes the keys of the authorities whose time is over. What they signed is
// verified as before: whether it is over as well is for the clocks of those who
// ask.
func (ch *change) end(kind Kind, now time.Time) {
	s := ch.slots(kind)
	ended := func(a *authority) *authority {
		if a == nil || a.ended || !a.expired(now) {
			return a
		}
		over := *a
		over.ended, over.signer, over.leaf, over.jws, over.es256 = true, nil, nil, nil, nil
		ch.gone = append(ch.gone, a)
		ch.actOn("expired", kind, a)
		return &over
	}
	s.active, s.next = ended(s.active), ended(s.next)
	for n := range s.old {
		s.old[n] = ended(s.old[n])
	}
}

// prepare makes the next authority of a kind.
func (c *CA) prepare(ctx context.Context, ch *change, kind Kind, now time.Time) error {
	a, roots, err := c.newAuthority(ctx, kind, now)
	if err != nil {
		return err
	}
	ch.slots(kind).next = a
	ch.made = append(ch.made, a)
	ch.actOn("prepared", kind, a)
	if len(a.chain) == 0 {
		ch.published = true
	} else if len(roots) > 0 {
		ch.addRoots(roots, c.gone())
	}
	return nil
}

// activate makes the prepared authority the one that signs.
func (ch *change) activate(kind Kind) {
	s := ch.slots(kind)
	if s.active != nil {
		s.old = append(s.old, s.active)
	}
	s.active, s.next = s.next, nil
	ch.actOn("activated", kind, s.active)
}

// drop has an authority leave the bundle, and its key the store.
func (ch *change) drop(verb string, kind Kind, a *authority) {
	ch.gone = append(ch.gone, a)
	ch.actOn(verb, kind, a)
	ch.published = ch.published || len(a.chain) == 0
}

// misplaced tells whether an authority is not signed by who should sign it now:
// the upstream, or itself.
func (c *CA) misplaced(a *authority) bool {
	return a.cert != nil && (len(a.chain) > 0) != (c.cfg.Upstream != nil)
}

// prepareAt is when the successor of active is made.
func (c *CA) prepareAt(active *authority) time.Time {
	if c.misplaced(active) {
		return time.Time{}
	}
	// An upstream may have given less than it was asked for.
	return active.notAfter.Add(-min(active.life, active.notAfter.Sub(active.notBefore)) / 2)
}

// takesOverAt is when next replaces active: with a sixth of active's life left,
// but not before everybody has had time to learn of it. That is a twelfth of its
// life, or half of what active has left, whichever is less.
func (c *CA) takesOverAt(s *slots) time.Time {
	published := s.next.notBefore.Add(Backdate)
	known := published.Add(min(s.next.life/12, s.active.notAfter.Sub(published)/2))
	due := s.active.notAfter.Add(-min(s.active.life, s.active.notAfter.Sub(s.active.notBefore)) / 6)
	if due.After(known) && !c.misplaced(s.active) {
		return due
	}
	return known
}

// discard deletes keys that sign nothing any more. One that cannot be deleted
// does no harm: it is in no bundle.
func (c *CA) discard(list []*authority) {
	for _, a := range list {
		if err := c.cfg.Keys.Delete(a.id); err != nil {
			c.cfg.Log.Warn("cannot delete the key of an authority", "id", a.id, "error", err)
		}
	}
}

func (c *CA) nextRotation() time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var due time.Time
	earlier := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	for kind, s := range map[Kind]*slots{X509: &c.x509, JWT: &c.jwt} {
		for _, a := range s.old {
			if a.ended {
				earlier(a.notAfter.Add(kind.retention()))
			} else {
				earlier(a.notAfter)
			}
		}
		if now := c.Now(); s.next != nil && !s.active.able(now) {
			// It waits to be introduced.
			if at, ok := c.introducedAt(s.next); ok {
				earlier(at)
			} else {
				earlier(now.Add(time.Second)) // a replica may go away meanwhile
			}
		} else if s.active != nil {
			earlier(s.active.notAfter)
			if s.next == nil {
				earlier(c.prepareAt(s.active))
			} else {
				earlier(c.takesOverAt(s))
			}
		}
	}
	kept := c.foreignRetention()
	for _, set := range c.foreign {
		for _, root := range set.X509 {
			earlier(root.Cert.NotAfter.Add(kept))
		}
		for _, a := range set.JWT {
			if !a.ExpiresAt.IsZero() {
				earlier(a.ExpiresAt.Add(kept))
			}
		}
	}
	return due
}

// install makes the authorities current.
func (c *CA) install(x, j slots, others foreign, said verdicts, seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.Peers != nil {
		seq = c.peers.sequence
	}
	c.verdicts = said
	b := c.newBundle(&x, &j, append(slices.Clone(others), c.peers.published...), seq)
	published := c.bundle == nil || c.bundle.Sequence != seq
	c.x509, c.jwt, c.foreign = x, j, others
	c.turnedNow()
	if c.cfg.Peers == nil {
		c.seq = seq
	}
	if published {
		c.bundle = b
		close(c.changed)
		c.changed = make(chan struct{})
	}
}
