package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Peers are the other replicas of this issuer, each with authorities and keys
// of its own. All of them publish the authorities of all, and their CRLs.
type Peers interface {
	// Peers is what there is now.
	Peers(ctx context.Context) (PeerState, error)
	// Publishes tells the others that this CA's bundle has what peers publish.
	Publishes(ctx context.Context, peers []Peer) error
	// SaveCRLs gives the others the CRLs of this CA: DER, one after another. It
	// changes no sequence.
	SaveCRLs(ctx context.Context, lists []byte) error
}

// PeerState is what is known of the replicas at one time.
type PeerState struct {
	Peers []Peer
	// Sequence grows with every change that anyone makes, this CA too.
	Sequence uint64
	// Removed: this replica is to sign no more.
	Removed bool
	// Changed is closed when there is something new.
	Changed <-chan struct{}
}

// Peer is another replica.
type Peer struct {
	Name string
	// Journal is what its CA saved last, nil if nothing.
	Journal []byte
	// CRLs are what its CA saved last with SaveCRLs.
	CRLs []byte
	// Sequence grows with every change of Journal or Tainted.
	Sequence uint64
	// Tainted: it was removed, or has been away for too long. What it signed is
	// to be replaced.
	Tainted bool
	// Removed: for good.
	Removed bool
	// Live: it was there a moment ago.
	Live bool
	// Knows: it publishes all that this CA has journaled.
	Knows bool
}

// introduction is how long everybody has, after all replicas publish an
// authority, to learn of it: agents of ours are told at once, stock agents ask
// every five seconds.
const introduction = 10 * time.Second

// peers is what the bundle has of them.
type peers struct {
	published foreign
	crls      []peerCRLs
	verdicts  verdicts
	// authorities are those that the replicas sign with, or did.
	authorities []PeerAuthority
	sequence    uint64
	removed     bool
	live        bool // there is somebody to wait for
	signed      bool // somebody may hold what a replica signed
	known       bool // those who are live publish what we journaled
	knownAt     time.Time
	changed     <-chan struct{}
}

// takePeers brings the bundle up to what the others publish, and tells them.
func (c *CA) takePeers(ctx context.Context) error {
	if c.cfg.Peers == nil {
		return nil
	}
	c.rotating.Lock()
	defer c.rotating.Unlock()
	return c.readPeers(ctx)
}

// readPeers is takePeers, with rotating held.
func (c *CA) readPeers(ctx context.Context) error {
	state, err := c.cfg.Peers.Peers(ctx)
	if err != nil {
		return fmt.Errorf("other replicas: %w", err)
	}
	next := peers{sequence: state.Sequence, removed: state.Removed, changed: state.Changed, known: true}
	now := c.Now()
	for _, p := range state.Peers {
		jn, err := decodeJournal(p.Journal)
		var sets []*Foreign
		var own []PeerAuthority
		var signed bool
		if err == nil && jn != nil {
			if sets, signed, err = p.sets(jn, now, c.foreignRetention()); err == nil {
				own, err = p.authorities(jn)
			}
		}
		if err != nil {
			// One that cannot be read must not keep the others from rotating.
			c.cfg.Log.ErrorContext(ctx, "cannot read the authorities of another replica", "replica", p.Name, "error", err)
			continue
		}
		if jn != nil {
			lists, err := p.crls(jn, c.peers.crls)
			if err != nil {
				c.cfg.Log.ErrorContext(ctx, "cannot read the CRLs of another replica", "replica", p.Name, "error", err)
			}
			next.crls = append(next.crls, lists)
		}
		if p.Tainted && len(c.foreign.of(ownerUpstream).X509) > 0 {
			// Of the upstream that we follow it knows no more, and what was taken away
			// there since must not come back.
			sets = slices.DeleteFunc(sets, func(set *Foreign) bool { return set.Owner == ownerUpstream })
		}
		next.published = append(next.published, sets...)
		next.authorities = append(next.authorities, own...)
		if jn != nil {
			next.verdicts = append(next.verdicts, decodeVerdicts(jn.Verdicts)...)
		}
		next.signed = next.signed || signed
		if p.Live {
			next.live, next.known = true, next.known && p.Knows
		}
	}
	if next.known {
		if next.knownAt = now; c.peers.known {
			next.knownAt = c.peers.knownAt
		}
	}
	changed := next.sequence != c.peers.sequence
	c.mu.Lock()
	if !slices.EqualFunc(c.peers.crls, next.crls, func(a, b peerCRLs) bool { return slices.EqualFunc(a.lists, b.lists, sameList) }) {
		c.listedNow()
	}
	c.peers = next
	c.turnedNow()
	c.mu.Unlock()
	if !changed {
		return nil
	}
	c.install(c.x509, c.jwt, c.foreign, c.verdicts, c.seq)
	if err := c.cfg.Peers.Publishes(ctx, state.Peers); err != nil {
		return fmt.Errorf("other replicas: %w", err)
	}
	return nil
}

