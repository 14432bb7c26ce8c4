package registry_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/template"
)

func tmpl(t testing.TB, id string, parent spiffeid.ID, federates ...string) *registry.Template {
	t.Helper()
	p, err := template.ParseSPIFFEID(td, "spiffe://example.org/user/{unix:user}")
	if err != nil {
		t.Fatal(err)
	}
	return &registry.Template{ID: id, Rule: template.Rule{SPIFFEID: p}, ParentID: parent, FederatesWith: federates}
}

func templateIDs(list []*registry.Template) []string {
	var ids []string
	for _, t := range list {
		ids = append(ids, t.ID)
	}
	return ids
}

func TestAuthorizedTemplates(t *testing.T) {
	x := registry.NewIndex(1, []*registry.Entry{
		{ID: "node", SPIFFEID: path("/node"), ParentID: issuer, Selectors: sel("n1")},
		{ID: "on-node", SPIFFEID: path("/a"), ParentID: path("/node"), Selectors: sel("x")},
		{ID: "expired", SPIFFEID: path("/f"), ParentID: agentID(0), Selectors: sel("x"), ExpiresAt: now},
		{ID: "cycle", SPIFFEID: path("/h"), ParentID: path("/i"), Selectors: sel("x")},
		{ID: "cycle2", SPIFFEID: path("/i"), ParentID: path("/h"), Selectors: sel("x")},
	}, []*registry.Agent{{ID: agentID(0)}, {ID: agentID(1), Selectors: sel("n1")}, {ID: agentID(2), Selectors: sel("n1"), Banned: true}})
	x.LoadTemplates([]*registry.Template{
		tmpl(t, "direct", agentID(0)), tmpl(t, "alias", path("/node")), tmpl(t, "deeper", path("/a")), tmpl(t, "below-expired", path("/f")),
		tmpl(t, "lost", path("/nobody")), tmpl(t, "cycle", path("/h")),
		// None of them may be made; they are for nobody all the same.
		tmpl(t, "issuer", issuer), tmpl(t, "below a template", path("/user/x")),
	})
	for n, want := range map[int][]string{0: {"direct"}, 1: {"alias", "deeper"}, 2: nil, 9: nil} {
		got := x.AuthorizedTemplates(agentID(n), now)
		if diff := cmp.Diff(want, templateIDs(got)); diff != "" {
			t.Errorf("agent %d: %s", n, diff)
		}
		for _, all := range x.Templates() {
			if found, _ := x.LookupTemplate(agentID(n), all.ID, now); (found != nil) != slices.Contains(want, all.ID) {
				t.Errorf("agent %d: look-up of %s disagrees with the list", n, all.ID)
			}
		}
	}
	if got := templateIDs(x.AuthorizedTemplates(agentID(1), now)); len(x.Authorized(agentID(1), now)) != 2 || len(got) != 2 {
		t.Error("templates and entries are mixed")
	}
}

// Whatever changes, whoever's templates are others than before is told.
func TestWatchOfTemplates(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 200 {
		var agents []*registry.Agent
		for n := range 4 {
			agents = append(agents, &registry.Agent{ID: agentID(n), Selectors: sel(fmt.Sprint("n", n%2))})
		}
		x := registry.NewIndex(1, nil, agents)
		parents := []spiffeid.ID{agentID(0), agentID(1), path("/p0"), path("/p1"), path("/p2"), path("/none")}
		state := func(a spiffeid.ID) (list []any) {
			for _, m := range x.AuthorizedTemplates(a, now) {
				list = append(list, m)
				for _, name := range m.FederatesWith {
					list = append(list, x.FederatedBundle(spiffeid.RequireTrustDomainFromString(name)))
				}
			}
			return list
		}
		for step := range 12 {
			before := map[spiffeid.ID][]any{}
			watches := map[spiffeid.ID]*registry.Watch{}
			for _, a := range agents {
				before[a.ID] = state(a.ID)
				watches[a.ID] = x.Watch(a.ID)
			}
			change := registry.Change{Revision: uint64(step + 2)}
			switch rng.IntN(4) {
			case 0, 1:
				id := fmt.Sprint("t", rng.IntN(4))
				c := registry.TemplateChange{Old: x.Template(id)}
				if c.Old == nil || rng.IntN(2) == 0 {
					c.New = tmpl(t, id, parents[rng.IntN(len(parents))], "other.org")
				}
				change.Templates = append(change.Templates, c)
			case 2:
				id := fmt.Sprint("e", rng.IntN(3))
				c := registry.EntryChange{Old: x.Entry(id)}
				if c.Old == nil || rng.IntN(2) == 0 {
					c.New = &registry.Entry{ID: id, SPIFFEID: path(fmt.Sprint("/p", rng.IntN(3))), ParentID: append(parents, issuer)[rng.IntN(7)], Selectors: sel("n0")}
				}
				change.Entries = append(change.Entries, c)
			case 3:
				other := spiffeid.RequireTrustDomainFromString("other.org")
				change.Bundles = append(change.Bundles, registry.BundleChange{Old: x.FederatedBundle(other), New: &registry.FederatedBundle{TrustDomain: other, Sequence: uint64(step)}})
			}
			x.Apply(change)
			for _, a := range agents {
				told := false
				select {
				case <-watches[a.ID].C():
					told = true
				default:
				}
				watches[a.ID].Close()
				if !slices.Equal(before[a.ID], state(a.ID)) && !told {
					t.Fatalf("round %d step %d: agent %s was not told of its change", round, step, a.ID)
				}
			}
		}
	}
}
