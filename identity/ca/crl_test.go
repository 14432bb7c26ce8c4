package ca_test

import (
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/internal/pgtest"
)

// serial is a revocation of a serial number.
func serial(number string, at time.Time) *revocation.Revocation {
	return &revocation.Revocation{Kind: revocation.Serial, Subject: number, Number: 1, Revoked: at, Expires: at.Add(100 * time.Hour)}
}

func lists(t *testing.T, c *ca.CA) (all []*x509.RevocationList) {
	t.Helper()
	l, _, err := c.RevocationLists()
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range l.Lists {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list)
	}
	return all
}

// listOf is the list of an authority, nil if there is none.
func listOf(all []*x509.RevocationList, a *x509.Certificate) *x509.RevocationList {
	n := slices.IndexFunc(all, func(l *x509.RevocationList) bool { return l.CheckSignatureFrom(a) == nil })
	if n < 0 {
		return nil
	}
	return all[n]
}

func revokes(l *x509.RevocationList, number *big.Int) bool {
	return l != nil && slices.ContainsFunc(l.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(number) == 0 })
}

// Each authority that may have signed what is valid has a list that is verified by
// it and says what is revoked. It is good for a while that is bounded, never longer
// than the authority, and signed anew at half of it.
func TestCRLs(t *testing.T) {
	f := newFixture(t)
	var revoked revocation.Set
	config := f.config()
	config.Revoked, config.CRLLife = revoked.Now, 8*time.Hour
	c, err := ca.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(13 * time.Hour)
	f.rotate(c)
	replace(t, c, ca.X509) // one is old, one active
	at := f.now.Add(-time.Minute).Truncate(time.Second)
	if _, err := revoked.Merge([]*revocation.Revocation{serial("5", at)}, f.now); err != nil {
		t.Fatal(err)
	}
	b, _ := c.Bundle()
	first := lists(t, c)
	if len(first) < 2 || len(first) != len(b.X509Authorities) {
		t.Fatalf("%d lists of %d authorities", len(first), len(b.X509Authorities))
	}
	for _, a := range b.X509Authorities {
		list := listOf(first, a)
		if list == nil {
			t.Fatalf("%s has no list", a.Subject)
		}
		end := f.now.Add(8 * time.Hour)
		if end.After(a.NotAfter) {
			end = a.NotAfter
		}
		if !list.NextUpdate.Equal(end) || list.ThisUpdate.Before(a.NotBefore) || list.ThisUpdate.After(f.now) {
			t.Errorf("list from %v to %v, authority from %v to %v", list.ThisUpdate, list.NextUpdate, a.NotBefore, a.NotAfter)
		}
		if got := list.RevokedCertificateEntries; len(got) != 1 || got[0].SerialNumber.Int64() != 5 || !got[0].RevocationTime.Equal(at) {
			t.Errorf("revoked %v", got)
		}
	}
	newest := b.X509Authorities[0]
	same := func() bool { return slices.Equal(listOf(first, newest).Raw, listOf(lists(t, c), newest).Raw) }
	f.now = f.now.Add(4*time.Hour - time.Second)
	if !same() {
		t.Error("signed anew before its time")
	}
	f.now = f.now.Add(time.Second)
	again := listOf(lists(t, c), newest)
	if same() || again.Number.Cmp(listOf(first, newest).Number) <= 0 || !again.NextUpdate.After(listOf(first, newest).NextUpdate) {
		t.Errorf("not signed anew at half of its life: %v until %v", again.Number, again.NextUpdate)
	}
	// A clock that was ahead and was set right leaves nothing behind.
	f.now = f.now.Add(-2 * time.Hour)
	if back := listOf(lists(t, c), newest); back.Number.Cmp(again.Number) <= 0 || !back.NextUpdate.Before(again.NextUpdate) {
		t.Errorf("after the clock went back: %v until %v", back.Number, back.NextUpdate)
	}
	// One that has ended has no key, and needs no list.
	f.now = f.now.Add(10 * time.Hour)
	f.rotate(c)
	if b, _ := c.Bundle(); len(lists(t, c)) >= len(b.X509Authorities) || len(lists(t, c)) == 0 {
		t.Errorf("%d lists of %d authorities, some of which have ended", len(lists(t, c)), len(b.X509Authorities))
	}
}

