package issuer_test

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// fleet is many agents, each with one entry, that have been here before.
type fleet struct {
	w       *world
	agents  []*agent
	entries []string
	csr     []byte
}

// newFleet makes a fleet. Agent n's own SVID has life(n).
func newFleet(t testing.TB, w *world, size int, life func(n int) time.Duration) *fleet {
	t.Helper()
	f := &fleet{w: w}
	key := newKey(t)
	f.csr = csr(t, key, "")
	must(t, w.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
		for n := range size {
			id := spiffeid.RequireFromPath(td, fmt.Sprintf("/spire/agent/join_token/storm-%05d", n))
			ticket, err := w.ca.PrepareX509(ca.X509Request{ID: id, PublicKey: key.Public(), Life: life(n)})
			must(t, err)
			chain, err := w.ca.IssueX509(ticket)
			must(t, err)
			a := &agent{w: w}
			a.adopt(&types.X509SVID{CertChain: chain}, key)
			f.agents = append(f.agents, a)
			if err := tx.PutAgent(registry.Agent{ID: id, AttestationType: "join_token", Serial: ticket.Serial(), ExpiresAt: ticket.ExpiresAt()}); err != nil {
				return err
			}
			made, err := tx.CreateEntry(registry.Entry{SPIFFEID: spiffeid.RequireFromPath(td, fmt.Sprintf("/svc/%05d", n)), ParentID: id, Selectors: []registry.Selector{{Type: "unix", Value: "uid:1"}}})
			if err != nil {
				return err
			}
			f.entries = append(f.entries, made.ID)
		}
		return nil
	}))
	t.Cleanup(func() {
		for _, a := range f.agents {
			a.conn.Close()
		}
	})
	return f
}

func anHour(int) time.Duration { return time.Hour }

// connect opens the connections of all.
func (f *fleet) connect() {
	for _, a := range f.agents {
		_, err := a.agents().PostStatus(f.w.t.Context(), &agentv1.PostStatusRequest{})
		must(f.w.t, err)
	}
}

// ask wants one SVID for an agent.
func (f *fleet) ask(ctx context.Context, n int) error {
	resp, err := f.agents[n].svids().BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: f.entries[n], Csr: f.csr}}})
	if err == nil && resp.Results[0].Status.Code != 0 {
		err = status.Error(codes.Code(resp.Results[0].Status.Code), resp.Results[0].Status.Message)
	}
	return err
}

// signed lists the entries for which SVIDs were put on record, in their order.
func (w *world) signed() (entries []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, act := range w.acts {
		for _, d := range act.Details {
			if act.Object == "x509-svid" && d[0] == "entry" {
				entries = append(entries, d[1])
			}
		}
	}
	return entries
}

// stormSize is how many agents come back. The default is for every day.
var stormSize = flag.Int("storm", 600, "number of agents in TestStorm")

// slow makes an issuer of small capacity: one SVID at once, each of which takes a
// while to be put on record.
func slow(each time.Duration, gate <-chan struct{}) option {
	return func(c *issuer.Config, _ *ca.Config) {
		emit := c.Emit
		c.SignAtOnce = 1
		c.Emit = func(ctx context.Context, act identity.Act) error {
			if act.Object == "x509-svid" && act.ObjectID != identity.IssuerID(td).String() {
				<-gate
				time.Sleep(each)
			}
			return emit(ctx, act)
		}
	}
}

