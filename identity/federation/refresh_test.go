package federation_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/testpki"
)

func readAll(t testing.TB, resp *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(resp.Body)
	must(t, err)
	return string(data)
}

// desk is a Refresher over an index in memory, with an endpoint that a test
// makes answer, and a clock that jumps.
type desk struct {
	index *registry.Index
	r     *federation.Refresher

	mu      sync.Mutex
	answer  func() (*registry.FederatedBundle, error)
	fetched []time.Duration // since the start
	start   time.Time
	acts    []identity.Act
	bundles *x509bundle.Set
}

func newDesk() *desk {
	d := &desk{index: registry.NewIndex(1, nil, nil), start: time.Now(), bundles: x509bundle.NewSet()}
	d.r = federation.NewRefresher(federation.Config{
		Fetch: func(context.Context, *registry.Relationship) (*registry.FederatedBundle, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.fetched = append(d.fetched, time.Since(d.start))
			return d.answer()
		},
		Bundles: d.bundles, Index: d.index,
		Keep: func(_ context.Context, _ *registry.Relationship, b *registry.FederatedBundle) error {
			d.index.Apply(registry.Change{Revision: 2, Bundles: []registry.BundleChange{{New: b}}})
			return nil
		},
		Record: func(_ context.Context, a identity.Act) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.acts = append(d.acts, a)
			return nil
		},
	})
	return d
}

func (d *desk) relate(old, r *registry.Relationship) {
	d.index.Apply(registry.Change{Revision: 3, Relationships: []registry.RelationshipChange{{Old: old, New: r}}})
}

func (d *desk) answers(b *registry.FederatedBundle, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = func() (*registry.FederatedBundle, error) { return b, err }
}

func (d *desk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.fetched)
}

func (d *desk) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { d.r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func TestRefreshByHint(t *testing.T) {
	for name, tc := range map[string]struct {
		hint     time.Duration
		in       time.Duration
		min, max int
	}{
		"none is five minutes":   {0, time.Hour, 11, 15},
		"one minute":             {time.Minute, time.Hour, 54, 68},
		"too often is ten":       {time.Second, 10 * time.Minute, 54, 68},
		"too rarely is each day": {300 * 24 * time.Hour, 100 * 24 * time.Hour, 90, 112},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk()
				d.answers(&registry.FederatedBundle{TrustDomain: partner, RefreshHint: tc.hint}, nil)
				d.run(t)
				d.relate(nil, web("https://one.test"))
				time.Sleep(tc.in)
				if n := d.count(); n < tc.min || n > tc.max {
					t.Errorf("fetched %d times in %v", n, tc.in)
				}
				if len(d.acts) != 0 {
					t.Errorf("nothing happened and on record is %v", d.acts)
				}
			})
		})
	}
}

func TestRefreshFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk()
		d.answers(nil, federation.Refuse(federation.Unreachable, "gone"))
		d.run(t)
		d.relate(nil, web("https://one.test"))
		time.Sleep(12 * time.Second)
		if n := d.count(); n != 1 {
			t.Errorf("%d attempts in 12s", n)
		}
		// 15, 30, 60, 120, 240 seconds, and then the interval.
		time.Sleep(time.Hour)
		if n := d.count(); n < 13 || n > 19 {
			t.Errorf("%d attempts in an hour", n)
		}
		d.answers(nil, federation.Refuse(federation.Garbage, "hm"))
		time.Sleep(10 * time.Minute)
		d.answers(nil, federation.Refuse(federation.RanBackwards, "old"))
		time.Sleep(10 * time.Minute)
		if s := d.r.States()[0]; s.Failing != "old" || s.Cause != federation.RanBackwards || !s.Success.IsZero() || s.Failures[federation.Unreachable] < 12 || !s.Next.After(time.Now()) {
			t.Errorf("state %+v", s)
		}
		d.answers(&registry.FederatedBundle{TrustDomain: partner}, nil)
		time.Sleep(10 * time.Minute)
		if s := d.r.States()[0]; s.Failing != "" || s.Cause != "" || s.Success.IsZero() {
			t.Errorf("state %+v", s)
		}
		var got []string
		for _, a := range d.acts {
			got = append(got, a.Kind+" "+a.Verb+" "+a.ObjectID+" "+a.Reason)
		}
		if diff := cmp.Diff([]string{"admin refreshed spiffe://partner.test gone", "admin refreshed spiffe://partner.test hm", "alarm refreshed spiffe://partner.test old", "admin refreshed spiffe://partner.test "}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestRefreshFollowsRelationships(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk()
		d.answers(&registry.FederatedBundle{TrustDomain: partner}, nil)
		if err := d.r.Refresh(t.Context(), partner); !is(err, federation.NotConfigured) {
			t.Errorf("without a relationship: %v", err)
		}
		d.run(t)
		one, two := web("https://one.test"), web("https://two.test")
		d.relate(nil, one)
		synctest.Wait()
		d.relate(one, two) // changed: at once
		synctest.Wait()
		if n := d.count(); n != 2 {
			t.Errorf("fetched %d times, want once for each form of the relationship", n)
		}
		must(t, d.r.Refresh(t.Context(), partner))
		if n := d.count(); n != 3 {
			t.Errorf("asked for by hand and fetched %d times", n)
		}
		// It is still known when the bundle was got last.
		d.answers(nil, errors.New("away"))
		got := time.Now()
		time.Sleep(time.Second)
		d.relate(two, one)
		synctest.Wait()
		if s := d.r.States(); len(s) != 1 || s[0].Failing == "" || !s[0].Success.Equal(got) {
			t.Errorf("after a change: %+v", s)
		}
		d.relate(one, two)
		synctest.Wait()
		before := d.count()
		d.relate(two, nil)
		time.Sleep(time.Hour)
		if n := d.count(); n != before || len(d.r.States()) != 0 {
			t.Errorf("the relationship ended and the bundle was fetched %d times", n)
		}
	})
}

// An https_spiffe endpoint is asked as soon as there is a bundle to verify it
// with.
func TestRefreshWaitsForTheFirstBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk()
		d.answers(nil, federation.Refuse(federation.NoBundle, "none"))
		d.run(t)
		d.relate(nil, &registry.Relationship{TrustDomain: partner, EndpointURL: "https://one.test", Profile: registry.HTTPSSPIFFE, EndpointID: spiffeid.RequireFromString("spiffe://partner.test/spire/server")})
		synctest.Wait()
		before := d.count()
		d.index.Apply(registry.Change{Revision: 4}) // something else
		synctest.Wait()
		if d.count() != before {
			t.Error("asked again for nothing")
		}
		d.answers(&registry.FederatedBundle{TrustDomain: partner}, nil)
		d.bundles.Add(testpki.New(t, partner.Name()).Bundle())
		d.index.Apply(registry.Change{Revision: 5})
		synctest.Wait()
		if d.count() != before+1 {
			t.Errorf("fetched %d times, want once more", d.count()-before)
		}
	})
}

func is(err error, cause federation.Cause) bool {
	var why *federation.Error
	return errors.As(err, &why) && why.Cause == cause
}
