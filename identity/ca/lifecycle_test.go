package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
)

const operator = "unix:uid:1000"

func states(c *ca.CA, kind ca.Kind) (list []string) {
	for _, a := range c.Authorities(kind) {
		list = append(list, string(a.State))
	}
	return list
}

// taintedIn says how many authorities of a kind the bundle has, and how many of
// them are tainted.
func taintedIn(c *ca.CA, kind ca.Kind) (all, tainted int) {
	b, _ := c.Bundle()
	if kind == ca.X509 {
		return len(b.X509Authorities), len(b.Tainted)
	}
	for _, a := range b.JWTAuthorities {
		if a.Tainted {
			tainted++
		}
	}
	return len(b.JWTAuthorities), tainted
}

// Each step by hand, with a restart after it: the next CA goes on where the last
// one was, and everything is on record with the operator's name.
func TestByHand(t *testing.T) {
	for _, kind := range []ca.Kind{ca.X509, ca.JWT} {
		t.Run(string(kind), func(t *testing.T) {
			f := newFixture(t)
			var acts []string
			config := f.config()
			config.Emit = func(_ context.Context, act identity.Act) error {
				acts = append(acts, act.Verb+" by "+act.Actor)
				return nil
			}
			restart := func() *ca.CA {
				c, err := ca.Open(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			c := restart()
			acts = nil
			sequence := uint64(1)
			check := func(wantStates []string, all, tainted int) {
				t.Helper()
				c = restart()
				if diff := cmp.Diff(wantStates, states(c, kind)); diff != "" {
					t.Error(diff)
				}
				if a, b := taintedIn(c, kind); a != all || b != tainted {
					t.Errorf("bundle: %d authorities, %d tainted, want %d, %d", a, b, all, tainted)
				}
				b, _ := c.Bundle()
				if b.Sequence < sequence {
					t.Errorf("sequence fell from %d to %d", sequence, b.Sequence)
				}
				sequence = b.Sequence
			}
			first := c.Authorities(kind)[0].ID
			prepared, err := c.PrepareAuthority(t.Context(), kind, operator)
			if err != nil {
				t.Fatal(err)
			}
			check([]string{"active", "prepared"}, 2, 0)
			again, err := c.PrepareAuthority(t.Context(), kind, operator)
			if err != nil || again.ID == prepared.ID {
				t.Fatalf("second prepare: %v, %v", again, err)
			}
			check([]string{"active", "prepared"}, 2, 0)
			active, err := c.ActivateAuthority(t.Context(), kind, again.ID, operator)
			if err != nil || active.ID != again.ID || active.State != ca.Active {
				t.Fatalf("activate: %v, %v", active, err)
			}
			check([]string{"active", "old"}, 2, 0)
			if _, err := c.RevokeAuthority(t.Context(), kind, first, operator); !errors.Is(err, ca.ErrWrongState) || !strings.Contains(err.Error(), "taint it first") {
				t.Errorf("revoked untainted: %v", err)
			}
			before := sequence
			tainted, err := c.TaintAuthority(t.Context(), kind, first, operator)
			if err != nil || tainted.State != ca.Tainted {
				t.Fatalf("taint: %v, %v", tainted, err)
			}
			check([]string{"active", "tainted"}, 2, 1)
			if sequence <= before {
				t.Error("a taint is no change of the bundle")
			}
			if _, err := c.RevokeAuthority(t.Context(), kind, first, operator); err != nil {
				t.Fatal(err)
			}
			check([]string{"active"}, 1, 0)
			want := []string{"prepared by " + operator, "discarded by " + operator, "prepared by " + operator, "activated by " + operator, "tainted by " + operator, "revoked by " + operator}
			if diff := cmp.Diff(want, acts); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What the bundle says of an SVID follows the authority that signed it.
func TestSound(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	cert := issue(t, c, ca.X509Request{})
	chain := []*x509.Certificate{cert}
	id := c.Authorities(ca.X509)[0].ID
	if b, _ := c.Bundle(); !b.Sound(chain) || ca.KeyID(cert.AuthorityKeyId) != id {
		t.Error("a fresh SVID is not sound, or its authority's ID is not its key ID")
	}
	replace(t, c, ca.X509)
	if b, _ := c.Bundle(); !b.Sound(chain) {
		t.Error("not sound under an old authority")
	}
	if _, err := c.TaintAuthority(t.Context(), ca.X509, id, operator); err != nil {
		t.Fatal(err)
	}
	b, _ := c.Bundle()
	if b.Sound(chain) {
		t.Error("sound under a tainted authority")
	}
	if _, _, err := x509svid.Verify(chain, b, x509svid.WithTime(f.now)); err != nil {
		t.Errorf("tainted is not revoked: %v", err)
	}
	if _, err := c.RevokeAuthority(t.Context(), ca.X509, id, operator); err != nil {
		t.Fatal(err)
	}
	b, _ = c.Bundle()
	if _, _, err := x509svid.Verify(chain, b, x509svid.WithTime(f.now)); err == nil {
		t.Error("valid under a revoked authority")
	}
}

func replace(t *testing.T, c *ca.CA, kind ca.Kind) (old string) {
	t.Helper()
	old = c.Authorities(kind)[0].ID
	next, err := c.PrepareAuthority(t.Context(), kind, operator)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ActivateAuthority(t.Context(), kind, next.ID, operator); err != nil {
		t.Fatal(err)
	}
	return old
}

func TestByHandRefuses(t *testing.T) {
	for _, kind := range []ca.Kind{ca.X509, ca.JWT} {
		f := newFixture(t)
		c := f.open()
		old := replace(t, c, kind)
		next, err := c.PrepareAuthority(t.Context(), kind, operator)
		if err != nil {
			t.Fatal(err)
		}
		active := c.Authorities(kind)[0].ID
		if old == active {
			t.Fatal("nothing was replaced")
		}
		type do func(context.Context, ca.Kind, string, string) (ca.AuthorityState, error)
		for name, tt := range map[string]struct {
			do   do
			id   string
			want error
			says string
		}{
			"activate the unknown":  {c.ActivateAuthority, "x", ca.ErrNoAuthority, "not one of the " + string(kind)},
			"activate nothing":      {c.ActivateAuthority, "", ca.ErrNoAuthority, ""},
			"activate the active":   {c.ActivateAuthority, active, ca.ErrWrongState, "active already"},
			"activate the old":      {c.ActivateAuthority, old, ca.ErrWrongState, "only a prepared"},
			"taint the unknown":     {c.TaintAuthority, "x", ca.ErrNoAuthority, ""},
			"taint the active":      {c.TaintAuthority, active, ca.ErrWrongState, "activate another first"},
			"taint the prepared":    {c.TaintAuthority, next.ID, ca.ErrWrongState, "prepare another"},
			"revoke the unknown":    {c.RevokeAuthority, "x", ca.ErrNoAuthority, ""},
			"revoke the active":     {c.RevokeAuthority, active, ca.ErrWrongState, "activate another first"},
			"revoke the prepared":   {c.RevokeAuthority, next.ID, ca.ErrWrongState, ""},
			"revoke the untainted":  {c.RevokeAuthority, old, ca.ErrWrongState, "taint it first"},
			"revoke without asking": {c.RevokeAuthority, "", ca.ErrNoAuthority, ""},
		} {
			before, _ := c.Bundle()
			if _, err := tt.do(t.Context(), kind, tt.id, operator); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s, %s: %v", kind, name, err)
			}
			if after, _ := c.Bundle(); after != before {
				t.Errorf("%s, %s: the bundle changed", kind, name)
			}
		}
		if _, err := c.TaintAuthority(t.Context(), kind, old, operator); err != nil {
			t.Fatal(err)
		}
		if _, err := c.TaintAuthority(t.Context(), kind, old, operator); !errors.Is(err, ca.ErrWrongState) {
			t.Errorf("%s: tainted twice: %v", kind, err)
		}
		f.now = f.now.Add(25 * time.Hour)
		if _, err := c.ActivateAuthority(t.Context(), kind, next.ID, operator); !errors.Is(err, ca.ErrWrongState) {
			t.Errorf("%s: an expired authority was activated: %v", kind, err)
		}
	}
}

// No step happens off the record, or without the journal.
func TestByHandFailsWhole(t *testing.T) {
	for _, kind := range []ca.Kind{ca.X509, ca.JWT} {
		f := newFixture(t)
		c := f.open()
		old := replace(t, c, kind)
		prepare := func() error { _, err := c.PrepareAuthority(t.Context(), kind, operator); return err }
		steps := []struct {
			name string
			do   func() error
		}{
			{"prepare", prepare},
			{"activate", func() error {
				_, err := c.ActivateAuthority(t.Context(), kind, c.Authorities(kind)[1].ID, operator)
				return err
			}},
			{"taint", func() error { _, err := c.TaintAuthority(t.Context(), kind, old, operator); return err }},
			{"revoke", func() error { _, err := c.RevokeAuthority(t.Context(), kind, old, operator); return err }},
		}
		for _, step := range steps {
			before, was := states(c, kind), slices.Clone(f.journal.doc)
			bundle, _ := c.Bundle()
			for _, fail := range []func(error){func(err error) { f.emitErr = err }, func(err error) { f.journal.fail = err }} {
				fail(errors.New("full"))
				if err := step.do(); err == nil {
					t.Errorf("%s %s: done", step.name, kind)
				}
				fail(nil)
				if diff := cmp.Diff(before, states(c, kind)); diff != "" {
					t.Errorf("%s %s: %s", step.name, kind, diff)
				}
				if b, _ := c.Bundle(); b != bundle || !bytes.Equal(f.journal.doc, was) {
					t.Errorf("%s %s: bundle or journal changed", step.name, kind)
				}
			}
			if last := f.acts[len(f.acts)-1]; !strings.HasSuffix(last, "failed") {
				t.Errorf("%s: the record ends with %q", step.name, last)
			}
			if err := step.do(); err != nil {
				t.Errorf("%s %s did not recover: %v", step.name, kind, err)
			}
		}
	}
}

// The schedule goes on from what was done by hand, and forgets the tainted ones
// with the expired.
func TestScheduleAfterHand(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	f.now = f.now.Add(6 * time.Hour)
	old := replace(t, c, ca.X509)
	if _, err := c.TaintAuthority(t.Context(), ca.X509, old, operator); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(11 * time.Hour)
	f.rotate(c)
	if diff := cmp.Diff([]string{"active", "tainted"}, states(c, ca.X509)); diff != "" {
		t.Error(diff)
	}
	f.now = f.now.Add(time.Hour)
	f.rotate(c)
	if diff := cmp.Diff([]string{"active", "prepared", "tainted"}, states(c, ca.X509)); diff != "" {
		t.Error(diff)
	}
	f.now = f.now.Add(6 * time.Hour)
	f.rotate(c)
	if diff := cmp.Diff([]string{"active", "prepared"}, states(c, ca.X509)); diff != "" {
		t.Error(diff)
	}
}

func TestJournalOfVersion1(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	f.now = f.now.Add(13 * time.Hour)
	f.rotate(c)
	before, _ := c.Bundle()
	f.journal.doc = bytes.Replace(f.journal.doc, []byte(`"version":2`), []byte(`"version":1`), 1)
	after, _ := f.open().Bundle()
	if diff := cmp.Diff(before.PEM(), after.PEM()); diff != "" || after.Sequence != before.Sequence {
		t.Errorf("sequence %d, want %d\n%s", after.Sequence, before.Sequence, diff)
	}
}

func TestKeyTypes(t *testing.T) {
	for name, want := range map[string]jose.SignatureAlgorithm{
		"ec-p256": jose.ES256, "ec-p384": jose.ES384, "rsa-2048": jose.RS256, "rsa-4096": jose.RS256,
	} {
		t.Run(name, func(t *testing.T) {
			alg, err := keys.ParseAlgorithm(name)
			if err != nil {
				t.Fatal(err)
			}
			f := newFixture(t)
			f.now = time.Now()
			config := f.config()
			config.KeyType, config.JWTKeyType = alg, alg
			if _, err := ca.Open(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			c, err := ca.Open(t.Context(), config) // and from the journal
			if err != nil {
				t.Fatal(err)
			}
			b, _ := c.Bundle()
			if _, _, err := x509svid.Verify([]*x509.Certificate{issue(t, c, ca.X509Request{})}, b, x509svid.WithTime(f.now)); err != nil {
				t.Error(err)
			}
			ticket, err := c.PrepareJWT(ca.JWTRequest{ID: web, Audience: []string{"a"}})
			if err != nil {
				t.Fatal(err)
			}
			token, err := c.IssueJWT(ticket)
			if err != nil {
				t.Fatal(err)
			}
			key, err := x509.ParsePKIXPublicKey(b.JWTAuthorities[0].PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			bundle := jwtbundle.FromJWTAuthorities(td, map[string]crypto.PublicKey{b.JWTAuthorities[0].KeyID: key})
			if _, err := jwtsvid.ParseAndValidate(token, bundle, []string{"a"}); err != nil {
				t.Error(err)
			}
			if _, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{want}); err != nil {
				t.Error(err)
			}
		})
	}
	config := newFixture(t).config()
	config.JWTKeyType = keys.Ed25519
	if _, err := ca.Open(t.Context(), config); err == nil {
		t.Error("an authority with an Ed25519 key")
	}
}

// Every kind of key that an X509-SVID may have, as go-spiffe verifies it.
func TestLeafKeys(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	b, _ := c.Bundle()
	ec := func(curve elliptic.Curve) crypto.PublicKey {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key.Public()
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.PublicKey{
		"P-256": ec(elliptic.P256()), "P-384": ec(elliptic.P384()), "P-521": ec(elliptic.P521()), "RSA": rsaKey.Public(), "Ed25519": edKey,
	} {
		if _, _, err := x509svid.Verify([]*x509.Certificate{issue(t, c, ca.X509Request{PublicKey: key})}, b, x509svid.WithTime(f.now)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
