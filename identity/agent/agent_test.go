package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/workload"
)

// bench is a fake issuer and an agent of it, with a clock of their own.
type bench struct {
	t     *testing.T
	f     *fake
	cfg   Config
	token func() (string, error)

	agent *Agent
	done  chan error
	stop  context.CancelFunc
}

// inBubble runs test where time passes when everything waits.
func inBubble(t *testing.T, test func(t *testing.T, b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, f: newFake(), token: func() (string, error) { return "token-1", nil }}
		b.cfg = Default()
		b.cfg.TrustDomain, b.cfg.ServerAddress, b.cfg.DataDir = testTD.Name(), "issuer:1", filepath.Join(dir, "data")
		b.cfg.TrustBundle = filepath.Join(dir, "bundle.pem")
		pem := need(x509bundle.FromX509Authorities(testTD, []*x509.Certificate{b.f.ca}).Marshal())
		if err := os.WriteFile(b.cfg.TrustBundle, pem, 0o600); err != nil {
			t.Fatal(err)
		}
		b.f.entries = []*types.Entry{entryOf("e1", "/svc/web", "unix:uid:1")}
		b.f.start()
		defer b.f.stop()
		defer b.halt()
		test(t, b)
	})
}

func entryOf(id, path string, selectors ...string) *types.Entry {
	e := &types.Entry{Id: id, SpiffeId: &types.SPIFFEID{TrustDomain: testTD.Name(), Path: path}, RevisionNumber: 1, CreatedAt: 100}
	for _, s := range selectors {
		typ, value, _ := strings.Cut(s, ":")
		e.Selectors = append(e.Selectors, &types.Selector{Type: typ, Value: value})
	}
	return e
}

// run starts an agent and returns when it is ready or has ended.
func (b *bench) run() error {
	b.t.Helper()
	a, err := New(b.cfg, Options{Token: b.token, Log: slog.New(slog.DiscardHandler), Dial: b.f.dial})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	b.agent, b.stop, b.done = a, cancel, done
	go func() { done <- a.Run(ctx) }()
	select {
	case <-a.Ready():
		return nil
	case err := <-b.done:
		b.done <- err
		return err
	}
}

func (b *bench) mustRun() {
	b.t.Helper()
	if err := b.run(); err != nil {
		b.t.Fatal(err)
	}
}

// halt ends the agent and returns what its Run returned.
func (b *bench) halt() error {
	if b.agent == nil {
		return nil
	}
	b.stop()
	err := <-b.done
	b.agent = nil
	return err
}

func (b *bench) lookup(selectors ...string) (workload.Grant, <-chan struct{}) {
	b.t.Helper()
	g, changed, err := b.agent.Lookup(b.t.Context(), selectors)
	if err != nil {
		b.t.Fatal(err)
	}
	return g, changed
}

// web returns the leaf of the one identity of uid 1, or nil without a valid one.
func (b *bench) web() (*x509.Certificate, <-chan struct{}) {
	b.t.Helper()
	g, changed := b.lookup("unix:uid:1")
	if len(g.Identities) != 1 {
		b.t.Fatalf("%d identities", len(g.Identities))
	}
	if g.Identities[0].Chain == nil {
		return nil, changed
	}
	return need(x509.ParseCertificate(g.Identities[0].Chain)), changed
}

func names(g workload.Grant) []string {
	var out []string
	for _, id := range g.Identities {
		out = append(out, id.ID.Path())
	}
	return out
}

func TestRenewsAtHalfLife(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.f.life, b.f.own, b.f.backdate = life, life, time.Hour
				b.mustRun()
				for range 5 {
					cert, changed := b.web()
					got, left := time.Now(), time.Until(cert.NotAfter)
					for next := cert; next.SerialNumber.Cmp(cert.SerialNumber) == 0; next, changed = b.web() {
						<-changed
					}
					// The hour of backdating must not count.
					if after := time.Since(got); after < left*44/100 || after > left*56/100 {
						t.Errorf("renewed after %v of %v", after, left)
					}
				}
				s := b.agent.Status()
				if s.Renewals == 0 {
					t.Error("the agent's own SVID was not renewed")
				}
				// The new SVID was shown to the issuer before the old one ended.
				if s.SyncErrors > 0 || s.SignErrors > 0 {
					t.Errorf("the issuer refused calls: %+v", s)
				}
			})
		})
	}
}

