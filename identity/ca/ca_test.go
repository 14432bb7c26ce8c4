package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
)

var (
	td  = spiffeid.RequireTrustDomainFromString("example.org")
	web = spiffeid.RequireFromString("spiffe://example.org/svc/web")
)

// memory is a journal that can fail.
type memory struct {
	doc  []byte
	fail error
}

func (m *memory) LoadJournal(context.Context) ([]byte, error) { return m.doc, nil }
func (m *memory) SaveJournal(_ context.Context, doc []byte) error {
	if m.fail == nil {
		m.doc = doc
	}
	return m.fail
}

// fixture is a CA whose clock the test sets.
type fixture struct {
	t       *testing.T
	now     time.Time
	keys    keys.Store
	journal *memory
	life    time.Duration
	acts    []string
	emitErr error
}

func newFixture(t *testing.T) *fixture {
	return &fixture{t: t, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), keys: &keys.Memory{}, journal: &memory{}, life: 24 * time.Hour}
}

func (f *fixture) config() ca.Config {
	return ca.Config{
		TrustDomain: td, Keys: f.keys, Journal: f.journal, Life: f.life,
		Clock: func() time.Time { return f.now },
		Emit: func(_ context.Context, act identity.Act) error {
			if f.emitErr == nil {
				suffix := ""
				if act.Failed {
					suffix = " failed"
				}
				f.acts = append(f.acts, act.Object+" "+act.Verb+suffix)
			}
			return f.emitErr
		},
	}
}

