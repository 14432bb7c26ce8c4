package ca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/pgtest"
	"github.com/writ-dev/writ/internal/sqldb"
)

// keyFile holds the key of the registries of these tests.
var keyFile string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "ca")
	if err != nil {
		panic(err)
	}
	keyFile = filepath.Join(dir, "registry.key")
	if err := keys.SaveSecret(keyFile, keys.NewSecret()); err != nil {
		panic(err)
	}
	code := pgtest.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// replica is one of several CAs on a database.
type replica struct {
	store  *sqlstore.Store
	member *sqlstore.Member
	ca     *ca.CA
	db     *sql.DB
	stop   func() // ends what start began
}

func openReplica(t *testing.T, dsn, name string, change ...func(*ca.Config)) *replica {
	t.Helper()
	r, err := joinReplica(t, dsn, name, change...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func joinReplica(t *testing.T, dsn, name string, change ...func(*ca.Config)) (*replica, error) {
	t.Helper()
	db, err := sqldb.OpenPostgres(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	log := slog.New(slog.DiscardHandler)
	r := &replica{db: db, stop: func() {}}
	if r.store, err = sqlstore.Open(t.Context(), db, sqlstore.Config{KeyFile: keyFile, Record: func(context.Context, []identity.Act) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	if r.member, err = r.store.Join(t.Context(), name, log); err != nil {
		return nil, err
	}
	cfg := ca.Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Keys: &keys.Memory{}, Journal: r.member, Peers: r.member, Log: log,
		Emit: func(context.Context, identity.Act) error { return nil }, Life: ca.MinLife, X509SVIDLife: 10 * time.Second, JWTSVIDLife: 10 * time.Second,
		Revoked: r.store.Revocations().Now,
	}
	for _, c := range change {
		c(&cfg)
	}
	r.ca, err = ca.Open(t.Context(), cfg)
	return r, err
}

// start runs what a running issuer runs.
func (r *replica) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() { _ = r.store.Follow(ctx, slog.New(slog.DiscardHandler)) })
	ended.Go(func() { _ = r.ca.Run(ctx) })
	r.stop = func() { cancel(); ended.Wait() }
	t.Cleanup(func() { r.stop() })
}

// await waits for a bundle that is as wanted, told by the CA.
func (r *replica) await(t *testing.T, what string, wanted func(*ca.Bundle) bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		b, changed := r.ca.Bundle()
		if wanted(b) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("no bundle with %s: %d X.509 authorities, %d tainted", what, len(b.X509Authorities), len(b.Tainted))
		}
	}
}

func (r *replica) sign(t *testing.T) (*x509.Certificate, error) {
	t.Helper()
	key, err := (&keys.Memory{}).Create("x", keys.P256)
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := r.ca.PrepareX509(ca.X509Request{ID: spiffeid.RequireFromString("spiffe://example.org/svc/x"), PublicKey: key.Public()})
	if err != nil {
		return nil, err
	}
	chain, err := r.ca.IssueX509(ticket)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert, nil
}

