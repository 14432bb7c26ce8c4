package ca_test

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
)

// parent is a CA as the upstream of another.
type parent struct {
	*ca.CA
	mu   sync.Mutex
	down error
	// cut ends what follows it, followed is when that began.
	cut      chan struct{}
	followed []time.Time
}

func (p *parent) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = err
}

func (p *parent) failing() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

func (p *parent) MintX509CA(_ context.Context, csr []byte, life time.Duration) (chain []*x509.Certificate, roots []ca.Root, err error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err = errors.Join(err, p.failing()); err != nil {
		return nil, nil, err
	}
	ticket, err := p.PrepareX509CA(ca.X509CARequest{PublicKey: req.PublicKey, Life: life})
	if err != nil {
		return nil, nil, err
	}
	raw, err := p.IssueX509(ticket)
	if err != nil {
		return nil, nil, err
	}
	for _, der := range raw {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, err
		}
		chain = append(chain, cert)
	}
	return chain, p.bundle().X509, nil
}

func (p *parent) bundle() (b ca.UpstreamBundle) {
	own, _ := p.Bundle()
	for _, cert := range own.X509Authorities {
		b.X509 = append(b.X509, ca.Root{Cert: cert, Tainted: own.IsTainted(cert)})
	}
	b.JWT = own.JWTAuthorities
	return b
}

func (p *parent) PublishJWTKey(ctx context.Context, key ca.JWTAuthority) error {
	if err := p.failing(); err != nil {
		return err
	}
	_, err := p.PublishJWT(ctx, "child", key, "child")
	return err
}

func (p *parent) Follow(ctx context.Context, changed func(ca.UpstreamBundle)) error {
	p.mu.Lock()
	p.followed = append(p.followed, time.Now())
	p.mu.Unlock()
	for {
		if err := p.failing(); err != nil {
			return err
		}
		_, next := p.Bundle()
		changed(p.bundle())
		select {
		case <-ctx.Done():
			return nil
		case <-p.cut:
			return errors.New("cut off")
		case <-next:
		}
	}
}

// family is a CA below another, in a bubble of time, both running.
func family(t *testing.T, test func(t *testing.T, f *fixture, up *parent, c *ca.CA)) {
	synctest.Test(t, func(t *testing.T) {
		above, below := newFixture(t), newFixture(t)
		run := func(config ca.Config) *ca.CA {
			config.Clock = nil // the bubble's time
			var mu sync.Mutex
			emit := config.Emit
			config.Emit = func(ctx context.Context, act identity.Act) error {
				mu.Lock()
				defer mu.Unlock()
				return emit(ctx, act)
			}
			c, err := ca.Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() { _ = c.Run(ctx) })
			t.Cleanup(func() { stop(); wg.Wait() })
			return c
		}
		up := &parent{CA: run(above.config()), cut: make(chan struct{})}
		config := below.config()
		config.Upstream = up
		c := run(config)
		synctest.Wait()
		test(t, below, up, c)
	})
}

// An upstream that is away is looked for less and less often, and as before once it
// has answered.
func TestUpstreamFollowed(t *testing.T) {
	family(t, func(t *testing.T, _ *fixture, up *parent, _ *ca.CA) {
		waits := func(length time.Duration) (between []time.Duration) {
			up.mu.Lock()
			up.followed = []time.Time{time.Now()}
			up.mu.Unlock()
			up.cut <- struct{}{}
			<-time.After(length)
			up.mu.Lock()
			defer up.mu.Unlock()
			for n := range up.followed[1:] {
				between = append(between, up.followed[n+1].Sub(up.followed[n]))
			}
			return between
		}
		for range 2 {
			up.fail(errors.New("away"))
			got := waits(10 * time.Minute)
			if len(got) < 10 || len(got) > 25 {
				t.Errorf("%d times in ten minutes", len(got))
			}
			for n, wait := range got {
				if most := min(5*time.Second<<min(n, 10), time.Minute); wait > most || wait < most/2 {
					t.Errorf("time %d after %v, want up to %v", n, wait, most)
				}
			}
			up.fail(nil)
			<-time.After(time.Minute) // it is found again
		}
		if got := waits(time.Minute); len(got) != 1 {
			t.Errorf("%v: an upstream that answers is followed", got)
		}
	})
}

