package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/identity/keys"
)

// journalVersion is written. Version 1 knew nothing of taint, upstreams and
// other people's authorities; it is read as having none.
const journalVersion = 2

// journal is what survives a restart; the keys are in the key store under the
// authorities' IDs.
type journal struct {
	Version  int              `json:"version"`
	Sequence uint64           `json:"sequence"`
	X509     []journalRecord  `json:"x509"`
	JWT      []journalRecord  `json:"jwt"`
	Foreign  []journalForeign `json:"foreign,omitempty"`
	Verdicts []journalVerdict `json:"verdicts,omitempty"`
}

type journalRecord struct {
	ID        string        `json:"id"`
	Slot      string        `json:"slot"` // active, next or old
	NotBefore time.Time     `json:"not_before"`
	NotAfter  time.Time     `json:"not_after"`
	Life      time.Duration `json:"life_ns"`
	Cert      []byte        `json:"cert,omitempty"` // DER
	// Chain is Cert and what is between it and its root, DER, where an upstream
	// signed it.
	Chain     [][]byte `json:"chain,omitempty"`
	PublicKey []byte   `json:"public_key"` // PKIX, DER
	Tainted   bool     `json:"tainted,omitempty"`
	// Ended: it has expired, and its key is gone. Builds that do not know of this
	// go by not_after.
	Ended bool `json:"ended,omitempty"`
}

type journalForeign struct {
	Owner string        `json:"owner"`
	X509  []journalRoot `json:"x509,omitempty"`
	JWT   []journalJWT  `json:"jwt,omitempty"`
}

type journalRoot struct {
	Cert    []byte `json:"cert"` // DER
	Tainted bool   `json:"tainted,omitempty"`
	Revoked bool   `json:"revoked,omitempty"`
}

type journalJWT struct {
	KeyID     string    `json:"key_id"`
	PublicKey []byte    `json:"public_key"` // PKIX, DER
	NotAfter  time.Time `json:"not_after,omitzero"`
	Tainted   bool      `json:"tainted,omitempty"`
}

const (
	slotActive = "active"
	slotNext   = "next"
	slotOld    = "old"
)

func encodeJournal(seq uint64, x, j *slots, others foreign, said verdicts) ([]byte, error) {
	records := func(s *slots) []journalRecord {
		var list []journalRecord
		for _, a := range s.all() {
			r := journalRecord{ID: a.id, Slot: slotOld, NotBefore: a.notBefore, NotAfter: a.notAfter, Life: a.life, PublicKey: a.pkix, Tainted: a.tainted, Ended: a.ended}
			switch a {
			case s.active:
				r.Slot = slotActive
			case s.next:
				r.Slot = slotNext
			}
			if a.cert != nil {
				r.Cert = a.cert.Raw
			}
			for _, cert := range a.chain {
				r.Chain = append(r.Chain, cert.Raw)
			}
			list = append(list, r)
		}
		return list
	}
	doc := journal{Version: journalVersion, Sequence: seq, X509: records(x), JWT: records(j), Verdicts: encodeVerdicts(said)}
	for _, set := range others {
		f := journalForeign{Owner: set.Owner}
		for _, root := range set.X509 {
			f.X509 = append(f.X509, journalRoot{Cert: root.Cert.Raw, Tainted: root.Tainted, Revoked: root.revoked})
		}
		for _, a := range set.JWT {
			f.JWT = append(f.JWT, journalJWT{KeyID: a.KeyID, PublicKey: a.PublicKey, NotAfter: a.ExpiresAt, Tainted: a.Tainted})
		}
		doc.Foreign = append(doc.Foreign, f)
	}
	return json.Marshal(doc)
}

// decodeJournal reads a journal; nil is of one that there is none of yet.
func decodeJournal(doc []byte) (*journal, error) {
	if len(doc) == 0 {
		return nil, nil
	}
	var jn journal
	if err := json.Unmarshal(doc, &jn); err != nil {
		return nil, fmt.Errorf("journal of authorities: %w", err)
	}
	if jn.Version < 1 || jn.Version > journalVersion {
		return nil, fmt.Errorf("journal of authorities has version %d, this build knows 1 to %d: run a newer build", jn.Version, journalVersion)
	}
	return &jn, nil
}

func (c *CA) load(ctx context.Context) error {
	doc, err := c.cfg.Journal.LoadJournal(ctx)
	if err != nil {
		return err
	}
	jn, err := decodeJournal(doc)
	if err != nil || jn == nil {
		return err
	}
	x, err := c.restore(jn.X509, true)
	if err != nil {
		return err
	}
	j, err := c.restore(jn.JWT, false)
	if err != nil {
		return err
	}
	others, err := restoreForeign(jn.Foreign)
	if err != nil {
		return err
	}
	c.install(x, j, others, decodeVerdicts(jn.Verdicts), jn.Sequence)
	return nil
}

func restoreForeign(list []journalForeign) (others foreign, err error) {
	for _, f := range list {
		set := &Foreign{Owner: f.Owner}
		for _, r := range f.X509 {
			cert, err := x509.ParseCertificate(r.Cert)
			if err != nil {
				return nil, fmt.Errorf("authority of %s: %w", f.Owner, err)
			}
			set.X509 = append(set.X509, Root{Cert: cert, Tainted: r.Tainted, revoked: r.Revoked})
		}
		for _, a := range f.JWT {
			set.JWT = append(set.JWT, JWTAuthority{KeyID: a.KeyID, PublicKey: a.PublicKey, ExpiresAt: a.NotAfter, Tainted: a.Tainted})
		}
		others = others.with(set)
	}
	return others, nil
}

func (c *CA) restore(records []journalRecord, withCert bool) (s slots, err error) {
	for _, r := range records {
		a := &authority{id: r.ID, notBefore: r.NotBefore, notAfter: r.NotAfter, life: r.Life, pkix: r.PublicKey, tainted: r.Tainted, ended: r.Ended}
		if withCert {
			if a.cert, err = x509.ParseCertificate(r.Cert); err != nil {
				return s, fmt.Errorf("authority %s: %w", r.ID, err)
			}
		}
		for _, der := range r.Chain {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return s, fmt.Errorf("authority %s: chain: %w", r.ID, err)
			}
			a.chain = append(a.chain, cert)
		}
		slot := r.Slot
		if !a.ended {
			found, err := c.loadKey(a)
			if err != nil {
				return s, fmt.Errorf("authority %s: %w", r.ID, err)
			}
			if !found {
				// A key store that forgets: the authority still verifies what it
				// signed, and a new one signs from now on.
				c.cfg.Log.Warn("the key of an authority is gone, replacing the authority", "id", r.ID)
				slot = slotOld
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

// loadKey completes an authority by its key, if that is in the key store.
func (c *CA) loadKey(a *authority) (found bool, err error) {
	a.signer, err = c.cfg.Keys.Load(a.id)
	switch {
	case errors.Is(err, keys.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case !samePublicKey(a, a.signer.Public()):
		return false, errors.New("its key in the key store is another one")
	}
	return true, a.complete()
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
