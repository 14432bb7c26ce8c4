package sqlstore_test

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/testpki"
)

func domain(name string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString(name) }

func partnerBundle(t testing.TB, name string) registry.FederatedBundle {
	pki := testpki.New(t, name)
	return registry.FederatedBundle{
		TrustDomain: domain(name), X509Authorities: pki.Bundle().X509Authorities(),
		JWTAuthorities: []registry.JWTAuthority{{KeyID: "k1", PublicKey: []byte("key"), ExpiresAt: now.Add(time.Hour).Truncate(time.Second)}, {KeyID: "k2", PublicKey: []byte("other")}},
		RefreshHint:    5 * time.Minute, Sequence: 7,
	}
}

func TestFederationSurvivesRestart(t *testing.T) { onEach(t, testFederationSurvivesRestart) }

func testFederationSurvivesRestart(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	full := partnerBundle(t, "partner.org")
	empty := registry.FederatedBundle{TrustDomain: domain("revoked.org"), Sequence: 1}
	relation := registry.Relationship{TrustDomain: domain("partner.org"), EndpointURL: "https://partner.org/b?x=1", Profile: registry.HTTPSSPIFFE,
		EndpointID: spiffeid.RequireFromString("spiffe://partner.org/spire/server")}
	web := registry.Relationship{TrustDomain: domain("web.org"), EndpointURL: "https://web.org", Profile: registry.HTTPSWeb}
	update(t, s, func(tx *sqlstore.Tx) error {
		return errors.Join(tx.PutFederatedBundle(full), tx.PutFederatedBundle(empty), tx.PutRelationship(relation), tx.PutRelationship(web))
	})
	for name, store := range map[string]*sqlstore.Store{"now": s, "after restart": open(t, again())} {
		x := store.Index()
		for _, want := range []registry.FederatedBundle{full, empty} {
			if got := x.FederatedBundle(want.TrustDomain); got == nil || !got.Equal(&want) || got.Sequence != want.Sequence || got.RefreshHint != want.RefreshHint {
				t.Errorf("%s: bundle of %s is %+v", name, want.TrustDomain, got)
			}
		}
		got, _ := x.Relationships()
		if diff := cmp.Diff([]*registry.Relationship{&relation, &web}, got, cmp.AllowUnexported(spiffeid.ID{}, spiffeid.TrustDomain{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	before, _ := s.Index().Revision()
	update(t, s, func(tx *sqlstore.Tx) error { return tx.PutFederatedBundle(full) })
	if after, _ := s.Index().Revision(); after != before {
		t.Error("the same bundle again is a new revision")
	}
	_, changed := s.Index().Relationships()
	update(t, s, func(tx *sqlstore.Tx) error {
		return errors.Join(tx.DeleteFederatedBundle(domain("revoked.org")), tx.DeleteRelationship(domain("web.org")))
	})
	select {
	case <-changed:
	default:
		t.Error("nobody was told that a relationship ended")
	}
	x := open(t, again()).Index()
	if left, _ := x.Relationships(); len(left) != 1 || len(x.FederatedBundles()) != 1 {
		t.Errorf("left are %d relationships and %d bundles", len(left), len(x.FederatedBundles()))
	}
	err := s.Update(t.Context(), func(tx *sqlstore.Tx) error { return tx.DeleteFederatedBundle(domain("revoked.org")) })
	if !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestEntriesFederatingWith(t *testing.T) { onEach(t, testEntriesFederatingWith) }

func testEntriesFederatingWith(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	update(t, s, func(tx *sqlstore.Tx) error {
		for path, with := range map[string][]string{"/a": {"x_y.org", "z.org"}, "/b": {"xay.org"}, "/c": {"a.x_y.org"}, "/d": nil} {
			e := full()
			e.SPIFFEID, e.FederatesWith = spiffeid.RequireFromPath(domain("example.org"), path), with
			if _, err := tx.CreateEntry(e); err != nil {
				return err
			}
		}
		found, err := tx.EntriesFederatingWith(domain("x_y.org"))
		if err != nil || len(found) != 1 || found[0].SPIFFEID.Path() != "/a" {
			t.Errorf("found %v, %v", found, err)
		}
		return nil
	})
}

// A changed bundle wakes the agents whose entries federate with it, and no
// others, on every path by which an agent has an entry.
func TestBundleChangeWakesWhomItConcerns(t *testing.T) {
	onEach(t, testBundleChangeWakesWhomItConcerns)
}

func testBundleChangeWakesWhomItConcerns(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	a, b, c := path("/spire/agent/x/a"), path("/spire/agent/x/b"), path("/spire/agent/x/c")
	update(t, s, func(tx *sqlstore.Tx) error {
		for id, selectors := range map[spiffeid.ID][]registry.Selector{a: nil, b: {{Type: "n", Value: "1"}}, c: nil} {
			if err := tx.PutAgent(registry.Agent{ID: id, Selectors: selectors}); err != nil {
				return err
			}
		}
		for _, e := range []registry.Entry{
			{SPIFFEID: path("/1"), ParentID: a, FederatesWith: []string{"partner.org"}},
			{SPIFFEID: path("/node"), ParentID: path("/spire/server"), Selectors: []registry.Selector{{Type: "n", Value: "1"}}},
			{SPIFFEID: path("/2"), ParentID: path("/node"), FederatesWith: []string{"partner.org"}},
			{SPIFFEID: path("/3"), ParentID: c, FederatesWith: []string{"other.org"}},
		} {
			if len(e.Selectors) == 0 {
				e.Selectors = []registry.Selector{{Type: "unix", Value: "uid:1"}}
			}
			if _, err := tx.CreateEntry(e); err != nil {
				return err
			}
		}
		return nil
	})
	watches := map[string]*registry.Watch{"a": s.Index().Watch(a), "b": s.Index().Watch(b), "c": s.Index().Watch(c)}
	woken := func(doing string, want ...string) {
		t.Helper()
		var got []string
		for _, name := range []string{"a", "b", "c"} {
			select {
			case <-watches[name].C():
				got = append(got, name)
			default:
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", doing, diff)
		}
	}
	bundle := partnerBundle(t, "partner.org")
	update(t, s, func(tx *sqlstore.Tx) error { return tx.PutFederatedBundle(bundle) })
	woken("created", "a", "b")
	update(t, s, func(tx *sqlstore.Tx) error { return tx.PutFederatedBundle(bundle) })
	woken("not changed")
	bundle.JWTAuthorities = nil
	update(t, s, func(tx *sqlstore.Tx) error { return tx.PutFederatedBundle(bundle) })
	woken("updated", "a", "b")
	update(t, s, func(tx *sqlstore.Tx) error { return tx.DeleteFederatedBundle(bundle.TrustDomain) })
	woken("deleted", "a", "b")
}
