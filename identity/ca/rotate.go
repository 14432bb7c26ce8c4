package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/keys"
)

const (
	kindX509 = "ca-x509"
	kindJWT  = "ca-jwt"
)

// journal is what survives a restart; the keys are in the key store under the
// authorities' IDs.
type journal struct {
	Version  int             `json:"version"`
	Sequence uint64          `json:"sequence"`
	X509     []journalRecord `json:"x509"`
	JWT      []journalRecord `json:"jwt"`
}

type journalRecord struct {
	ID        string        `json:"id"`
	Slot      string        `json:"slot"` // active, next or old
	NotBefore time.Time     `json:"not_before"`
	NotAfter  time.Time     `json:"not_after"`
	Life      time.Duration `json:"life_ns"`
	Cert      []byte        `json:"cert,omitempty"` // DER
	PublicKey []byte        `json:"public_key"`     // PKIX, DER
}

const (
	slotActive = "active"
	slotNext   = "next"
	slotOld    = "old"
)

// Rotate does whatever is due: prepare and publish successors, activate them,
// and drop what has expired. Nothing changes when it fails.
func (c *CA) Rotate(ctx context.Context) error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	now := c.Now()
	var acts []identity.Act
	var made, gone []*authority
	x, j := c.x509, c.jwt
	for _, s := range []struct {
		kind  string
		slots *slots
	}{{kindX509, &x}, {kindJWT, &j}} {
		turned, err := c.turn(s.kind, *s.slots, now)
		made = append(made, turned.made...)
		if err != nil {
			c.discard(made)
			return fmt.Errorf("rotate %s authority: %w", s.kind, err)
		}
		*s.slots = turned.slots
		gone = append(gone, turned.gone...)
		acts = append(acts, turned.acts...)
	}
	if len(acts) == 0 {
		return nil
	}
	seq := c.seq
	if len(made)+len(gone) > 0 {
		seq++
	}
	doc, err := encodeJournal(seq, &x, &j)
	if err == nil {
		for _, act := range acts {
			if err = c.cfg.Emit(ctx, act); err != nil {
				break
			}
		}
	}
	if err == nil {
		if err = c.cfg.Journal.SaveJournal(ctx, doc); err != nil {
			c.retract(ctx, acts, err)
		}
	}
	if err != nil {
		c.discard(made)
		return fmt.Errorf("rotate authorities: %w", err)
	}
	c.install(x, j, seq)
	c.discard(gone)
	for _, act := range acts {
		c.cfg.Log.InfoContext(ctx, "authority "+act.Verb, "kind", act.Object, "id", act.ObjectID)
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

// turned is what became of the slots of one kind.
type turned struct {
	slots      slots
	made, gone []*authority
	acts       []identity.Act
}

func (c *CA) turn(kind string, s slots, now time.Time) (t turned, err error) {
	act := func(verb string, a *authority) {
		t.acts = append(t.acts, identity.Act{
			Kind: identity.ActCredential, Verb: verb, Actor: identity.IssuerID(c.cfg.TrustDomain).String(),
			Object: objectOf(kind), ObjectID: a.id,
			Details: [][2]string{{"not_after", a.notAfter.UTC().Format(time.RFC3339)}},
		})
	}
	s.old = slices.Clone(s.old)
	prepare := func() error {
		if s.next, err = c.newAuthority(kind, now); err != nil {
			return err
		}
		t.made = append(t.made, s.next)
		act("prepared", s.next)
		return nil
	}
	// After a long stop the prepared one may have expired, too.
	if s.next != nil && s.next.expired(now) {
		s.old, s.next = append(s.old, s.next), nil
	}
	idle := s.active == nil || s.active.expired(now)
	if idle && s.next == nil {
		// One that nobody knows yet is better than none.
		if err := prepare(); err != nil {
			return t, err
		}
	}
	if idle || s.next != nil && !now.Before(s.next.takesOverAt(s.active)) {
		if s.active != nil {
			s.old = append(s.old, s.active)
		}
		s.active, s.next = s.next, nil
		act("activated", s.active)
	}
	if s.next == nil && !now.Before(s.active.prepareAt()) {
		if err := prepare(); err != nil {
			return t, err
		}
	}
	s.old = slices.DeleteFunc(s.old, func(a *authority) bool {
		if a.expired(now) {
			t.gone = append(t.gone, a)
			act("expired", a)
			return true
		}
		return false
	})
	t.slots = s
	return t, nil
}

func objectOf(kind string) string {
	if kind == kindX509 {
		return "x509-authority"
	}
	return "jwt-authority"
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
	for _, s := range []*slots{&c.x509, &c.jwt} {
		for _, a := range s.old {
			earlier(a.notAfter)
		}
		if s.active != nil {
			earlier(s.active.notAfter)
			if s.next == nil {
				earlier(s.active.prepareAt())
			} else {
				earlier(s.next.takesOverAt(s.active))
			}
		}
	}
	return due
}

// install makes the authorities current.
func (c *CA) install(x, j slots, seq uint64) {
	b := &Bundle{
		TrustDomain: c.cfg.TrustDomain,
		Sequence:    seq,
		RefreshHint: max(time.Second, min(5*time.Minute, c.cfg.Life/10)).Truncate(time.Second),
		x509:        x509bundle.New(c.cfg.TrustDomain),
		pool:        x509.NewCertPool(),
	}
	for _, a := range x.all() {
		b.X509Authorities = append(b.X509Authorities, a.cert)
		b.x509.AddX509Authority(a.cert)
		b.pool.AddCert(a.cert)
	}
	for _, a := range j.all() {
		b.JWTAuthorities = append(b.JWTAuthorities, JWTAuthority{KeyID: a.id, PublicKey: a.pkix, ExpiresAt: a.notAfter})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	published := c.bundle == nil || c.bundle.Sequence != seq
	c.x509, c.jwt, c.seq = x, j, seq
	if published {
		c.bundle = b
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

func encodeJournal(seq uint64, x, j *slots) ([]byte, error) {
	records := func(s *slots) []journalRecord {
		var list []journalRecord
		for _, a := range s.all() {
			r := journalRecord{ID: a.id, Slot: slotOld, NotBefore: a.notBefore, NotAfter: a.notAfter, Life: a.life, PublicKey: a.pkix}
			switch a {
			case s.active:
				r.Slot = slotActive
			case s.next:
				r.Slot = slotNext
			}
			if a.cert != nil {
				r.Cert = a.cert.Raw
			}
			list = append(list, r)
		}
		return list
	}
	return json.Marshal(journal{Version: 1, Sequence: seq, X509: records(x), JWT: records(j)})
}

func (c *CA) load(ctx context.Context) error {
	doc, err := c.cfg.Journal.LoadJournal(ctx)
	if err != nil || doc == nil {
		return err
	}
	var jn journal
	if err := json.Unmarshal(doc, &jn); err != nil {
		return fmt.Errorf("journal of authorities: %w", err)
	}
	if jn.Version != 1 {
		return fmt.Errorf("journal of authorities has version %d, this build knows 1: run a newer build", jn.Version)
	}
	x, err := c.restore(jn.X509, true)
	if err != nil {
		return err
	}
	j, err := c.restore(jn.JWT, false)
	if err != nil {
		return err
	}
	c.install(x, j, jn.Sequence)
	return nil
}

func (c *CA) restore(records []journalRecord, withCert bool) (s slots, err error) {
	for _, r := range records {
		a := &authority{id: r.ID, notBefore: r.NotBefore, notAfter: r.NotAfter, life: r.Life, pkix: r.PublicKey}
		if withCert {
			if a.cert, err = x509.ParseCertificate(r.Cert); err != nil {
				return s, fmt.Errorf("authority %s: %w", r.ID, err)
			}
		}
		slot := r.Slot
		a.signer, err = c.cfg.Keys.Load(r.ID)
		switch {
		case errors.Is(err, keys.ErrNotFound):
			// A key store that forgets: the authority still verifies what it
			// signed, and a new one signs from now on.
			c.cfg.Log.Warn("the key of an authority is gone, replacing the authority", "id", r.ID)
			slot = slotOld
		case err != nil:
			return s, fmt.Errorf("authority %s: %w", r.ID, err)
		case !samePublicKey(a, a.signer.Public()):
			return s, fmt.Errorf("authority %s: its key in the key store is another one", r.ID)
		default:
			if err := a.complete(); err != nil {
				return s, fmt.Errorf("authority %s: %w", r.ID, err)
			}
		}
		switch slot {
		case slotActive:
			s.active = a
		case slotNext:
			s.next = a
		case slotOld:
			s.old = append(s.old, a)
		default:
			return s, fmt.Errorf("authority %s: unknown slot %q", r.ID, r.Slot)
		}
	}
	return s, nil
}

// samePublicKey compares key with what the journal says, and the certificate
// with both.
func samePublicKey(a *authority, key crypto.PublicKey) bool {
	want, err := x509.ParsePKIXPublicKey(a.pkix)
	if err != nil {
		return false
	}
	public, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(want) && (a.cert == nil || public.Equal(a.cert.PublicKey))
}
