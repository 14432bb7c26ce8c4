package registry_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

// Whatever changes, entries, agents or the time, a Holding says what Authorized
// does: what was remembered is forgotten in time.
func TestHoldingAgreesWithAuthorized(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 300 {
		names := []spiffeid.ID{path("/a"), path("/b"), path("/c"), path("/d")}
		parents := append(slices.Clone(names), agentID(0), agentID(1), issuer)
		random := func(id string) *registry.Entry {
			e := &registry.Entry{ID: id, SPIFFEID: names[rng.IntN(len(names))], ParentID: parents[rng.IntN(len(parents))], Selectors: sel([]string{"p", "q"}[rng.IntN(2)])}
			if rng.IntN(4) == 0 {
				e.ExpiresAt = now.Add(time.Duration(rng.IntN(10)) * time.Second)
			}
			if rng.IntN(3) == 0 {
				e.FederatesWith = []string{"b.org", "a.org"}[:1+rng.IntN(2)]
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
		agents := map[spiffeid.ID]*registry.Agent{agentID(0): {ID: agentID(0), Selectors: sel("p")}, agentID(1): {ID: agentID(1), Selectors: sel("p", "q")}}
		x := registry.NewIndex(1, list, []*registry.Agent{agents[agentID(0)], agents[agentID(1)]})
		at := now
		for step := range 12 {
			for id := range agents {
				want := registry.HoldingOf(x.Authorized(id, at))
				got := x.Holding(id, at)
				if got.Digest != want.Digest || !slices.Equal(got.FederatesWith, want.FederatesWith) {
					t.Fatalf("round %d step %d: agent %s: remembered %+v, is %+v", round, step, id, got, want)
				}
			}
			change := registry.Change{Revision: uint64(step + 2)}
			switch rng.IntN(6) {
			case 0:
				at = at.Add(time.Duration(rng.IntN(4)) * time.Second)
				continue
			case 1:
				at = at.Add(-time.Second) // clocks are set, too
				continue
			case 2:
				id := agentID(rng.IntN(2))
				next := *agents[id]
				switch rng.IntN(3) {
				case 0:
					next.Banned = !next.Banned
				case 1:
					next.Selectors = sel([]string{"p", "q"}[rng.IntN(2)])
				case 2:
					next.Serial += "1"
				}
				change.Agents = []registry.AgentChange{{Old: agents[id], New: &next}}
				agents[id] = &next
			case 3:
				all := make([]*registry.Entry, 0, len(entries))
				for id, e := range entries {
					if rng.IntN(3) == 0 {
						delete(entries, id)
					} else {
						all = append(all, e)
					}
				}
				x.Reload(change.Revision, all, []*registry.Agent{agents[agentID(0)], agents[agentID(1)]})
				continue
			default:
				id := fmt.Sprint(rng.IntN(10))
				c := registry.EntryChange{Old: entries[id]}
				if c.Old == nil || rng.IntN(2) == 0 {
					c.New = random(id)
					entries[id] = c.New
				} else {
					delete(entries, id)
				}
				change.Entries = []registry.EntryChange{c}
			}
			x.Apply(change)
		}
	}
}

// A renewal touches nobody's entries, so it costs nobody a new look at them.
func TestHoldingOutlivesRenewals(t *testing.T) {
	a := &registry.Agent{ID: agentID(0), Serial: "1"}
	x := registry.NewIndex(1, nil, []*registry.Agent{a})
	before := x.Holding(a.ID, now)
	renewed := *a
	renewed.NewSerial = "2"
	x.Apply(registry.Change{Revision: 2, Agents: []registry.AgentChange{{Old: a, New: &renewed}}})
	if x.Holding(a.ID, now) != before {
		t.Error("made again for a renewal")
	}
	// Nor may somebody who is no agent make the index remember anything.
	if first := x.Holding(agentID(9), now); x.Holding(agentID(9), now) == first {
		t.Error("remembered for an agent that is not known")
	}
}

// Each field of an entry is in its tag.
func TestTag(t *testing.T) {
	base := registry.Entry{
		ID: "i", SPIFFEID: path("/a"), ParentID: path("/b"), Selectors: sel("1"), X509SVIDTTL: time.Second, JWTSVIDTTL: 2 * time.Second,
		FederatesWith: []string{"f"}, DNSNames: []string{"d"}, Hint: "h", ExpiresAt: now, RevisionNumber: 7, CreatedAt: now,
	}
	other := registry.Entry{
		ID: "j", SPIFFEID: path("/c"), ParentID: path("/d"), Selectors: sel("2"), X509SVIDTTL: 3, JWTSVIDTTL: 4,
		FederatesWith: []string{"g"}, DNSNames: []string{"e"}, Admin: true, Downstream: true, StoreSVID: true, Hint: "k",
		ExpiresAt: now.Add(time.Second), RevisionNumber: 8, CreatedAt: now.Add(time.Second),
	}
	tags := map[[registry.TagSize]byte]string{base.Tag(): "nothing"}
	for n := range reflect.TypeFor[registry.Entry]().NumField() {
		name := reflect.TypeFor[registry.Entry]().Field(n).Name
		changed := base
		value := reflect.ValueOf(&changed).Elem().Field(n)
		if cmp.Equal(value.Interface(), reflect.ValueOf(other).Field(n).Interface(), cmp.AllowUnexported(spiffeid.ID{})) {
			t.Fatalf("%s: nothing to change it to", name)
		}
		value.Set(reflect.ValueOf(other).Field(n))
		if same, ok := tags[changed.Tag()]; ok {
			t.Errorf("a change of %s has the tag of a change of %s", name, same)
		}
		tags[changed.Tag()] = name
	}
}

func BenchmarkHolding(b *testing.B) {
	for _, size := range []int{20, 1000} {
		var entries []*registry.Entry
		for n := range size {
			entries = append(entries, &registry.Entry{ID: fmt.Sprintf("%08x-0000-4000-8000-000000000000", n), SPIFFEID: path(fmt.Sprintf("/svc/%d", n)), ParentID: agentID(0), Selectors: sel("x")})
		}
		x := registry.NewIndex(1, entries, []*registry.Agent{{ID: agentID(0)}})
		b.Run(fmt.Sprintf("first/%d", size), func(b *testing.B) {
			for b.Loop() {
				registry.HoldingOf(x.Authorized(agentID(0), now))
			}
		})
		b.Run(fmt.Sprintf("again/%d", size), func(b *testing.B) {
			for b.Loop() {
				x.Holding(agentID(0), now)
			}
		})
	}
}
