package registry_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

var (
	td     = spiffeid.RequireTrustDomainFromString("example.org")
	issuer = path("/spire/server")
	now    = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

func path(p string) spiffeid.ID { return spiffeid.RequireFromPath(td, p) }

func agentID(n int) spiffeid.ID { return path(fmt.Sprintf("/spire/agent/join_token/t%d", n)) }

func sel(values ...string) []registry.Selector {
	var list []registry.Selector
	for _, v := range values {
		list = append(list, registry.Selector{Type: "k", Value: v})
	}
	return list
}

func ids(entries []*registry.Entry) []string {
	var list []string
	for _, e := range entries {
		list = append(list, e.ID)
	}
	return list
}

func TestAuthorized(t *testing.T) {
	entries := []*registry.Entry{
		{ID: "1-direct", SPIFFEID: path("/a"), ParentID: agentID(0), Selectors: sel("x")},
		{ID: "2-nested", SPIFFEID: path("/a/b"), ParentID: path("/a"), Selectors: sel("x")},
		{ID: "3-other", SPIFFEID: path("/c"), ParentID: agentID(1), Selectors: sel("x")},
		{ID: "4-node", SPIFFEID: path("/node"), ParentID: issuer, Selectors: sel("n1", "n2")},
		{ID: "5-on-node", SPIFFEID: path("/d"), ParentID: path("/node"), Selectors: sel("x")},
		{ID: "6-node-more", SPIFFEID: path("/node2"), ParentID: issuer, Selectors: sel("n1", "n2", "n3")},
		{ID: "7-on-node2", SPIFFEID: path("/e"), ParentID: path("/node2"), Selectors: sel("x")},
		{ID: "8-expired", SPIFFEID: path("/f"), ParentID: agentID(0), Selectors: sel("x"), ExpiresAt: now},
		{ID: "9-below-expired", SPIFFEID: path("/g"), ParentID: path("/f"), Selectors: sel("x")},
		{ID: "A-cycle", SPIFFEID: path("/h"), ParentID: path("/i"), Selectors: sel("x")},
		{ID: "B-cycle", SPIFFEID: path("/i"), ParentID: path("/h"), Selectors: sel("x")},
		{ID: "C-into-cycle", SPIFFEID: path("/h"), ParentID: agentID(2), Selectors: sel("x")},
		{ID: "D-named", SPIFFEID: path("/j"), ParentID: issuer, Selectors: []registry.Selector{registry.AliasSelector(agentID(1))}},
	}
	agents := []*registry.Agent{
		{ID: agentID(0)},
		{ID: agentID(1), Selectors: sel("n1", "n2", "z")},
		{ID: agentID(2)},
		{ID: agentID(3), Selectors: sel("n1", "n2", "n3"), Banned: true},
	}
	x := registry.NewIndex(1, entries, agents)
	for n, want := range map[int][]string{
		0: {"1-direct", "2-nested"},
		1: {"3-other", "4-node", "5-on-node", "D-named"},
		2: {"A-cycle", "B-cycle", "C-into-cycle"},
		3: nil,
		9: nil,
	} {
		if diff := cmp.Diff(want, ids(x.Authorized(agentID(n), now))); diff != "" {
			t.Errorf("agent %d: %s", n, diff)
		}
	}
}

// The walk up from one entry and the way down from the agent must agree, on
// any tree, cycles and all, before and after any change.
func TestLookupAgreesWithAuthorized(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		names := []spiffeid.ID{path("/a"), path("/b"), path("/c"), path("/d"), path("/e")}
		parents := append(slices.Clone(names), agentID(0), agentID(1), issuer)
		random := func(id string) *registry.Entry {
			e := &registry.Entry{ID: id, SPIFFEID: names[rng.IntN(len(names))], ParentID: parents[rng.IntN(len(parents))], Selectors: sel([]string{"p", "q"}[rng.IntN(2)])}
			if rng.IntN(8) == 0 {
				e.ExpiresAt = now
			}
			return e
		}
		entries := map[string]*registry.Entry{}
		var list []*registry.Entry
		for n := range 8 {
			e := random(fmt.Sprint(n))
			entries[e.ID] = e
			list = append(list, e)
		}
		agents := []*registry.Agent{{ID: agentID(0), Selectors: sel("p")}, {ID: agentID(1), Selectors: sel("p", "q")}}
		x := registry.NewIndex(1, list, agents)
		for step := range 6 {
			watches := map[spiffeid.ID]*registry.Watch{}
			before := map[spiffeid.ID][]*registry.Entry{}
			for _, a := range agents {
				all := x.Authorized(a.ID, now)
				before[a.ID] = all
				watches[a.ID] = x.Watch(a.ID)
				for id := range entries {
					inList := slices.ContainsFunc(all, func(e *registry.Entry) bool { return e.ID == id })
					if found := x.Lookup(a.ID, id, now) != nil; found != inList {
						t.Fatalf("round %d step %d: entry %s, agent %s: lookup %v, list %v", round, step, id, a.ID, found, inList)
					}
				}
			}
			var changes []registry.EntryChange
			for range 1 + rng.IntN(3) {
				id := fmt.Sprint(rng.IntN(10))
				if slices.ContainsFunc(changes, func(c registry.EntryChange) bool {
					return c.Old != nil && c.Old.ID == id || c.New != nil && c.New.ID == id
				}) {
					continue
				}
				c := registry.EntryChange{Old: entries[id]}
				if c.Old == nil || rng.IntN(2) == 0 {
					c.New = random(id)
					entries[id] = c.New
				} else {
					delete(entries, id)
				}
				changes = append(changes, c)
			}
			x.Apply(registry.Change{Revision: uint64(step + 2), Entries: changes})
			for _, a := range agents {
				told := false
				select {
				case <-watches[a.ID].C():
					told = true
				default:
				}
				watches[a.ID].Close()
				// Entries are compared by identity: a new form is a change.
				if !slices.Equal(before[a.ID], x.Authorized(a.ID, now)) && !told {
					t.Fatalf("round %d step %d: agent %s was not told of its change", round, step, a.ID)
				}
			}
		}
	}
}