// What an upstream signed lists by itself, with what is between it and the roots.
func TestCRLsBelowUpstream(t *testing.T) {
	family(t, func(t *testing.T, f *fixture, up *parent, c *ca.CA) {
		chain := chainOf(t, c)
		all := lists(t, c)
		if listOf(all, chain[1]) == nil {
			t.Fatal("the authority that signs has no list")
		}
		l, _, err := c.RevocationLists()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(l.Intermediates, func(der []byte) bool { return slices.Equal(der, chain[1].Raw) }) {
			t.Error("its certificate does not come with it")
		}
	})
}

// Three replicas: what is revoked at one is in the lists of all, at all, and what is
// prepared at one has a list at the others when they publish it. Of one that was
// removed the last list stands, until its time.
func TestReplicasCRLs(t *testing.T) {
	dsn := pgtest.DSN(t)
	var all []*replica
	for _, name := range []string{"a", "b", "c"} {
		r := openReplica(t, dsn, name)
		r.start(t)
		if err := r.ca.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	signed := map[*replica]*x509.Certificate{}
	for _, r := range all {
		cert, err := r.sign(t)
		if err != nil {
			t.Fatal(err)
		}
		signed[r] = cert
	}
	revoke := func(r *replica, number *big.Int) {
		t.Helper()
		if err := r.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
			_, err := tx.Revoke(*serial(number.String(), time.Now().UTC().Truncate(time.Second)))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	// everywhere waits until at each of these replicas the lists of these signers
	// name a number.
	everywhere := func(number *big.Int, at []*replica, signers ...*replica) {
		t.Helper()
		limit := time.After(20 * time.Second)
		for _, r := range at {
			for {
				_, changed, err := r.ca.RevocationLists()
				if err != nil {
					t.Fatal(err)
				}
				have := lists(t, r.ca)
				missing := slices.ContainsFunc(signers, func(s *replica) bool { return !revokes(listOf(have, authorityOf(t, r, signed[s])), number) })
				if !missing {
					break
				}
				_, revoked := r.store.Revocations().Now()
				select {
				case <-changed:
				case <-revoked:
				case <-limit:
					t.Fatalf("the lists at one replica do not have what was revoked at another: %d lists", len(have))
				}
			}
		}
	}
	for _, r := range all {
		revoke(r, signed[r].SerialNumber)
		everywhere(signed[r].SerialNumber, all, all...)
	}
	// A revocation is no other bundle.
	before := bundleOf(all[0]).Sequence
	revoke(all[1], big.NewInt(7))
	everywhere(big.NewInt(7), all, all...)
	if after := bundleOf(all[0]).Sequence; after != before {
		t.Errorf("the bundle's sequence went from %d to %d by a revocation", before, after)
	}

	// An authority is published with its list.
	if _, err := all[2].ca.PrepareAuthority(t.Context(), ca.X509, ""); err != nil {
		t.Fatal(err)
	}
	all[0].await(t, "a fourth authority", func(b *ca.Bundle) bool {
		if len(b.X509Authorities) < 4 {
			return false
		}
		for _, a := range b.X509Authorities {
			if listOf(lists(t, all[0].ca), a) == nil {
				t.Errorf("%s is in the bundle and has no list", a.Subject.SerialNumber)
			}
		}
		return true
	})

	// Removed: no new one, and the last stands.
	third := authorityOf(t, all[0], signed[all[2]])
	if err := all[0].store.Update(t.Context(), func(tx *sqlstore.Tx) error { return tx.RemoveReplica("c") }); err != nil {
		t.Fatal(err)
	}
	for {
		if _, turned, err := all[2].ca.Readiness(); err == nil {
			<-turned
			continue
		}
		break
	}
	revoke(all[0], big.NewInt(9))
	everywhere(big.NewInt(9), all[:2], all[:2]...)
	last := listOf(lists(t, all[1].ca), third)
	if !revokes(last, signed[all[2]].SerialNumber) || revokes(last, big.NewInt(9)) {
		t.Errorf("the list of the removed replica: %v", last)
	}
	// Nobody else can put one in its place.
	if _, err := all[0].db.Exec(`UPDATE registry_crls SET lists = (SELECT lists FROM registry_crls WHERE replica = 'a') WHERE replica = 'b'`); err != nil {
		t.Fatal(err)
	}
	revoke(all[0], big.NewInt(10))
	everywhere(big.NewInt(10), all[:2], all[:2]...)
}

// authorityOf is who signed a certificate, from a replica's bundle.
func authorityOf(t *testing.T, r *replica, cert *x509.Certificate) *x509.Certificate {
	t.Helper()
	for _, a := range bundleOf(r).X509Authorities {
		if cert.CheckSignatureFrom(a) == nil {
			return a
		}
	}
	t.Fatal("signed by nobody whom the replica publishes")
	return nil
}
