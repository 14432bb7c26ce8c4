package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/ca/upstream/disk"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/pgtest"
)

// remove has one replica remove another, and waits until it is known there.
func remove(t *testing.T, by *replica, name string, cert []*x509.Certificate) {
	t.Helper()
	if err := by.store.Update(t.Context(), func(tx *sqlstore.Tx) error { return tx.RemoveReplica(name) }); err != nil {
		t.Fatal(err)
	}
	by.await(t, "what was removed tainted", func(b *ca.Bundle) bool { return !b.Sound(cert) })
}

func hasJWT(b *ca.Bundle, id string) (has, tainted bool) {
	for _, a := range b.JWTAuthorities {
		if a.KeyID == id {
			return true, a.Tainted
		}
	}
	return false, false
}

// The authorities of a replica that is gone for good are revoked at any other: they
// leave the bundle of all, and do not come back with a restart.
func TestRevokeLostReplica(t *testing.T) {
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
	a, b, lost := all[0], all[1], all[2]
	stolen, err := lost.sign(t)
	if err != nil {
		t.Fatal(err)
	}
	id, jwt := lost.ca.Authorities(ca.X509)[0].ID, lost.ca.Authorities(ca.JWT)[0].ID
	// It is live: others leave it alone, and say what to do.
	for verb, do := range map[string]func() error{
		"taint":  func() error { _, err := a.ca.TaintPeer(t.Context(), ca.X509, id, operator); return err },
		"revoke": func() error { _, err := a.ca.RevokePeer(t.Context(), ca.X509, id, operator); return err },
	} {
		if err := do(); !errors.Is(err, ca.ErrWrongState) || !strings.Contains(err.Error(), "replica c") || !strings.Contains(err.Error(), "policyctl replica remove c") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if _, err := a.ca.RevokePeer(t.Context(), ca.X509, "00", operator); !errors.Is(err, ca.ErrNoAuthority) {
		t.Errorf("revoked what there is not: %v", err)
	}
	remove(t, a, "c", []*x509.Certificate{stolen})
	b.await(t, "what was removed tainted", func(b *ca.Bundle) bool { return !b.Sound([]*x509.Certificate{stolen}) })
	if _, err := b.ca.TaintPeer(t.Context(), ca.X509, id, operator); !errors.Is(err, ca.ErrWrongState) || !strings.Contains(err.Error(), "tainted already") {
		t.Errorf("tainted: %v", err)
	}
	if !verifies(bundleOf(a), stolen) {
		t.Fatal("taint alone took it away")
	}
	if _, err := b.ca.RevokePeer(t.Context(), ca.X509, id, operator); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ca.RevokePeer(t.Context(), ca.JWT, jwt, operator); err != nil {
		t.Fatal(err)
	}
	gone := func(b *ca.Bundle) bool { has, _ := hasJWT(b, jwt); return !verifies(b, stolen) && !has }
	a.await(t, "the lost one's authorities revoked", gone)
	b.await(t, "the lost one's authorities revoked", gone)
	if slices.ContainsFunc(a.ca.PeerAuthorities(), func(p ca.PeerAuthority) bool { return p.ID == id || p.ID == jwt }) {
		t.Error("what is revoked is listed still")
	}
	if _, err := a.ca.RevokePeer(t.Context(), ca.X509, id, operator); !errors.Is(err, ca.ErrNoAuthority) {
		t.Errorf("revoked twice: %v", err)
	}
	// Also where who was asked is not there.
	b.stop()
	a.stop()
	again := openReplica(t, dsn, "a")
	if !gone(bundleOf(again)) {
		t.Error("they came back with a restart")
	}
}

// files are those of a CA that stands above replicas.
type files struct{ cert, key, bundle string }

func (f *files) write(t *testing.T, roots ...*x509.Certificate) (root *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: time.Now().String()}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var bundle []byte
	for _, r := range append([]*x509.Certificate{root}, roots...) {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
	}
	for name, data := range map[string][]byte{
		f.bundle: bundle, f.cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), f.key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	} {
		if err := os.WriteFile(name+".new", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func (f *files) upstream(t *testing.T) func(*ca.Config) {
	return func(c *ca.Config) {
		up, err := disk.New(disk.Config{TrustDomain: td, Cert: f.cert, Key: f.key, Bundle: f.bundle})
		if err != nil {
			t.Fatal(err)
		}
		c.Upstream = up
	}
}

// Replicas below one CA in files, which ask it at the same time: all verify what any
// of them signs, one's roots are all's, and what is done to a root at one of them is
// done at all, when none of them needs it any more.
func TestReplicasBelowUpstream(t *testing.T) {
	dir := t.TempDir()
	f := &files{cert: filepath.Join(dir, "ca.pem"), key: filepath.Join(dir, "ca.key"), bundle: filepath.Join(dir, "roots.pem")}
	first := f.write(t)
	dsn := pgtest.DSN(t)
	stores := map[string]*keys.Memory{"a": {}, "b": {}}
	open := func(name string) *replica {
		r := openReplica(t, dsn, name, f.upstream(t), func(c *ca.Config) { c.Keys, c.Life = stores[name], 90*time.Second })
		r.start(t)
		if err := r.ca.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
		return r
	}
	var a, b *replica
	var both sync.WaitGroup
	both.Go(func() { a = open("a") })
	both.Go(func() { b = open("b") })
	both.Wait()
	if t.Failed() {
		t.FailNow()
	}
	// sound says whether what both sign now is so by the bundle of each.
	sound := func(b1 *ca.Bundle) bool { return b1.Sound(chainOf(t, a.ca)) && b1.Sound(chainOf(t, b.ca)) }
	for _, r := range []*replica{a, b} {
		r.await(t, "what verifies both", func(b *ca.Bundle) bool { return sound(b) && len(b.X509Authorities) == 1 && len(b.JWTAuthorities) == 2 })
	}
	oldChain := chainOf(t, b.ca)

	// Another root, by hand.
	second := f.write(t, first)
	id := ca.KeyID(first.SubjectKeyId)
	for _, r := range []*replica{a, b} {
		r.await(t, "both roots", func(b *ca.Bundle) bool { return len(b.X509Authorities) == 2 })
	}
	// MinLife leaves little time: an authority of before may be prepared already, below
	// the old root, and makes way.
	replace(t, a.ca, ca.X509)
	if err := a.ca.TaintUpstream(t.Context(), id, operator); !errors.Is(err, ca.ErrWrongState) || !strings.Contains(err.Error(), "replica b") {
		t.Fatalf("tainted the root that another replica signs below: %v", err)
	}
	replace(t, b.ca, ca.X509)
	fromB := ca.KeyID(chainOf(t, b.ca)[1].SubjectKeyId)
	a.await(t, "b's change", func(*ca.Bundle) bool {
		return slices.ContainsFunc(a.ca.PeerAuthorities(), func(p ca.PeerAuthority) bool { return p.ID == fromB && p.State == ca.Active })
	})
	if err := a.ca.TaintUpstream(t.Context(), id, operator); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*replica{a, b} {
		r.await(t, "the old root tainted", func(b *ca.Bundle) bool { return b.IsTainted(first) && !b.Sound(oldChain) && sound(b) })
	}
	if err := b.ca.TaintUpstream(t.Context(), id, operator); !errors.Is(err, ca.ErrWrongState) || !strings.Contains(err.Error(), "already") {
		t.Errorf("tainted at the other again: %v", err)
	}
	if err := b.ca.RevokeUpstream(t.Context(), id, operator); err != nil {
		t.Fatal(err)
	}
	revoked := func(b *ca.Bundle) bool {
		return len(b.X509Authorities) == 1 && b.X509Authorities[0].Equal(second) && sound(b)
	}
	a.await(t, "the old root revoked", revoked)
	b.await(t, "the old root revoked", revoked)

	// A restart changes nothing: the same authority signs on.
	signer := a.ca.Authorities(ca.X509)[0].ID
	a.stop()
	a = open("a")
	if !revoked(bundleOf(a)) {
		t.Errorf("after a restart: %d roots", len(bundleOf(a).X509Authorities))
	}
	if all := a.ca.Authorities(ca.X509); !slices.ContainsFunc(all, func(s ca.AuthorityState) bool { return s.ID == signer }) {
		t.Error("a restart made another authority")
	}

	// One that is removed cannot be tainted here, and the refusal says what can.
	mine := chainOf(t, b.ca)
	if err := a.store.Update(t.Context(), func(tx *sqlstore.Tx) error { return tx.RemoveReplica("b") }); err != nil {
		t.Fatal(err)
	}
	a.await(t, "the removal", func(*ca.Bundle) bool {
		return slices.ContainsFunc(a.ca.PeerAuthorities(), func(p ca.PeerAuthority) bool { return p.Removed })
	})
	if _, err := a.ca.RevokePeer(t.Context(), ca.X509, ca.KeyID(mine[1].SubjectKeyId), operator); !errors.Is(err, ca.ErrWrongState) || !strings.Contains(err.Error(), ca.KeyID(second.SubjectKeyId)) {
		t.Errorf("revoked: %v", err)
	}
	// Its view of the upstream counts no more: a root that is withdrawn stays so.
	third := f.write(t)
	replace(t, a.ca, ca.X509)
	if err := a.ca.TaintUpstream(t.Context(), ca.KeyID(second.SubjectKeyId), operator); err != nil {
		t.Fatal(err)
	}
	if err := a.ca.RevokeUpstream(t.Context(), ca.KeyID(second.SubjectKeyId), operator); err != nil {
		t.Fatal(err)
	}
	a.await(t, "the third root alone", func(b *ca.Bundle) bool {
		return len(b.X509Authorities) == 1 && b.X509Authorities[0].Equal(third) && !b.Sound(mine)
	})
}

// A JWT authority that was revoked here does not come back by an upstream that goes on
// to publish it.
func TestRevokedJWTComesBackByNobody(t *testing.T) {
	family(t, func(t *testing.T, _ *fixture, up *parent, c *ca.CA) {
		id := replace(t, c, ca.JWT)
		for _, do := range []func() error{
			func() error { _, err := c.TaintAuthority(t.Context(), ca.JWT, id, operator); return err },
			func() error { _, err := c.RevokeAuthority(t.Context(), ca.JWT, id, operator); return err },
			func() error { _, err := up.PrepareAuthority(t.Context(), ca.X509, operator); return err }, // another bundle there
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if has, _ := hasJWT(bundleIn(up.CA), id); !has {
			t.Fatal("the upstream does not publish it, which is what this is about")
		}
		if has, _ := hasJWT(bundleIn(c), id); has {
			t.Error("it is in the bundle again")
		}
	})
}

func bundleIn(c *ca.CA) *ca.Bundle {
	b, _ := c.Bundle()
	return b
}
