package issuer_test

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/held"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/watchv1"
)

// holder is what an agent holds: the protocol from its side.
type holder struct {
	t         *testing.T
	entries   map[string]*watchv1.Changed
	bundle    *watchv1.Bundle
	federated map[string]*watchv1.Bundle
	revision  uint64
}

func newHolder(t *testing.T) *holder {
	return &holder{t: t, entries: map[string]*watchv1.Changed{}, federated: map[string]*watchv1.Bundle{}}
}

func (h *holder) held() (list []*watchv1.Held, digest []byte) {
	sum := held.NewSum()
	for _, id := range slices.Sorted(maps.Keys(h.entries)) {
		list = append(list, &watchv1.Held{Id: id, Tag: h.entries[id].Tag})
		sum.Add(id, h.entries[id].Tag)
	}
	d := sum.Digest()
	return list, d[:]
}

// ask returns all messages of a reply.
func (h *holder) ask(a *agent, listed bool) (replies []*watchv1.SyncReply) {
	h.t.Helper()
	list, digest := h.held()
	req := &watchv1.SyncRequest{Revision: h.revision, Digest: digest, Bundle: h.bundle.GetTag(), Federated: map[string][]byte{}, Listed: listed}
	if listed {
		req.Held = list
	}
	for name, b := range h.federated {
		req.Federated[name] = b.Tag
	}
	stream, err := a.watch().Sync(h.t.Context(), req)
	must(h.t, err)
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		}
		must(h.t, err)
		replies = append(replies, r)
	}
	for n, r := range replies {
		if r.More != (n < len(replies)-1) || len(r.Changed)+len(r.Gone)+len(r.Federated) > 501 {
			h.t.Fatalf("message %d of %d: more %v, %d items", n, len(replies), r.More, len(r.Changed)+len(r.Gone)+len(r.Federated))
		}
	}
	return replies
}

// sync takes over what was missed, and says what that was.
func (h *holder) sync(a *agent) (changed, gone, federated []string) {
	h.t.Helper()
	replies := h.ask(a, false)
	if replies[0].Differs {
		r := replies[0]
		if len(replies) != 1 || len(r.Changed)+len(r.Gone)+len(r.Federated) > 0 {
			h.t.Fatalf("more than that they differ: %v", replies)
		}
		h.take(r)
		replies = h.ask(a, true)
	}
	for _, r := range replies {
		h.take(r)
		for _, c := range r.Changed {
			changed = append(changed, c.Entry.Id)
		}
		gone = append(gone, r.Gone...)
		for _, b := range r.Federated {
			federated = append(federated, b.TrustDomain)
		}
	}
	if _, digest := h.held(); string(digest) != string(replies[0].Digest) {
		h.t.Fatal("what is held now does not have the digest that was named")
	}
	return changed, gone, federated
}

func (h *holder) take(r *watchv1.SyncReply) {
	if r.Bundle != nil {
		h.bundle = r.Bundle
	}
	h.revision = r.Revision
	for _, c := range r.Changed {
		h.entries[c.Entry.Id] = c
	}
	for _, id := range r.Gone {
		delete(h.entries, id)
	}
	for _, b := range r.Federated {
		if b.Bundle == nil {
			delete(h.federated, b.TrustDomain)
		} else {
			h.federated[b.TrustDomain] = b
		}
	}
}

// wantCurrent compares with SPIRE's way.
func (h *holder) wantCurrent(a *agent) {
	h.t.Helper()
	resp, err := a.entries().GetAuthorizedEntries(h.t.Context(), &entryv1.GetAuthorizedEntriesRequest{OutputMask: &types.EntryMask{
		SpiffeId: true, Selectors: true, FederatesWith: true, RevisionNumber: true, StoreSvid: true, Hint: true, CreatedAt: true,
	}})
	must(h.t, err)
	want, got := map[string]*types.Entry{}, map[string]*types.Entry{}
	for _, e := range resp.Entries {
		want[e.Id] = e
	}
	for id, c := range h.entries {
		got[id] = c.Entry
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		h.t.Error(diff)
	}
}

