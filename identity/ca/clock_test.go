package ca_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
)

// verifiesAt verifies as somebody would who has the right time and the bundle.
func verifiesAt(c *ca.CA, cert *x509.Certificate, now time.Time) error {
	b, _ := c.Bundle()
	_, err := cert.Verify(x509.VerifyOptions{Roots: b.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// A clock that is set wrong at any time of the schedule, while the CA runs or
// between two starts, and is right again later: what was signed before verifies
// all the time, and afterwards there is a signature again that is good by the right
// clock. An authority whose end was seen signs no more, whatever the clock says.
func TestClockSetWrong(t *testing.T) {
	for _, life := range []time.Duration{24 * time.Hour, time.Hour, 10 * time.Minute} {
		for _, off := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
			for _, restarts := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v by %v restart %v", life, off, restarts), func(t *testing.T) {
					t.Parallel()
					for part := range 12 {
						setWrong(t, life, off, time.Duration(part)*life/6+time.Second, restarts)
					}
				})
			}
		}
	}
}

func setWrong(t *testing.T, life, off, at time.Duration, restarts bool) {
	f := newFixture(t)
	f.life = life
	ended := map[string]bool{}
	cfg := f.config()
	cfg.X509SVIDLife = min(time.Hour, life/4)
	cfg.Emit = func(_ context.Context, act identity.Act) error {
		if act.Verb == "expired" {
			for _, d := range act.Details {
				ended[d[1]] = ended[d[1]] || d[0] == "key_id"
			}
		}
		return nil
	}
	c, err := ca.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(when string) *x509.Certificate {
		t.Helper()
		cert := issue(t, c, ca.X509Request{})
		if ended[ca.KeyID(cert.AuthorityKeyId)] {
			t.Errorf("%v, %s: signed by an authority that has expired", at, when)
		}
		if err := verifiesAt(c, cert, f.now); err != nil {
			t.Errorf("%v, %s: a new SVID: %v", at, when, err)
		}
		if _, err := c.PrepareJWT(ca.JWTRequest{ID: web, Audience: []string{"a"}}); err != nil {
			t.Errorf("%v, %s: %v", at, when, err)
		}
		return cert
	}
	// What a running issuer does, in steps of the right time.
	step := life / 24
	for end := f.now.Add(at); f.now.Before(end); f.now = f.now.Add(step) {
		f.rotate(c)
	}
	f.rotate(c)
	before := signed("before")
	right := f.now

	again := func() {
		t.Helper()
		if !restarts {
			f.rotate(c)
		} else if c, err = ca.Open(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	f.now = right.Add(off)
	again()
	signed("while it was wrong")
	if err := verifiesAt(c, before, right); err != nil {
		t.Errorf("%v: while the clock is off by %v, what was signed before: %v", at, off, err)
	}
	f.now = right.Add(step)
	again()
	signed("afterwards")
	if err := verifiesAt(c, before, right); err != nil {
		t.Errorf("%v: after the clock was off by %v, what was signed before: %v", at, off, err)
	}
	// No more than this was made on account of the clock.
	if b, _ := c.Bundle(); len(b.X509Authorities) > 10 || len(b.JWTAuthorities) > 10 {
		t.Errorf("%v: %d and %d authorities", at, len(b.X509Authorities), len(b.JWTAuthorities))
	}
}

// An authority stays in the bundle for a while after its end, without its key, also
// over a restart, and then leaves it.
func TestRetention(t *testing.T) {
	f := newFixture(t)
	f.life = time.Hour
	c := f.open()
	first, _ := c.Bundle()
	f.now = f.now.Add(time.Hour)
	f.rotate(c)
	if diff := states(c, ca.X509); !slices.Equal(diff, []string{"active"}) {
		t.Errorf("states %v, want no expired one among them", diff)
	}
	if _, err := f.keys.Load(first.JWTAuthorities[0].KeyID); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("key of an expired authority: %v", err)
	}
	c = f.open()
	if b, _ := c.Bundle(); !b.X509Authorities[len(b.X509Authorities)-1].Equal(first.X509Authorities[0]) || len(b.JWTAuthorities) != 2 {
		t.Errorf("%d and %d authorities after a restart, want the expired ones too", len(b.X509Authorities), len(b.JWTAuthorities))
	}
	// It can still be taken out before, by hand.
	id := ca.KeyID(first.X509Authorities[0].SubjectKeyId)
	if _, err := c.TaintAuthority(t.Context(), ca.X509, id, operator); err != nil {
		t.Error(err)
	}
	f.now = f.now.Add(24*time.Hour - time.Second)
	f.rotate(c)
	held := func() bool {
		b, _ := c.Bundle()
		return slices.ContainsFunc(b.X509Authorities, first.X509Authorities[0].Equal)
	}
	if !held() {
		t.Error("it left the bundle too early")
	}
	f.now = f.now.Add(time.Second)
	f.rotate(c)
	if held() {
		t.Error("it is in the bundle for ever")
	}
	// Of many that have ended, the latest stay.
	for range 40 {
		f.now = f.now.Add(30 * time.Minute)
		f.rotate(c)
	}
	if b, _ := c.Bundle(); len(b.X509Authorities) < 7 || len(b.X509Authorities) > 9 {
		t.Errorf("%d authorities of a life of %v after a day", len(b.X509Authorities), f.life)
	}
}