// While the issuer is away what there is is served until it expires, and no
// longer. When it is back so are the SVIDs.
func TestIssuerAway(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.life = time.Minute
		b.mustRun()
		cert, changed := b.web()
		b.f.stop()
		expired := cert
		for expired != nil {
			<-changed
			if expired, changed = b.web(); expired != nil && !time.Now().Before(expired.NotAfter) {
				t.Fatalf("served at %v what expired at %v", time.Now(), expired.NotAfter)
			}
		}
		if now := time.Now(); now.Before(cert.NotAfter) {
			t.Errorf("taken away at %v, valid until %v", now, cert.NotAfter)
		}
		b.f.start()
		back := time.Now()
		<-changed
		if cert, _ := b.web(); cert == nil {
			t.Error("no SVID though the issuer is back")
		}
		if waited := time.Since(back); waited > 2*backoffMost {
			t.Errorf("the SVID came %v after the issuer", waited)
		}
	})
}

func TestRestartNeedsNoToken(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		if err := b.halt(); err != nil {
			t.Fatal(err)
		}
		b.token = func() (string, error) { t.Error("token asked for"); return "", nil }
		b.mustRun()
		for _, name := range []string{svidFile, bundleFile, usedFile} {
			info, err := os.Stat(filepath.Join(b.cfg.DataDir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
	})
}

// A restart between renewing and the first use of the new SVID finds the new
// one, which the issuer has not retired.
func TestRenewedIsKeptBeforeUse(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		before := b.agent.self.svid.Load().Certificates[0].SerialNumber
		if err := b.agent.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		kept := need(b.agent.keep.svid()).Certificates[0].SerialNumber
		if kept.Cmp(before) == 0 {
			t.Error("the renewed SVID is in use and not kept")
		}
		b.halt()
		b.token = func() (string, error) { return "", nil }
		b.mustRun()
	})
}

func TestAttestsAgain(t *testing.T) {
	for _, tc := range []struct {
		name string
		deny types.PermissionDeniedDetails_Reason
	}{
		{"not attested", types.PermissionDeniedDetails_AGENT_NOT_ATTESTED},
		{"not active", types.PermissionDeniedDetails_AGENT_NOT_ACTIVE},
		{"expired", types.PermissionDeniedDetails_AGENT_EXPIRED},
		{"must reattest", types.PermissionDeniedDetails_AGENT_MUST_REATTEST},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.mustRun()
				first := b.agent.Status().ID
				b.halt()
				b.token = func() (string, error) {
					b.f.mu.Lock()
					defer b.f.mu.Unlock()
					b.f.deny = 0
					return "token-2", nil
				}
				b.f.deny = tc.deny
				b.mustRun()
				if b.agent.Status().ID == first {
					t.Error("it is still the first agent")
				}
			})
		})
		t.Run(tc.name+", no token", func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.mustRun()
				b.halt()
				b.f.deny = tc.deny
				// The token is still there, and used up.
				if err := b.run(); !errors.Is(err, ErrNoToken) {
					t.Errorf("got %v, want ErrNoToken", err)
				}
				if n := b.f.count("AttestAgent"); n != 1 {
					t.Errorf("the token was presented %d times", n)
				}
			})
		})
	}
	t.Run("kept SVID has expired", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			b.f.own = time.Minute
			b.mustRun()
			b.halt()
			<-time.After(time.Hour)
			b.token = func() (string, error) { return "token-2", nil }
			b.mustRun()
		})
	})
	t.Run("issuer began anew", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			b.mustRun()
			b.halt()
			b.f.stop()
			*b.f = *newFake()
			pem := need(x509bundle.FromX509Authorities(testTD, []*x509.Certificate{b.f.ca}).Marshal())
			if err := os.WriteFile(b.cfg.TrustBundle, pem, 0o600); err != nil {
				t.Fatal(err)
			}
			b.f.start()
			b.token = func() (string, error) { return "token-2", nil }
			b.mustRun()
		})
	})
}

func TestBannedStops(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		b.f.with(func() { b.f.deny = types.PermissionDeniedDetails_AGENT_BANNED })
		err := <-b.done
		b.done <- nil
		if !errors.Is(err, ErrBanned) {
			t.Errorf("got %v, want ErrBanned", err)
		}
	})
}

func TestBootstrapRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(b *bench)
		want   string
	}{
		{"no bundle", func(b *bench) { b.cfg.TrustBundle = "" }, "no trust bundle"},
		{"bundle of another", func(b *bench) {
			pem := need(x509bundle.FromX509Authorities(testTD, []*x509.Certificate{newFake().ca}).Marshal())
			need(0, os.WriteFile(b.cfg.TrustBundle, pem, 0o600))
		}, "does not prove to be spiffe://example.org/spire/server"},
		{"server with another ID", func(b *bench) { b.f.serverID = spiffeid.RequireFromPath(testTD, "/svc/web") }, "it is spiffe://example.org/svc/web"},
		{"token unknown", func(b *bench) { b.token = func() (string, error) { return "guess", nil } }, "join token was not accepted"},
		{"insecure, server with another ID", func(b *bench) {
			b.cfg.TrustBundle, b.cfg.InsecureBootstrap = "", true
			b.f.serverID = spiffeid.RequireFromPath(testTD, "/svc/web")
		}, "it is spiffe://example.org/svc/web"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				tc.change(b)
				err := b.run()
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
				if _, err := os.Stat(filepath.Join(b.cfg.DataDir, svidFile)); err == nil {
					t.Error("an SVID was kept")
				}
			})
		})
	}
	t.Run("insecure is allowed", func(t *testing.T) {
		inBubble(t, func(t *testing.T, b *bench) {
			b.cfg.TrustBundle, b.cfg.InsecureBootstrap = "", true
			b.mustRun()
		})
	})
}

// The node is attested once the issuer can be reached, with one token.
func TestWaitsForTheIssuer(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.stop()
		var up sync.WaitGroup
		up.Go(func() { <-time.After(time.Minute); b.f.start() })
		b.mustRun()
		up.Wait()
	})
}

func TestSyncForms(t *testing.T) {
	for name, form := range map[string]func(*fake){
		"full list":     func(*fake) {},
		"revisions":     func(f *fake) { f.paged = true },
		"before sync":   func(f *fake) { f.noSync = true },
		"without watch": func(f *fake) { f.noWatch = true },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.f.stop()
				form(b.f)
				b.f.entries = append(b.f.entries, entryOf("e2", "/svc/api", "unix:uid:1"), entryOf("e3", "/svc/db", "unix:uid:2"))
				b.f.start()
				b.mustRun()
				steps := []struct {
					change func()
					want   []string
				}{
					{func() {}, []string{"/svc/web", "/svc/api"}},
					{func() { b.f.entries = b.f.entries[1:] }, []string{"/svc/api"}},
					{func() {
						e := entryOf("e2", "/svc/renamed", "unix:uid:1")
						e.RevisionNumber = 2
						b.f.entries[0] = e
					}, []string{"/svc/renamed"}},
					{func() { // another entry under the id of an old one
						e := entryOf("e2", "/svc/again", "unix:uid:1")
						e.RevisionNumber, e.CreatedAt = 2, 200
						b.f.entries[0] = e
					}, []string{"/svc/again"}},
					{func() { b.f.entries = nil }, nil},
					{func() { b.f.entries = []*types.Entry{entryOf("e9", "/svc/new", "unix:uid:1")} }, []string{"/svc/new"}},
				}
				for i, step := range steps {
					b.f.with(step.change)
					for {
						g, changed := b.lookup("unix:uid:1")
						if cmp.Equal(step.want, names(g)) {
							break
						}
						select {
						case <-changed:
						case <-time.After(time.Hour):
							t.Fatalf("step %d: still %v, want %v", i, names(g), step.want)
						}
					}
				}
			})
		})
	}
}

// Of revisions, only what is new or changed is asked for.
func TestRevisionsAskForWhatChanged(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.paged = true
		b.f.entries = append(b.f.entries, entryOf("e2", "/svc/api", "unix:uid:1"))
		b.mustRun()
		changed := entryOf("e2", "/svc/api", "unix:uid:1")
		changed.RevisionNumber = 7
		b.f.mu.Lock()
		b.f.asked = nil
		b.f.mu.Unlock()
		b.f.with(func() { b.f.entries[1] = changed })
		synctest.Wait()
		b.f.mu.Lock()
		defer b.f.mu.Unlock()
		if diff := cmp.Diff([][]string{{"e2"}}, b.f.asked); diff != "" {
			t.Errorf("asked for (-want +got):\n%s", diff)
		}
	})
}