func (f *fixture) open() *ca.CA {
	f.t.Helper()
	c, err := ca.Open(f.t.Context(), f.config())
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

func (f *fixture) rotate(c *ca.CA) {
	f.t.Helper()
	if err := c.Rotate(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issue(t *testing.T, c *ca.CA, r ca.X509Request) *x509.Certificate {
	t.Helper()
	if r.PublicKey == nil {
		r.PublicKey = newKey(t).Public()
	}
	if r.ID.IsZero() {
		r.ID = web
	}
	ticket, err := c.PrepareX509(r)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.IssueX509(ticket)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if cert.SerialNumber.String() != ticket.Serial() || !cert.NotAfter.Equal(ticket.ExpiresAt()) {
		t.Error("the ticket said something else than the certificate")
	}
	return cert
}

// The schedule: prepared at half life, activated with a sixth left, without a key
// at the end, dropped a day later; published before use; the sequence grows with every change only.
func TestRotation(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	first, changed := c.Bundle()
	if len(first.X509Authorities) != 1 || len(first.JWTAuthorities) != 1 || first.Sequence != 1 {
		t.Fatalf("first bundle: %d, %d, sequence %d", len(first.X509Authorities), len(first.JWTAuthorities), first.Sequence)
	}
	signer := func() string { return string(issue(t, c, ca.X509Request{Life: time.Minute}).AuthorityKeyId) }
	a := signer()
	start := f.now

	f.now = start.Add(12*time.Hour - time.Second)
	f.rotate(c)
	if b, _ := c.Bundle(); b != first {
		t.Error("changed before half life")
	}
	f.now = start.Add(12 * time.Hour)
	f.rotate(c)
	select {
	case <-changed:
	default:
		t.Error("subscribers were not told")
	}
	second, changed := c.Bundle()
	if len(second.X509Authorities) != 2 || len(second.JWTAuthorities) != 2 || second.Sequence != 2 {
		t.Errorf("second bundle: %d, %d, sequence %d", len(second.X509Authorities), len(second.JWTAuthorities), second.Sequence)
	}
	if signer() != a {
		t.Error("the next authority signs before its time")
	}
	f.now = start.Add(20*time.Hour - time.Second)
	f.rotate(c)
	if signer() != a {
		t.Error("the next authority signs before its time")
	}
	f.now = start.Add(20 * time.Hour)
	f.rotate(c)
	b := signer()
	if b == a || b != string(second.X509Authorities[1].SubjectKeyId) {
		t.Error("the next authority was not activated")
	}
	if now, _ := c.Bundle(); now != second {
		t.Error("activation is no change of the bundle")
	}
	select {
	case <-changed:
		t.Error("subscribers were told of nothing")
	default:
	}
	f.now = start.Add(24 * time.Hour)
	f.rotate(c)
	third, _ := c.Bundle()
	if len(third.X509Authorities) != 3 || third.Sequence != 3 || string(third.X509Authorities[0].SubjectKeyId) != b {
		t.Errorf("third bundle: %d, sequence %d; want the second authority, the third, and the first that has ended", len(third.X509Authorities), third.Sequence)
	}
	if _, err := f.keys.Load(first.JWTAuthorities[0].KeyID); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("key of an expired authority: %v", err)
	}
	want := []string{
		"x509-authority prepared", "x509-authority activated", "jwt-authority prepared", "jwt-authority activated",
		"x509-authority prepared", "jwt-authority prepared",
		"x509-authority activated", "jwt-authority activated",
		"x509-authority expired", "x509-authority prepared", "jwt-authority expired", "jwt-authority prepared",
	}
	if diff := cmp.Diff(want, f.acts); diff != "" {
		t.Error(diff)
	}
	f.now = start.Add(48 * time.Hour)
	f.rotate(c)
	if fourth, _ := c.Bundle(); slices.ContainsFunc(fourth.X509Authorities, first.X509Authorities[0].Equal) {
		t.Error("the first authority is in the bundle a day after its end")
	}
}

// Readiness tells until when the CA can sign if nothing happens, and is told of
// what does.
func TestReadiness(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	until, turned, err := c.Readiness()
	want := f.now.Add(f.life)
	for _, kind := range []ca.Kind{ca.X509, ca.JWT} {
		if end := c.Authorities(kind)[0].ExpiresAt; end.Before(want) {
			want = end
		}
	}
	if err != nil || !until.Equal(want) {
		t.Fatalf("until %v, %v, want %v", until, err, want)
	}
	f.now = until
	if until, _, err := c.Readiness(); !errors.Is(err, ca.ErrNotReady) || !until.IsZero() || c.Ready() {
		t.Errorf("past its time: until %v, %v", until, err)
	}
	f.rotate(c)
	<-turned // or it waits for ever
	if until, _, err := c.Readiness(); err != nil || !until.After(f.now) || !c.Ready() {
		t.Errorf("after a rotation: until %v, %v", until, err)
	}
}

func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	f := newFixture(t)
	disk := func() keys.Store {
		s, err := keys.OpenDisk(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	f.keys = disk()
	c := f.open()
	f.now = f.now.Add(13 * time.Hour)
	f.rotate(c)
	before, _ := c.Bundle()
	signed := issue(t, c, ca.X509Request{})

	f.keys = disk()
	c = f.open()
	after, _ := c.Bundle()
	if after.Sequence != before.Sequence || string(after.PEM()) != string(before.PEM()) {
		t.Error("the bundle changed over a restart")
	}
	if diff := cmp.Diff(before.JWTAuthorities, after.JWTAuthorities); diff != "" {
		t.Error(diff)
	}
	if issue(t, c, ca.X509Request{}).Issuer.SerialNumber != signed.Issuer.SerialNumber {
		t.Error("another authority is active after the restart")
	}

	// Three days later everything has expired; the sequence still grows.
	f.keys = disk()
	f.now = f.now.Add(72 * time.Hour)
	c = f.open()
	late, _ := c.Bundle()
	if late.Sequence <= after.Sequence || len(late.X509Authorities) != 1 {
		t.Errorf("after a long stop: sequence %d, %d authorities", late.Sequence, len(late.X509Authorities))
	}
	issue(t, c, ca.X509Request{})

	// A prepared one is known to everybody, so even in the last sixth of its
	// life it signs rather than one that nobody has seen.
	f.now = f.now.Add(12 * time.Hour)
	f.rotate(c)
	prepared, _ := c.Bundle()
	f.now = f.now.Add(22 * time.Hour)
	c = f.open()
	cert := issue(t, c, ca.X509Request{})
	if !cert.NotAfter.Equal(f.now.Add(time.Hour)) {
		t.Errorf("SVID ends %v, want a whole hour", cert.NotAfter.Sub(f.now))
	}
	if string(cert.AuthorityKeyId) != string(prepared.X509Authorities[1].SubjectKeyId) {
		t.Error("the prepared authority does not sign")
	}
}

// A stop that outlasts the time to prepare a successor: the authority that
// everybody knows goes on until they can know the next one.
func TestRestartPublishesBeforeUse(t *testing.T) {
	for _, tc := range []struct{ stopped, delay time.Duration }{
		{13 * time.Hour, 7 * time.Hour}, // in time: activated by the schedule
		{19 * time.Hour, 2 * time.Hour}, // a twelfth of the life
		{21 * time.Hour, 90 * time.Minute},
		{24*time.Hour - 20*time.Second, 10 * time.Second},
		{24 * time.Hour, 0},
	} {
		t.Run(tc.stopped.String(), func(t *testing.T) {
			f := newFixture(t)
			c := f.open()
			f.now = f.now.Add(tc.stopped)
			old, _ := c.Bundle()
			signed := func(life time.Duration) (byOldX509, byOldJWT bool) {
				t.Helper()
				cert := issue(t, c, ca.X509Request{Life: life})
				ticket, err := c.PrepareJWT(ca.JWTRequest{ID: web, Audience: []string{"a"}, Life: life})
				if err != nil {
					t.Fatal(err)
				}
				return string(cert.AuthorityKeyId) == string(old.X509Authorities[0].SubjectKeyId), ticket.KeyID() == old.JWTAuthorities[0].KeyID
			}
			check := func(want bool) {
				t.Helper()
				if x, j := signed(time.Minute); x != want || j != want {
					t.Errorf("%v after the stop, signed by the old ones: X.509 %v, JWT %v, want %v", f.now.Sub(old.X509Authorities[0].NotAfter), x, j, want)
				}
			}
			c = f.open()
			if tc.delay > 0 {
				if b, _ := c.Bundle(); len(b.X509Authorities) != 2 || len(b.JWTAuthorities) != 2 {
					t.Errorf("published %d and %d authorities, want the next ones too", len(b.X509Authorities), len(b.JWTAuthorities))
				}
				check(true)
				c = f.open() // another restart does not begin the wait anew
				f.now = f.now.Add(tc.delay - time.Second)
				f.rotate(c)
				check(true)
				f.now = f.now.Add(time.Second)
				f.rotate(c)
			}
			check(false)
		})
	}
}

func TestRestartWithoutKeys(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	before, _ := c.Bundle()
	f.keys = &keys.Memory{}
	c = f.open()
	after, _ := c.Bundle()
	if len(after.X509Authorities) != 2 || after.Sequence <= before.Sequence {
		t.Errorf("%d authorities, sequence %d: want the old one, still verifying, and a new one", len(after.X509Authorities), after.Sequence)
	}
	issue(t, c, ca.X509Request{})

	// A key that is another one under the same name must not sign.
	f.keys = &keys.Memory{}
	for _, a := range after.JWTAuthorities {
		if _, err := f.keys.Create(a.KeyID, keys.P256); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ca.Open(t.Context(), f.config()); err == nil || !strings.Contains(err.Error(), "another one") {
		t.Errorf("opened with swapped keys: %v", err)
	}
	for _, doc := range []string{"{", `{"version":3}`, `{"version":0}`, `{"version":1,"x509":[{"id":"a","slot":"active"}]}`} {
		f.journal.doc = []byte(doc)
		if _, err := ca.Open(t.Context(), f.config()); err == nil {
			t.Errorf("opened with journal %s", doc)
		}
	}
}

func TestRotationFailsWhole(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	before, _ := c.Bundle()
	f.now = f.now.Add(13 * time.Hour)
	f.emitErr = errors.New("spool full")
	if err := c.Rotate(t.Context()); err == nil {
		t.Error("rotated off the record")
	}
	f.emitErr, f.journal.fail = nil, errors.New("disk full")
	if err := c.Rotate(t.Context()); err == nil {
		t.Error("rotated without a journal")
	}
	if last := f.acts[len(f.acts)-1]; !strings.HasSuffix(last, "failed") {
		t.Errorf("the record ends with %q", last)
	}
	if b, _ := c.Bundle(); b != before {
		t.Error("the bundle changed")
	}
	f.journal.fail = nil
	f.rotate(c)
	if b, _ := c.Bundle(); len(b.X509Authorities) != 2 {
		t.Error("rotation did not recover")
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*ca.Config){
		"no trust domain": func(c *ca.Config) { c.TrustDomain = spiffeid.TrustDomain{} },
		"no keys":         func(c *ca.Config) { c.Keys = nil },
		"no journal":      func(c *ca.Config) { c.Journal = nil },
		"no emit":         func(c *ca.Config) { c.Emit = nil },
		"short life":      func(c *ca.Config) { c.Life = 29 * time.Second },
		"long life":       func(c *ca.Config) { c.Life = 100 * 366 * 24 * time.Hour },
		"short SVIDs":     func(c *ca.Config) { c.X509SVIDLife = 9 * time.Second },
		"short JWTs":      func(c *ca.Config) { c.JWTSVIDLife = time.Second },
	} {
		config := newFixture(t).config()
		change(&config)
		if _, err := ca.Open(t.Context(), config); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// Run rotates by itself, through several generations.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.life = 30 * time.Second
		config := f.config()
		config.Clock = nil // the bubble's time
		config.Emit = func(context.Context, identity.Act) error { return nil }
		ctx, stop := context.WithCancel(t.Context())
		c, err := ca.Open(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		signers := map[string]bool{}
		start := time.Now()
		for time.Since(start) < 3*time.Minute {
			_, changed := c.Bundle()
			<-changed
			synctest.Wait()
			if !c.Ready() {
				t.Fatal("not ready")
			}
			signers[issue(t, c, ca.X509Request{Life: 10 * time.Second}).Issuer.SerialNumber] = true
		}
		if len(signers) < 5 {
			t.Errorf("%d authorities signed in three minutes, want at least 5", len(signers))
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