// Thousands of agents are there at once, over TLS. Those whose SVIDs are about to
// expire are served first, in the order in which they expire, then those who have
// time, then those who want an SVID for the first time. Who does not find room is told
// when to come again, and succeeds then.
func TestStorm(t *testing.T) {
	size := *stormSize
	urgent, relaxed := size*4/10, size*9/10 // the last tenth: for the first time
	room := size * 7 / 10
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		w := newWorldInMemory(t, slow(500*time.Microsecond, gate), func(c *issuer.Config, _ *ca.Config) { c.SignWaiting = room })
		f := newFleet(t, w, size+1, anHour)
		var wg sync.WaitGroup
		connected := memory()
		for n := range size {
			wg.Go(func() {
				_, err := f.agents[n].agents().PostStatus(t.Context(), &agentv1.PostStatusRequest{})
				must(t, err)
			})
			if n%100 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		wg.Wait()
		connected = memory() - connected
		// One has the whole capacity, and does not end.
		wg.Go(func() { must(t, f.ask(t.Context(), size)) })
		synctest.Wait()
		waiting := memory()
		var refused, early atomic.Int64
		wasRefused := make([]bool, size)
		for n := size - 1; n >= 0; n-- { // the least urgent first
			wg.Go(func() {
				for {
					err := f.ask(stormLife(t.Context(), n, urgent, relaxed), n)
					if err == nil {
						return
					}
					wait, ok := admit.RetryAfter(err)
					if status.Code(err) != codes.ResourceExhausted || !ok {
						t.Errorf("agent %d: %v", n, err)
						return
					}
					refused.Add(1)
					wasRefused[n] = true
					if n < urgent {
						early.Add(1)
					}
					time.Sleep(wait)
				}
			})
			if n%100 == 0 {
				synctest.Wait() // all of them have arrived, and wait
			}
		}
		synctest.Wait()
		waits := w.issuer.Admission().Signing
		waiting = memory() - waiting
		count := waits[admit.Renewal].Waiting + waits[admit.First].Waiting
		t.Logf("%d connections, client and server: %d KB each; %d calls that wait: %d KB each", size, connected/size>>10, count, waiting/count>>10)
		if waits[admit.Renewal].Waiting != room || waits[admit.First].Waiting != size-relaxed {
			t.Fatalf("%d renewals and %d others wait", waits[admit.Renewal].Waiting, waits[admit.First].Waiting)
		}
		if int(refused.Load()) != relaxed-room || early.Load() > 0 {
			t.Errorf("%d were refused, of whom %d were urgent", refused.Load(), early.Load())
		}
		if !raceEnabled && waiting/count > 100<<10 {
			t.Errorf("a call that waits takes %d bytes", waiting/count)
		}
		close(gate)
		wg.Wait()

		order := w.signed()[1:]
		if len(order) != size {
			t.Fatalf("%d SVIDs were signed for %d agents", len(order), size)
		}
		place := map[string]int{}
		for n, entry := range order {
			place[entry] = n
		}
		if got := order[:urgent]; !slices.Equal(got, f.entries[:urgent]) {
			t.Errorf("those who are about to expire were not first, in their order: %d of %d are", matching(got, f.entries), urgent)
		}
		// Among renewals; what is wanted for the first time waits behind all of them.
		for n := range relaxed {
			if !wasRefused[n] && place[f.entries[n]] >= size-(relaxed-room) {
				t.Errorf("agent %d, who waited, came after those who did not find room", n)
			}
		}
		for n := relaxed; n < size; n++ {
			if place[f.entries[n]] < urgent {
				t.Errorf("agent %d, who had nothing to lose, came before those who had", n)
			}
		}
	})
}

// Ten times what can be signed is asked for, for twenty seconds, by callers who give up
// after eight seconds and come again. All the while the issuer signs as much as it
// can, and nothing of that is for somebody who has gone.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			each    = 20 * time.Millisecond // fifty a second
			length  = 20 * time.Second
			clients = 100
		)
		gate := make(chan struct{})
		close(gate)
		w := newWorldInMemory(t, slow(each, gate), func(c *issuer.Config, _ *ca.Config) { c.SignWaiting = 80 })
		f := newFleet(t, w, clients, anHour)
		f.connect()
		before := len(w.signed())
		var offered, served, gone, refused atomic.Int64
		ctx, stop := context.WithTimeout(t.Context(), length)
		defer stop()
		var wg sync.WaitGroup
		for n := range clients {
			wg.Go(func() {
				for k := 0; ctx.Err() == nil; k++ {
					offered.Add(1)
					ask, cancel := context.WithTimeout(t.Context(), 8*time.Second)
					err := f.ask(admit.WithLife(ask, time.Duration(n+k)*time.Second), n)
					cancel()
					switch status.Code(err) {
					case codes.OK:
						served.Add(1)
					case codes.DeadlineExceeded:
						gone.Add(1)
					case codes.ResourceExhausted:
						refused.Add(1)
						time.Sleep(40 * time.Millisecond) // much sooner than it was told
					default:
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		signed := int64(len(w.signed()) - before)
		t.Logf("%d were asked for, %d signed: %d served, %d refused, %d gave up", offered.Load(), signed, served.Load(), refused.Load(), gone.Load())
		capacity := int64(length / each)
		if offered.Load() < 10*capacity {
			t.Fatalf("only %d were asked for where %d can be signed", offered.Load(), capacity)
		}
		if served.Load() < capacity*98/100 {
			t.Errorf("%d were served, of %d that could have been", served.Load(), capacity)
		}
		if wasted := signed - served.Load(); wasted > 0 {
			t.Errorf("%d were signed for somebody who had gone", wasted)
		}
	})
}

// What changes the registry has an order too: first what takes rights away, then
// renewals of what agents show, then agents that are new, then what
// administrators make.
func TestOrderOfWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gate atomic.Pointer[chan struct{}]
		w := newWorldInMemory(t, func(c *issuer.Config, _ *ca.Config) {
			emit := c.Emit
			c.Emit = func(ctx context.Context, act identity.Act) error {
				if g := gate.Load(); g != nil {
					<-*g
				}
				return emit(ctx, act)
			}
		})
		f := newFleet(t, w, 4, anHour)
		token := w.token("")
		f.connect()
		before := len(w.acts)
		closed := make(chan struct{})
		gate.Store(&closed)
		var wg sync.WaitGroup
		begin := func(do func()) {
			wg.Go(do)
			synctest.Wait()
		}
		renew := func(n int) func() {
			return func() {
				_, err := f.agents[n].agents().RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: f.csr}})
				must(t, err)
			}
		}
		begin(func() { w.create(entry("/svc/db", "/node/a", "uid:2")) }) // under way
		begin(func() { w.create(entry("/svc/web", "/node/a", "uid:1")) })
		begin(func() { w.join(token) })
		for n := range 3 {
			begin(renew(n))
		}
		begin(func() {
			_, err := w.agents().BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: id(f.agents[3].id.Path())})
			must(t, err)
		})
		close(closed)
		wg.Wait()
		var got []string
		for _, act := range w.acts[before:] {
			if act.Verb == "used" || act.Verb == "revoked" {
				continue // part of another
			}
			got = append(got, act.Verb+" "+strings.TrimPrefix(act.ObjectID, "spiffe://example.org/spire/agent/join_token/storm-0000"))
			if act.Verb == "attested" || act.Verb == "created" {
				got[len(got)-1] = act.Verb
			}
		}
		slices.Sort(got[2:5]) // they are one transaction
		if diff := cmp.Diff([]string{"created", "banned 3", "renewed 0", "renewed 1", "renewed 2", "attested", "created"}, got); diff != "" {
			t.Error(diff)
		}
	})
}