// Without a watch entries are polled at the interval; with one a change arrives
// at once and polling is rare.
func TestPolling(t *testing.T) {
	for _, tc := range []struct {
		noWatch  bool
		min, max int
	}{{true, 100, 140}, {false, 8, 14}} {
		inBubble(t, func(t *testing.T, b *bench) {
			b.f.stop()
			b.f.noWatch = tc.noWatch
			b.f.start()
			b.mustRun()
			<-time.After(10 * time.Minute)
			if n := b.f.count("SyncAuthorizedEntries"); n < tc.min || n > tc.max {
				t.Errorf("noWatch %v: %d syncs in ten minutes, want %d to %d", tc.noWatch, n, tc.min, tc.max)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	partner := spiffeid.RequireTrustDomainFromString("partner.test")
	inBubble(t, func(t *testing.T, b *bench) {
		other := newFake()
		b.f.fed[partner.Name()] = &types.Bundle{TrustDomain: partner.Name(), X509Authorities: []*types.X509Certificate{{Asn1: other.ca.Raw}}}
		add := func(e *types.Entry, change func(*types.Entry)) {
			change(e)
			b.f.entries = append(b.f.entries, e)
		}
		b.f.entries = nil
		add(entryOf("a", "/young", "unix:uid:1"), func(e *types.Entry) { e.CreatedAt, e.Hint = 200, "h" })
		add(entryOf("b", "/old", "unix:uid:1"), func(e *types.Entry) { e.Hint = "h" })
		add(entryOf("c", "/both", "unix:uid:1", "unix:gid:2"), func(e *types.Entry) { e.FederatesWith = []string{partner.Name(), "gone.test"} })
		add(entryOf("d", "/node/alias", "spiffe_id:spiffe://example.org/spire/agent/join_token/token-1"), func(*types.Entry) {})
		add(entryOf("e", "/stored", "unix:uid:1"), func(e *types.Entry) { e.StoreSvid = true })
		add(entryOf("f", "/hashed", "unix:sha256:00"), func(*types.Entry) {})
		add(entryOf("", "/no/id", "unix:uid:1"), func(*types.Entry) {})
		add(entryOf("g", "/no/selector"), func(*types.Entry) {})
		add(entryOf("h", "/foreign", "unix:uid:1"), func(e *types.Entry) { e.SpiffeId.TrustDomain = "other.test" })
		add(entryOf("i", "", "unix:uid:1"), func(*types.Entry) {})
		add(entryOf("j", "/empty/value", "unix:"), func(*types.Entry) {})
		b.mustRun()
		for _, tc := range []struct {
			selectors []string
			want      []string
			federated int
		}{
			{nil, nil, 0},
			{[]string{"unix:uid:9"}, nil, 0},
			{[]string{"unix:gid:2"}, nil, 0},
			{[]string{"unix:uid:1"}, []string{"/old", "/young"}, 0},
			{[]string{"unix:uid:1", "unix:uid:1", "unix:gid:2", "unix:gid:3"}, []string{"/old", "/both", "/young"}, 1},
			{[]string{"spiffe_id:spiffe://example.org/spire/agent/join_token/token-1"}, nil, 0},
		} {
			g, _ := b.lookup(tc.selectors...)
			if diff := cmp.Diff(tc.want, names(g)); diff != "" {
				t.Errorf("%v (-want +got):\n%s", tc.selectors, diff)
			}
			if len(g.Federated) != tc.federated || g.Bundle == nil || g.Bundle.TrustDomain() != testTD {
				t.Errorf("%v: %d federated bundles, own %v", tc.selectors, len(g.Federated), g.Bundle)
			}
			hints := map[string]bool{}
			for _, id := range g.Identities {
				if id.Hint != "" && hints[id.Hint] {
					t.Errorf("hint %q twice", id.Hint)
				}
				hints[id.Hint] = true
				if id.Chain == nil {
					t.Errorf("%s has no SVID", id.ID)
				}
			}
			if len(g.Identities) > 0 && g.Identities[0].Hint != "h" {
				t.Error("the older entry lost its hint")
			}
		}
		if !b.agent.Asked("unix:sha256") || b.agent.Asked("unix:path") {
			t.Error("Asked does not tell which selectors occur")
		}
		if n := b.f.count("BatchNewX509SVID"); n != 1 {
			t.Errorf("signed in %d batches", n)
		}
	})
}

func TestStarting(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		a := need(New(b.cfg, Options{Log: slog.New(slog.DiscardHandler)}))
		if _, _, err := a.Lookup(t.Context(), []string{"unix:uid:1"}); !errors.Is(err, workload.ErrStarting) {
			t.Errorf("got %v, want ErrStarting", err)
		}
	})
}

// A bundle with a key that nobody could name is refused whole: the old stays.
func TestBundleRefusedWhole(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		g, _ := b.lookup("unix:uid:1")
		b.f.with(func() { b.f.keyID = "" })
		<-time.After(time.Minute)
		if after, _ := b.lookup("unix:uid:1"); after.Bundle != g.Bundle {
			t.Error("the bundle changed")
		}
		if b.agent.Status().SyncErrors == 0 {
			t.Error("nobody noticed")
		}
	})
}