// sets are the authorities that a replica publishes: its own, and those of
// others that it was told of. signed tells whether one of its own has ever been
// active. What has
// ended is left out when the replica itself leaves it out: all have the same bundle.
func (p *Peer) sets(jn *journal, now time.Time, foreign time.Duration) (all []*Foreign, signed bool, err error) {
	own := journalForeign{Owner: "replica " + p.Name}
	for _, r := range jn.X509 {
		signed = signed || r.Slot != slotNext
		if len(r.Chain) == 0 { // the others have their roots among the upstream's
			own.X509 = append(own.X509, journalRoot{Cert: r.Cert, Tainted: r.Tainted || p.Tainted})
		}
	}
	for _, r := range jn.JWT {
		own.JWT = append(own.JWT, journalJWT{KeyID: r.ID, PublicKey: r.PublicKey, NotAfter: r.NotAfter, Tainted: r.Tainted || p.Tainted})
	}
	if all, err = restoreForeign(append(jn.Foreign, own)); err != nil {
		return nil, false, err
	}
	for _, set := range all {
		x509Gone, jwtGone := now.Add(-foreign), now.Add(-foreign)
		if set.Owner == own.Owner {
			x509Gone, jwtGone = now.Add(-retention), now.Add(-jwtRetention)
		}
		kept := set.X509[:0]
		for _, root := range set.X509 {
			if !root.expired(x509Gone) {
				kept = append(kept, root)
			}
		}
		set.X509 = kept
		keys := set.JWT[:0]
		for _, key := range set.JWT {
			if !key.expired(jwtGone) {
				keys = append(keys, key)
			}
		}
		set.JWT = keys
	}
	return all, signed, nil
}

// introducedAt is when an authority may sign although it follows none: all live
// replicas publish it, and everybody had time to learn of it from them. Where
// there is nobody to learn from, that is now. ok is false while that is not
// known.
func (c *CA) introducedAt(a *authority) (at time.Time, ok bool) {
	if !c.peers.live {
		return a.notBefore, true
	}
	if !c.peers.known {
		return time.Time{}, false
	}
	if !c.peers.signed {
		return a.notBefore, true // all of them are new
	}
	from := a.notBefore.Add(Backdate)
	if c.peers.knownAt.After(from) {
		from = c.peers.knownAt
	}
	return from.Add(min(introduction, c.cfg.Life/12)), true
}

func (c *CA) introduced(a *authority, now time.Time) bool {
	at, ok := c.introducedAt(a)
	return ok && !now.Before(at)
}

// ErrRemoved says that this replica was removed and signs no more.
var ErrRemoved = errors.New("this replica was removed")

// WaitReady returns when the CA can sign. A new replica's authority is first
// published by the others, so that nobody meets a signature that cannot be
// verified. It rotates meanwhile; Run does so afterwards.
func (c *CA) WaitReady(ctx context.Context) error {
	for !c.Ready() {
		if c.peersNow().removed {
			return ErrRemoved
		}
		if err := c.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step waits for the next thing to be due, or for news of the others, and does
// what follows from it.
func (c *CA) step(ctx context.Context) error {
	timer := time.NewTimer(max(time.Millisecond, min(c.nextRotation().Sub(c.Now()), time.Minute)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	case <-c.peersNow().changed: // nil where there are none
		if err := c.takePeers(ctx); err != nil {
			return err
		}
	}
	return errors.Join(c.Rotate(ctx), c.refreshCRLs(ctx))
}

func (c *CA) peersNow() peers {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.peers
}

// signing is the authority of a kind that signs, nil if none does. Hold mu.
func (c *CA) signing(s *slots) *authority {
	if c.peers.removed {
		return nil
	}
	return s.active
}