func chainOf(t *testing.T, c *ca.CA) (chain []*x509.Certificate) {
	t.Helper()
	ticket, err := c.PrepareX509(ca.X509Request{ID: web, PublicKey: newKey(t).Public(), Life: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.IssueX509(ticket)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range raw {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain
}

// SVIDs carry the intermediate and verify by the upstream's roots, everywhere,
// through several generations on both levels.
func TestUpstream(t *testing.T) {
	family(t, func(t *testing.T, _ *fixture, up *parent, c *ca.CA) {
		signers := map[string]bool{}
		for range 6 * 24 {
			chain := chainOf(t, c)
			if len(chain) != 2 {
				t.Fatalf("a chain of %d", len(chain))
			}
			signers[string(chain[1].Raw)] = true
			for _, verifier := range []*ca.CA{up.CA, c} {
				b, _ := verifier.Bundle()
				if _, _, err := x509svid.Verify(chain, b); err != nil {
					t.Fatal(err)
				}
			}
			own, _ := c.Bundle()
			theirs, _ := up.Bundle()
			for _, cert := range own.X509Authorities {
				if !slices.ContainsFunc(theirs.X509Authorities, cert.Equal) {
					t.Fatal("the bundle has roots that the upstream has not")
				}
			}
			for _, a := range own.JWTAuthorities {
				if !slices.ContainsFunc(theirs.JWTAuthorities, func(o ca.JWTAuthority) bool { return o.KeyID == a.KeyID }) {
					t.Fatal("a JWT authority is not known upstream")
				}
			}
			time.Sleep(time.Hour)
			synctest.Wait()
		}
		if len(signers) < 6 {
			t.Errorf("%d authorities signed in six days", len(signers))
		}
	})
}

// The upstream taints the root that signed what signs here: another authority
// takes over first, then the bundle says so, and the revocation arrives as well.
func TestUpstreamTaints(t *testing.T) {
	family(t, func(t *testing.T, f *fixture, up *parent, c *ca.CA) {
		old := chainOf(t, c)
		root := replace(t, up.CA, ca.X509)
		up.fail(errors.New("no answer"))
		if _, err := up.TaintAuthority(t.Context(), ca.X509, root, operator); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if b, _ := c.Bundle(); len(b.Tainted) != 0 {
			t.Error("tainted before there was anything better to sign with")
		}
		up.fail(nil)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		b, _ := c.Bundle()
		fresh := chainOf(t, c)
		if len(b.Tainted) != 1 || b.Sound(old) || !b.Sound(fresh) {
			t.Errorf("%d tainted, the old SVID sound: %v, a new one: %v", len(b.Tainted), b.Sound(old), b.Sound(fresh))
		}
		if _, err := up.RevokeAuthority(t.Context(), ca.X509, root, operator); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b, _ = c.Bundle()
		if _, _, err := x509svid.Verify(old, b); err == nil || len(b.X509Authorities) != 1 {
			t.Errorf("after the revocation: %d roots, the old SVID verifies: %v", len(b.X509Authorities), err == nil)
		}
	})
}

// By hand: what the upstream goes on to publish stays tainted and revoked here.
func TestUpstreamTaintedHere(t *testing.T) {
	family(t, func(t *testing.T, f *fixture, up *parent, c *ca.CA) {
		root := replace(t, up.CA, ca.X509)
		synctest.Wait()
		if err := c.TaintUpstream(t.Context(), root, operator); !errors.Is(err, ca.ErrWrongState) || !strings.Contains(err.Error(), "prepare and activate") {
			t.Errorf("tainted what signs here: %v", err)
		}
		replace(t, c, ca.X509)
		if err := c.RevokeUpstream(t.Context(), root, operator); !errors.Is(err, ca.ErrWrongState) {
			t.Errorf("revoked untainted: %v", err)
		}
		if err := c.TaintUpstream(t.Context(), root, operator); err != nil {
			t.Fatal(err)
		}
		if _, err := up.PrepareAuthority(t.Context(), ca.X509, operator); err != nil { // another bundle there
			t.Fatal(err)
		}
		synctest.Wait()
		if b, _ := c.Bundle(); len(b.Tainted) != 1 || len(b.X509Authorities) != 3 {
			t.Errorf("%d tainted of %d", len(b.Tainted), len(b.X509Authorities))
		}
		if err := c.RevokeUpstream(t.Context(), root, operator); err != nil {
			t.Fatal(err)
		}
		if _, err := up.PrepareAuthority(t.Context(), ca.X509, operator); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if b, _ := c.Bundle(); len(b.X509Authorities) != 2 || len(b.Tainted) != 0 {
			t.Errorf("%d roots, %d tainted", len(b.X509Authorities), len(b.Tainted))
		}
		if err := c.TaintUpstream(t.Context(), root, operator); !errors.Is(err, ca.ErrNoAuthority) {
			t.Errorf("tainted after it was revoked: %v", err)
		}
	})
}

// An upstream that is away holds up neither the start nor the JWT authorities,
// as long as something signs.
func TestUpstreamAway(t *testing.T) {
	above := newFixture(t)
	f := newFixture(t)
	up := &parent{CA: above.open()}
	config := f.config()
	config.Upstream = up
	if _, err := ca.Open(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	up.fail(errors.New("no answer"))
	f.now = f.now.Add(13 * time.Hour)
	c, err := ca.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	chainOf(t, c)
	if err := c.Rotate(t.Context()); !errors.Is(err, ca.ErrUpstream) {
		t.Errorf("rotated: %v", err)
	}
	f.now = f.now.Add(12 * time.Hour)
	if _, err := ca.Open(t.Context(), config); !errors.Is(err, ca.ErrUpstream) {
		t.Errorf("opened with nothing to sign: %v", err)
	}
}

// From signing itself to an upstream and back: at each step what was signed
// before still verifies, and the successor is known before it signs.
func TestUpstreamComesAndGoes(t *testing.T) {
	above, f := newFixture(t), newFixture(t)
	up := &parent{CA: above.open()}
	var chains [][]*x509.Certificate
	for n, upstream := range []ca.Upstream{nil, up, nil} {
		config := f.config()
		config.Upstream = upstream
		c, err := ca.Open(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		check := func(want int) {
			t.Helper()
			if chain := chainOf(t, c); len(chain) != want {
				t.Errorf("step %d: a chain of %d, want %d", n, len(chain), want)
			}
			b, _ := c.Bundle()
			for _, chain := range chains {
				if _, _, err := x509svid.Verify(chain, b, x509svid.WithTime(f.now)); err != nil {
					t.Errorf("step %d: %v", n, err)
				}
			}
		}
		if n > 0 {
			check(n) // who signed before does so still: by itself, then below the upstream
			f.now = f.now.Add(2 * time.Hour)
			f.rotate(c)
		}
		want := 1
		if upstream != nil {
			want = 2
		}
		check(want)
		ticket, err := c.PrepareX509(ca.X509Request{ID: web, PublicKey: newKey(t).Public(), Life: 10 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := c.IssueX509(ticket)
		if err != nil {
			t.Fatal(err)
		}
		var chain []*x509.Certificate
		for _, der := range raw {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			chain = append(chain, cert)
		}
		chains = append(chains, chain)
	}
}

// An upstream whose certificate is of no use is found out before it signs.
func TestUpstreamOfNoUse(t *testing.T) {
	for name, spoil := range map[string]func(*bent){
		"no chain":        func(b *bent) { b.chain = nil },
		"other roots":     func(b *bent) { b.roots = []ca.Root{{Cert: b.stranger}} },
		"no roots":        func(b *bent) { b.roots = nil },
		"another's":       func(b *bent) { b.chain[0] = b.stranger },
		"without its key": func(b *bent) { b.chain = []*x509.Certificate{b.roots[0].Cert} },
	} {
		f := newFixture(t)
		stranger, _ := newFixture(t).open().Bundle()
		config := f.config()
		config.Upstream = &bent{parent: &parent{CA: newFixture(t).open()}, stranger: stranger.X509Authorities[0], spoil: spoil}
		if _, err := ca.Open(t.Context(), config); !errors.Is(err, ca.ErrUpstream) || !strings.Contains(err.Error(), "of no use") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type bent struct {
	*parent
	stranger *x509.Certificate
	spoil    func(*bent)
	chain    []*x509.Certificate
	roots    []ca.Root
}

func (b *bent) MintX509CA(ctx context.Context, csr []byte, life time.Duration) (_ []*x509.Certificate, _ []ca.Root, err error) {
	if b.chain, b.roots, err = b.parent.MintX509CA(ctx, csr, life); err == nil {
		b.spoil(b)
	}
	return b.chain, b.roots, err
}

// Sets of other owners survive a restart, are replaced whole, and leave when
// they expire.
func TestForeign(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	theirs, _ := newFixture(t).open().Bundle()
	set := ca.Foreign{Owner: "replica b", X509: []ca.Root{{Cert: theirs.X509Authorities[0]}}, JWT: theirs.JWTAuthorities}
	count := func(want int) {
		t.Helper()
		c = f.open()
		b, _ := c.Bundle()
		if diff := cmp.Diff([]int{want, want}, []int{len(b.X509Authorities), len(b.JWTAuthorities)}); diff != "" {
			t.Error(diff)
		}
	}
	if err := c.SetForeign(t.Context(), set, operator); err != nil {
		t.Fatal(err)
	}
	before, _ := c.Bundle()
	if err := c.SetForeign(t.Context(), set, operator); err != nil {
		t.Fatal(err)
	}
	if after, _ := c.Bundle(); after != before {
		t.Error("the same set again is a change")
	}
	count(2)
	if err := c.SetForeign(t.Context(), ca.Foreign{Owner: "replica b"}, operator); err != nil {
		t.Fatal(err)
	}
	count(1)
	if err := c.SetForeign(t.Context(), set, operator); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(48 * time.Hour)
	f.keys = &keys.Memory{}
	c = f.open()
	if b, _ := c.Bundle(); len(b.X509Authorities) != 1 {
		t.Errorf("%d authorities when all but a new one expired a day ago", len(b.X509Authorities))
	}
}