// One entry that cannot be signed holds up no other and is tried again.
func TestOneEntryFails(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.entries = append(b.f.entries, entryOf("e2", "/svc/api", "unix:uid:2"))
		b.mustRun()
		b.f.with(func() { b.f.fail["BatchNewX509SVID"] = status.Error(codes.ResourceExhausted, "slow down") })
		b.f.with(func() { b.f.entries = append(b.f.entries, entryOf("e3", "/svc/late", "unix:uid:3")) })
		<-time.After(10 * time.Second)
		if g, _ := b.lookup("unix:uid:3"); len(g.Identities) != 1 || g.Identities[0].Chain != nil {
			t.Fatalf("got %+v", g.Identities)
		}
		if cert, _ := b.web(); cert == nil {
			t.Error("an SVID that was there is gone")
		}
		b.f.with(func() { delete(b.f.fail, "BatchNewX509SVID") })
		<-time.After(10 * time.Second)
		if g, _ := b.lookup("unix:uid:3"); g.Identities[0].Chain == nil {
			t.Error("not signed later")
		}
	})
}

func TestJWTSVID(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		g, _ := b.lookup("unix:uid:1")
		fetch := func(audience ...string) string {
			t.Helper()
			return need(b.agent.JWTSVID(t.Context(), 1, g.Identities[0], audience))
		}
		first := fetch("a", "b")
		if fetch("b", "a", "a") != first || b.f.count("NewJWTSVID") != 1 {
			t.Error("the same audiences were signed twice")
		}
		if fetch("a") == first {
			t.Error("other audiences got the same token")
		}
		if fetch("a\x00b") == first {
			t.Error("one audience that looks like two joined got the token of the two")
		}
		<-time.After(2 * time.Minute)
		if fetch("a", "b") != first {
			t.Error("renewed before half of its life")
		}
		<-time.After(40 * time.Second)
		second := fetch("a", "b")
		if second == first {
			t.Error("not renewed after half of its life")
		}
		b.f.stop()
		<-time.After(4 * time.Minute)
		if fetch("a", "b") != second {
			t.Error("without the issuer, the valid token was not given")
		}
		<-time.After(2 * time.Minute)
		if token, err := b.agent.JWTSVID(t.Context(), 1, g.Identities[0], []string{"a", "b"}); err == nil {
			t.Errorf("gave %s, which has expired", token)
		}
	})
}

func TestManyEntries(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.entries = nil
		for i := range 450 {
			b.f.entries = append(b.f.entries, entryOf(string(rune('a'+i%26))+time.Duration(i).String(), "/svc/s"+time.Duration(i).String(), "unix:uid:1"))
		}
		b.mustRun()
		if n := b.f.count("BatchNewX509SVID"); n != 3 {
			t.Errorf("450 entries in %d batches, want 3", n)
		}
		if s := b.agent.Status(); s.Entries != 450 || s.SVIDs != 450 {
			t.Errorf("%+v", s)
		}
	})
}