func verifies(b *ca.Bundle, cert *x509.Certificate) bool {
	_, err := cert.Verify(x509.VerifyOptions{Roots: b.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// A new replica signs nothing before the others publish its authorities, and
// then they have the same bundle.
func TestNewReplicaIsPublishedFirst(t *testing.T) {
	dsn := pgtest.DSN(t)
	first := openReplica(t, dsn, "a")
	if !first.ca.Ready() {
		t.Fatal("the first replica waits for nobody")
	}
	// The first is there, and does not follow yet.
	second := openReplica(t, dsn, "b")
	if _, err := second.sign(t); !errors.Is(err, ca.ErrNotReady) || second.ca.Ready() {
		t.Fatalf("a new replica signed before it was published: %v", err)
	}
	second.start(t)
	second.await(t, "its own authority and the first's", func(b *ca.Bundle) bool { return len(b.X509Authorities) == 2 })
	if second.ca.Ready() {
		t.Fatal("a new replica is ready before it was published")
	}
	first.start(t)
	if err := second.ca.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	cert, err := second.sign(t)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := first.ca.Bundle(); !verifies(b, cert) {
		t.Error("the first signature of a new replica is not verified by what the others publish")
	}
	want, _ := second.ca.Bundle()
	first.await(t, "the same sequence", func(b *ca.Bundle) bool { return b.Sequence >= want.Sequence })
	one, _ := first.ca.Bundle()
	two, _ := second.ca.Bundle()
	if got, want := bundleKeys(one), bundleKeys(two); !slices.EqualFunc(got, want, bytes.Equal) || len(one.JWTAuthorities) != len(two.JWTAuthorities) || one.Sequence != two.Sequence {
		t.Errorf("bundles differ: %d of %d, sequence %d and %d", len(got), len(want), one.Sequence, two.Sequence)
	}
}

func bundleKeys(b *ca.Bundle) (list [][]byte) {
	for _, cert := range b.X509Authorities {
		list = append(list, cert.RawSubjectPublicKeyInfo)
	}
	slices.SortFunc(list, bytes.Compare)
	return list
}

// What a removed replica signed is tainted at the others; it signs no more, and
// does not come back.
func TestRemovedReplica(t *testing.T) {
	dsn := pgtest.DSN(t)
	first, second := openReplica(t, dsn, "a"), openReplica(t, dsn, "b")
	first.start(t)
	second.start(t)
	if err := second.ca.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	cert, err := second.sign(t)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := first.ca.Bundle(); !b.Sound([]*x509.Certificate{cert}) {
		t.Fatal("tainted before it was removed")
	}
	// Away for longer than its lease: tainted until it is back.
	if _, err := first.db.Exec(`UPDATE registry_replicas SET alive = alive - 7200 WHERE name = 'b'`); err != nil {
		t.Fatal(err)
	}
	pulse(t, first)
	first.await(t, "what lapsed tainted", func(b *ca.Bundle) bool { return len(b.Tainted) > 0 && !b.Sound([]*x509.Certificate{cert}) })
	pulse(t, second)
	first.await(t, "nothing tainted", func(b *ca.Bundle) bool { return b.Sound([]*x509.Certificate{cert}) })

	if _, _, err := second.ca.Readiness(); err != nil {
		t.Error(err)
	}
	if err := first.store.Update(t.Context(), func(tx *sqlstore.Tx) error { return tx.RemoveReplica("b") }); err != nil {
		t.Fatal(err)
	}
	// It is told, and need not ask again and again.
	for {
		_, turned, err := second.ca.Readiness()
		if errors.Is(err, ca.ErrRemoved) {
			break
		}
		<-turned
	}
	first.await(t, "what was removed tainted", func(b *ca.Bundle) bool {
		return len(b.Tainted) > 0 && !b.Sound([]*x509.Certificate{cert}) && verifies(b, cert)
	})
	second.await(t, "its own removal", func(*ca.Bundle) bool { return !second.ca.Ready() })
	if _, err := second.sign(t); !errors.Is(err, ca.ErrNotReady) {
		t.Errorf("a removed replica signs: %v", err)
	}
	if err := second.member.Run(t.Context()); !errors.Is(err, sqlstore.ErrRemoved) {
		t.Errorf("a removed replica runs on: %v", err)
	}
	if _, err := joinReplica(t, dsn, "b"); !errors.Is(err, sqlstore.ErrRemoved) {
		t.Errorf("a removed replica came back: %v", err)
	}
}

// pulse has the replica say once that it is there, and look at the others.
func pulse(t *testing.T, r *replica) {
	t.Helper()
	if err := r.member.Beat(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A replica whose clock is two hours ahead signs by that clock, which is of use to
// nobody, and does no harm to the others: nothing of theirs is tainted or taken out,
// and their signatures are verified by what it publishes.
func TestReplicaWhoseClockIsAhead(t *testing.T) {
	dsn := pgtest.DSN(t)
	const off = 2 * time.Hour
	whole := func(c *ca.Config) { c.Life = 24 * time.Hour }
	right := openReplica(t, dsn, "a", whole)
	right.start(t)
	ahead := openReplica(t, dsn, "b", whole, func(c *ca.Config) { c.Clock = func() time.Time { return time.Now().Add(off) } })
	ahead.start(t)
	if err := ahead.ca.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	early, err := ahead.sign(t)
	if err != nil {
		t.Fatal(err)
	}
	if in := time.Until(early.NotBefore); in < off-time.Minute || verifies(bundleOf(right), early) {
		t.Errorf("begins in %v, and verifies now", in)
	}
	if err := verifiesAt(right.ca, early, time.Now().Add(off)); err != nil {
		t.Errorf("by the clock that is ahead: %v", err)
	}
	good, err := right.sign(t)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*replica{"right": right, "ahead": ahead} {
		if b := bundleOf(r); len(b.X509Authorities) != 2 || len(b.Tainted) != 0 || !verifies(b, good) {
			t.Errorf("%s: %d authorities, %d tainted, the right one's signature verifies: %v", name, len(b.X509Authorities), len(b.Tainted), verifies(b, good))
		}
	}
}

func bundleOf(r *replica) *ca.Bundle {
	b, _ := r.ca.Bundle()
	return b
}