func wantMissed(t *testing.T, what string, got, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(got))); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func TestSyncTellsWhatWasMissed(t *testing.T) {
	w := newWorld(t, func(c *issuer.Config, a *ca.Config) { a.Life, c.AgentSVIDLife = 4*time.Hour, 3*time.Hour })
	a := w.join(w.token("/node/a"))
	list, err := a.entries().GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	must(t, err)
	alias := list.Entries[0].Id
	one := w.create(entry("/svc/1", "/node/a", "uid:1"))[0]
	two := w.create(entry("/svc/2", "/node/a", "uid:2"))[0]
	w.create(entry("/svc/other", "/node/b", "uid:1"))
	h := newHolder(t)
	changed, gone, _ := h.sync(a)
	wantMissed(t, "at first", changed, slices.Sorted(slices.Values([]string{alias, one.Id, two.Id})))
	wantMissed(t, "at first, gone", gone, nil)
	h.wantCurrent(a)
	if h.bundle == nil {
		t.Fatal("no bundle")
	}

	// Nothing was missed: one message that says so, without the bundle.
	replies := h.ask(a, false)
	if r := replies[0]; len(replies) != 1 || r.Differs || r.Bundle != nil || len(r.Changed)+len(r.Gone)+len(r.Federated) > 0 {
		t.Fatalf("got %v", replies)
	}

	// A change of somebody else's is none.
	w.create(entry("/svc/more", "/node/b", "uid:1"))
	if r := h.ask(a, false)[0]; r.Differs {
		t.Error("differs by what is another agent's")
	}

	three := w.create(entry("/svc/3", "/node/a", "uid:3"))[0]
	one.Hint = "h"
	updated, err := w.entries().BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{one}})
	must(t, err)
	if updated.Results[0].Status.Code != 0 {
		t.Fatal(updated.Results[0].Status)
	}
	w.deleteEntry(two.Id)
	changed, gone, _ = h.sync(a)
	wantMissed(t, "changed", changed, slices.Sorted(slices.Values([]string{one.Id, three.Id})))
	wantMissed(t, "gone", gone, []string{two.Id})
	h.wantCurrent(a)

	// Made again under the same name: another entry.
	w.deleteEntry(three.Id)
	again := w.create(entry("/svc/3", "/node/a", "uid:3"))[0]
	changed, gone, _ = h.sync(a)
	wantMissed(t, "made again", changed, []string{again.Id})
	wantMissed(t, "made again, gone", gone, []string{three.Id})

	// What is taken away by an entry above goes as well.
	w.deleteEntry(alias)
	changed, gone, _ = h.sync(a)
	wantMissed(t, "nothing left", changed, nil)
	wantMissed(t, "without the alias", gone, slices.Sorted(slices.Values([]string{alias, one.Id, again.Id})))
	h.wantCurrent(a)

	// The bundle comes with a reply of any kind, and without entries.
	before := h.bundle
	w.clock.advance(2 * time.Hour)
	must(t, w.ca.Rotate(t.Context()))
	h.sync(a)
	if string(h.bundle.Tag) == string(before.Tag) || h.bundle.Bundle.SequenceNumber <= before.Bundle.SequenceNumber {
		t.Error("the new bundle was not sent")
	}
	b, err := a.bundles().GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	must(t, err)
	if diff := cmp.Diff(b, h.bundle.Bundle, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// An entry that expires is gone, though nobody changed anything.
func TestSyncTellsOfExpiry(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	e := entry("/svc/1", "/node/a", "uid:1")
	e.ExpiresAt = w.clock.now().Add(time.Minute).Unix()
	made := w.create(e)[0]
	h := newHolder(t)
	h.sync(a)
	if h.ask(a, false)[0].Differs {
		t.Fatal("differs at once")
	}
	w.clock.advance(2 * time.Minute)
	changed, gone, _ := h.sync(a)
	wantMissed(t, "changed", changed, nil)
	wantMissed(t, "gone", gone, []string{made.Id})
}

// Long lists come in pages, and an issuer that has begun anew answers as the one
// before did.
func TestSyncPagesAndRestart(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	var made []*types.Entry
	for n := range 3 {
		var batch []*types.Entry
		for k := range 400 {
			batch = append(batch, entry(fmt.Sprintf("/svc/%d-%d", n, k), "/node/a", "uid:1"))
		}
		made = append(made, w.create(batch...)...)
	}
	h := newHolder(t)
	if changed, _, _ := h.sync(a); len(changed) != 1201 {
		t.Fatalf("%d entries, want 1,200 and the alias", len(changed))
	}
	h.wantCurrent(a)
	w.end()
	w.begin()
	a.conn.Close()
	a.conn = w.dial(a)
	if r := h.ask(a, false)[0]; r.Differs || r.Bundle != nil {
		t.Errorf("nothing was missed, and the issuer says %v", r)
	}
	var ids []string
	for _, e := range made[100:900] {
		ids = append(ids, e.Id)
	}
	for batch := range slices.Chunk(ids, 400) {
		resp, err := w.entries().BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: batch})
		must(t, err)
		if resp.Results[0].Status.Code != 0 {
			t.Fatal(resp.Results[0].Status)
		}
	}
	changed, gone, _ := h.sync(a)
	if len(changed) != 0 || len(gone) != 800 {
		t.Errorf("%d changed and %d gone, want none and 800", len(changed), len(gone))
	}
	h.wantCurrent(a)
}

func TestSyncOfFederatedBundles(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	one, two := foreignBundle(t, "one.org"), foreignBundle(t, "two.org")
	w.setBundles(one, two, foreignBundle(t, "three.org"))
	e := entry("/svc/web", "/node/a", "uid:1")
	e.FederatesWith = []string{"one.org", "two.org", "three.org"}
	made := w.create(e)[0]
	must(t, w.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
		return tx.DeleteFederatedBundle(spiffeid.RequireTrustDomainFromString("three.org"))
	}))
	h := newHolder(t)
	_, _, federated := h.sync(a)
	wantMissed(t, "at first", federated, []string{"one.org", "two.org"})
	if diff := cmp.Diff(two, h.federated["two.org"].Bundle, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	_, _, federated = h.sync(a)
	wantMissed(t, "nothing new", federated, nil)
	next := foreignBundle(t, "one.org")
	next.SequenceNumber = 4
	w.setBundles(next)
	_, _, federated = h.sync(a)
	wantMissed(t, "another bundle", federated, []string{"one.org"})
	if h.federated["one.org"].Bundle.SequenceNumber != 4 {
		t.Error("not the new one")
	}
	_, err := w.bundles().BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{"two.org"}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE})
	must(t, err)
	changed, _, federated := h.sync(a)
	wantMissed(t, "dissociated", changed, []string{made.Id})
	wantMissed(t, "dissociated, bundles", federated, nil)
	// What the agent claims to hold of a domain without a bundle is taken away.
	h.federated["three.org"] = &watchv1.Bundle{TrustDomain: "three.org", Tag: []byte("x"), Bundle: one}
	_, _, federated = h.sync(a)
	wantMissed(t, "not there", federated, []string{"three.org"})
	if h.federated["three.org"] != nil {
		t.Error("it stayed")
	}
}
