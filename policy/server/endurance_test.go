package server_test

import (
	"context"
	"flag"
	"runtime"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// activations is how many are made; each compiles a policy here and at the
// follower, so that the full number is for who has some minutes.
var activations = flag.Int("activations", 300, "how many activations TestManyActivations makes")

// TestManyActivations leave nothing behind: no goroutine, no memory beyond the
// last revision, and a follower that is on it.
func TestManyActivations(t *testing.T) {
	rounds := *activations
	if testing.Short() || raceEnabled {
		rounds = min(rounds, 100)
	}
	p := newPlane(t, func(c *server.Config) {
		c.AllowUnsigned = true
		c.Emit = func(context.Context, identity.Act) error { return nil }
	})
	var bundles [2][]byte
	for i, method := range []string{"GET", "POST"} {
		c := sources(method)
		bundles[i] = p.bundle(bundle.Content{c[0], c[1], c[3]}, nil)
	}
	push := func(i int) {
		t.Helper()
		resp, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: bundles[i%2]})
		if err != nil || resp.Revision == nil {
			t.Fatal(i, resp, err)
		}
	}
	push(0)
	_, activated, _ := p.follower(t.TempDir(), ordersID)
	// last waits until the follower runs the revision; it may skip some.
	last := func(number uint64) {
		for (<-activated).Revision.Number != number {
		}
	}
	measure := func() (goroutines int, heap uint64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	const warm = 50
	var goroutines int
	var heap uint64
	start := time.Now()
	for i := 1; i <= rounds; i++ {
		push(i)
		if i%warm == 0 {
			last(uint64(i + 1)) // The channel is bounded.
		}
		if i == warm {
			goroutines, heap = measure()
		}
	}
	g, h := measure()
	t.Logf("%d activations, %v each; %d → %d goroutines, %d → %d bytes of heap", rounds, time.Since(start)/time.Duration(rounds), goroutines, g, heap, h)
	if g > goroutines+10 {
		t.Errorf("%d goroutines after %d activations, %d after %d", goroutines, warm, g, rounds)
	}
	if h > heap+8<<20 {
		t.Errorf("%d bytes of heap after %d activations, %d after %d", heap, warm, h, rounds)
	}
	if v := verdict(p.server, request("orders", []string{"GET", "POST"}[rounds%2])); v != policy.Allow {
		t.Errorf("after %d activations: %v", rounds, v)
	}
	list, err := p.admin.List(t.Context(), &policyv1.ListRequest{})
	if err != nil || len(list.Revisions) != rounds+1 {
		t.Errorf("list: %d revisions, %v", len(list.GetRevisions()), err)
	}
}