// An agent whose own SVID has time, but not what its workloads have, says so, and has
// its own renewed before those that have time.
func TestRenewsOwnInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const agents = 150 // more than share a transaction
		g := newGated(t, agents)
		shut := make(chan struct{})
		g.gate.Store(&shut)
		var wg sync.WaitGroup
		wg.Go(func() { g.create(entry("/svc/db", "/node/a", "uid:2")) }) // under way
		synctest.Wait()
		for n, a := range g.f.agents {
			ctx := t.Context()
			if n == agents-1 {
				ctx = admit.WithLife(ctx, time.Minute)
			}
			wg.Go(func() {
				_, err := a.agents().RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: g.f.csr}})
				must(t, err)
			})
			synctest.Wait()
		}
		close(shut)
		wg.Wait()
		place := slices.IndexFunc(g.did("agent", "renewed"), func(act identity.Act) bool { return act.ObjectID == g.f.agents[agents-1].id.String() })
		if place < 0 || place >= agents-20 {
			t.Errorf("it was number %d of %d", place, agents)
		}
	})
}

// stormLife is what agent n says of its request: of the urgent ones each later one has
// some more time, a minute at most, of the others half an hour or more.
func stormLife(ctx context.Context, n, urgent, relaxed int) context.Context {
	switch {
	case n < urgent:
		return admit.WithLife(ctx, 20*time.Second+time.Duration(n)*time.Second)
	case n < relaxed:
		return admit.WithLife(ctx, 24*time.Hour)
	}
	return admit.ForTheFirstTime(ctx)
}

func matching(a, b []string) (n int) {
	for i := range a {
		if a[i] == b[i] {
			n++
		}
	}
	return n
}

// memory is what the heap and the stacks take.
func memory() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// Peers that begin a handshake and do not go on keep nobody out, however many.
func TestSlowHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldInMemory(t)
		f := newFleet(t, w, 1, anHour)
		// The beginning of a record that says it is a ClientHello of 512 bytes.
		hello := []byte{22, 3, 1, 2, 0, 1, 0, 1, 252}
		for n := range 200 {
			conn, err := w.tcp.DialContext(t.Context())
			must(t, err)
			defer conn.Close()
			_, err = conn.Write(hello[:n%len(hello)])
			must(t, err)
		}
		synctest.Wait()
		begun := time.Now()
		must(t, f.ask(t.Context(), 0))
		if took := time.Since(begun); took > 0 {
			t.Errorf("it took %v", took)
		}
		time.Sleep(time.Minute) // they are ended
		synctest.Wait()
		for _, s := range w.issuer.Admission().Handshakes {
			if s.Waiting > 0 {
				t.Errorf("left: %+v", s)
			}
		}
	})
}
