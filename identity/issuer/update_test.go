package issuer_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// gated is a world of agents whose acts wait, once the gate is shut, and are counted
// by how many are put on record at a time.
type gated struct {
	*world
	f    *fleet
	gate atomic.Pointer[chan struct{}]

	mu      sync.Mutex
	records []int
}

func newGated(t *testing.T, agents int) *gated {
	g := &gated{}
	g.world = newWorldInMemory(t, func(c *issuer.Config, _ *ca.Config) {
		emit := c.Emit
		c.Emit = func(ctx context.Context, act identity.Act) error { return c.EmitAll(ctx, []identity.Act{act}) }
		c.EmitAll = func(ctx context.Context, acts []identity.Act) error {
			if shut := g.gate.Load(); shut != nil {
				<-*shut
				g.mu.Lock()
				g.records = append(g.records, len(acts))
				g.mu.Unlock()
			}
			for _, act := range acts {
				if err := emit(ctx, act); err != nil {
					return err
				}
			}
			return nil
		}
	})
	g.f = newFleet(t, g.world, agents, anHour)
	g.f.connect()
	return g
}

// renew has the agents renewed, the first of them before the others come, which are
// there all at once. It gives the error of each.
func (g *gated) renew(meanwhile func()) []error {
	shut := make(chan struct{})
	g.gate.Store(&shut)
	errs := make([]error, len(g.f.agents))
	var wg sync.WaitGroup
	for n, a := range g.f.agents {
		wg.Go(func() {
			var reply *agentv1.RenewAgentResponse
			reply, errs[n] = a.agents().RenewAgent(g.t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: g.f.csr}})
			if errs[n] == nil {
				a.adopt(reply.Svid, a.key)
			}
		})
		synctest.Wait()
	}
	meanwhile()
	close(shut)
	wg.Wait()
	return errs
}

// Renewals that wait at the same time are one transaction and put on record together,
// each in the name of its agent; and so are the first calls with what was renewed.
func TestRenewTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 20)
		revision, _ := g.store.Index().Revision()
		for _, err := range g.renew(func() {}) {
			must(t, err)
		}
		if !slices.Equal(g.records, []int{1, 19}) {
			t.Errorf("put on record: %v, want one and then all others", g.records)
		}
		if now, _ := g.store.Index().Revision(); now != revision+2 {
			t.Errorf("%d transactions", now-revision)
		}
		var actors []string
		for _, act := range g.did("agent", "renewed") {
			actors = append(actors, act.Actor)
			if act.Actor != act.ObjectID {
				t.Errorf("%s was renewed in the name of %s", act.ObjectID, act.Actor)
			}
		}
		slices.Sort(actors)
		if n := len(slices.Compact(actors)); n != 20 {
			t.Errorf("%d agents are on record", n)
		}
		for _, a := range g.f.agents {
			a.conn.Close()
			a.conn = g.dial(a)
			_, err := a.agents().PostStatus(t.Context(), &agentv1.PostStatusRequest{})
			must(t, err)
			if got := g.store.Index().Agent(a.id); got.NewSerial != "" || got.Serial != a.cert.SerialNumber.String() {
				t.Errorf("%s: %+v", a.id, got)
			}
		}
	})
}

// What one of them is refused is its concern alone. Who has gone gets nothing.
func TestRenewTogetherRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 6)
		reattests, gone := g.f.agents[3], g.f.agents[4]
		must(t, g.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
			a, err := tx.Agent(reattests.id)
			must(t, err)
			changed := *a
			changed.CanReattest = true // so it is not renewed
			return tx.PutAgent(changed)
		}))
		errs := g.renew(func() {
			gone.conn.Close()
			synctest.Wait()
		})
		for n, err := range errs {
			want := codes.OK
			switch n {
			case 3:
				want = codes.PermissionDenied
			case 4:
				want = codes.Canceled
			}
			if status.Code(err) != want {
				t.Errorf("agent %d: %v, want %v", n, err, want)
			}
			if renewed := g.store.Index().Agent(g.f.agents[n].id).NewSerial != ""; renewed != (want == codes.OK) {
				t.Errorf("agent %d: renewed %v", n, renewed)
			}
		}
		if n := len(g.did("agent", "renewed")); n != 4 {
			t.Errorf("%d are on record", n)
		}
	})
}

// What cannot be put on record is not done, for none of them, and is not tried again
// for each.
func TestRenewTogetherUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 6)
		errs := g.renew(func() {
			g.refuseActs(func(act identity.Act) bool { return !act.Failed && act.ObjectID == g.f.agents[5].id.String() })
		})
		for n, err := range errs {
			if want := map[bool]codes.Code{true: codes.OK, false: codes.Unavailable}[n == 0]; status.Code(err) != want {
				t.Errorf("agent %d: %v, want %v", n, err, want)
			}
			if renewed := g.store.Index().Agent(g.f.agents[n].id).NewSerial != ""; renewed != (n == 0) {
				t.Errorf("agent %d: renewed %v", n, renewed)
			}
		}
		if !slices.Equal(g.records, []int{1, 5, 5}) { // the last says that it was rolled back
			t.Errorf("put on record: %v", g.records)
		}
	})
}

// What expires is removed at its time, also while something changes all the time.
func TestPruneAmongChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldInMemory(t)
		f := newFleet(t, w, 1, anHour)
		var made *registry.Entry
		must(t, w.store.Update(t.Context(), func(tx *sqlstore.Tx) (err error) {
			made, err = tx.CreateEntry(registry.Entry{
				SPIFFEID: spiffeid.RequireFromPath(td, "/svc/short"), ParentID: f.agents[0].id, ExpiresAt: time.Now().Add(2 * time.Second).Truncate(time.Second),
				Selectors: []registry.Selector{{Type: "unix", Value: "uid:1"}},
			})
			return err
		}))
		for end := made.ExpiresAt.Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			must(t, w.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
				a, err := tx.Agent(f.agents[0].id)
				must(t, err)
				return tx.PutAgent(*a)
			}))
		}
		if w.store.Index().Entry(made.ID) != nil {
			t.Error("it is still there")
		}
	})
}