func TestWatchTellsOnlyThoseTouched(t *testing.T) {
	alias := &registry.Entry{ID: "alias", SPIFFEID: path("/node"), ParentID: agentID(0), Selectors: []registry.Selector{registry.AliasSelector(agentID(0))}}
	x := registry.NewIndex(1, []*registry.Entry{alias}, []*registry.Agent{{ID: agentID(0)}, {ID: agentID(1)}, {ID: agentID(2), Selectors: sel("gpu")}})
	watches := []*registry.Watch{x.Watch(agentID(0)), x.Watch(agentID(1)), x.Watch(agentID(2))}
	revision := uint64(1)
	apply := func(c registry.Change) []int {
		revision++
		c.Revision = revision
		_, changed := x.Revision()
		x.Apply(c)
		select {
		case <-changed:
		default:
			t.Error("the general signal is missing")
		}
		var told []int
		for n, w := range watches {
			select {
			case <-w.C():
				told = append(told, n)
			default:
			}
		}
		return told
	}
	below := &registry.Entry{ID: "below", SPIFFEID: path("/svc"), ParentID: path("/node"), Selectors: sel("x")}
	gpu := &registry.Entry{ID: "gpu", SPIFFEID: path("/gpu"), ParentID: issuer, Selectors: sel("gpu")}
	moved := &registry.Entry{ID: "below", SPIFFEID: path("/svc"), ParentID: agentID(1), Selectors: sel("x")}
	for _, c := range []struct {
		name   string
		change registry.Change
		want   []int
	}{
		{"entry below an alias", registry.Change{Entries: []registry.EntryChange{{New: below}}}, []int{0}},
		{"moved to another agent", registry.Change{Entries: []registry.EntryChange{{Old: below, New: moved}}}, []int{0, 1}},
		{"node entry by selector", registry.Change{Entries: []registry.EntryChange{{New: gpu}}}, []int{2}},
		{"agent banned", registry.Change{Agents: []registry.AgentChange{{New: &registry.Agent{ID: agentID(1), Banned: true}}}}, []int{1}},
		{"agent gone", registry.Change{Agents: []registry.AgentChange{{Old: &registry.Agent{ID: agentID(1)}}}}, []int{1}},
		{"alias gone", registry.Change{Entries: []registry.EntryChange{{Old: alias}}}, []int{0}},
		{"nobody's entry", registry.Change{Entries: []registry.EntryChange{{New: below, Old: moved}}}, []int{1}},
	} {
		if diff := cmp.Diff(c.want, apply(c.change)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestSimilarity(t *testing.T) {
	base := func() registry.Entry {
		return registry.Entry{SPIFFEID: path("/a"), ParentID: path("/b"), Selectors: sel("1", "2")}
	}
	same := base()
	same.ID, same.Hint, same.Selectors = "x", "y", sel("2", "1", "2")
	same.Normalize()
	b := base()
	if same.Similarity() != b.Similarity() {
		t.Error("order and doubles of selectors matter")
	}
	for name, change := range map[string]func(*registry.Entry){
		"id":        func(e *registry.Entry) { e.SPIFFEID = path("/c") },
		"parent":    func(e *registry.Entry) { e.ParentID = path("/c") },
		"selectors": func(e *registry.Entry) { e.Selectors = sel("1") },
		"split": func(e *registry.Entry) {
			e.Selectors = []registry.Selector{{Type: "k1", Value: ""}, {Type: "k", Value: "2"}}
		},
	} {
		e := base()
		change(&e)
		if e.Similarity() == b.Similarity() {
			t.Errorf("%s does not matter", name)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	var entries []*registry.Entry
	for n := range 10_000 {
		entries = append(entries, &registry.Entry{ID: fmt.Sprint(n), SPIFFEID: path(fmt.Sprintf("/svc/%d", n)), ParentID: path(fmt.Sprintf("/node/%d", n%100)), Selectors: sel("x")})
	}
	var agents []*registry.Agent
	for n := range 100 {
		agents = append(agents, &registry.Agent{ID: agentID(n)})
		entries = append(entries, &registry.Entry{ID: fmt.Sprintf("alias%d", n), SPIFFEID: path(fmt.Sprintf("/node/%d", n)), ParentID: agentID(n), Selectors: []registry.Selector{registry.AliasSelector(agentID(n))}})
	}
	x := registry.NewIndex(1, entries, agents)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if x.Lookup(agentID(7), "107", now) == nil {
			b.Fatal("not authorized")
		}
	}
}
