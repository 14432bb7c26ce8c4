package issuer_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestEntryRoundTrip(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.setBundles(foreignBundle(t, "other.org"))
	want := &types.Entry{
		SpiffeId: id("/svc/web"), ParentId: id("/node/a"),
		Selectors:   []*types.Selector{{Type: "k8s", Value: "ns:a:b"}, {Type: "unix", Value: "uid:1"}},
		X509SvidTtl: 60, JwtSvidTtl: 30, FederatesWith: []string{"other.org"}, Admin: true, Downstream: true,
		ExpiresAt: time.Now().Add(time.Hour).Unix(), DnsNames: []string{"web", "web.example.org"}, StoreSvid: true, Hint: "internal",
	}
	made := w.create(want)[0]
	if made.Id == "" || made.RevisionNumber == 0 || made.CreatedAt == 0 {
		t.Errorf("made as %v", made)
	}
	ignore := protocmp.IgnoreFields(&types.Entry{}, "id", "revision_number", "created_at")
	if diff := cmp.Diff(want, made, protocmp.Transform(), ignore); diff != "" {
		t.Error(diff)
	}
	got, err := w.entries().GetEntry(ctx, &entryv1.GetEntryRequest{Id: made.Id})
	must(t, err)
	if diff := cmp.Diff(made, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	masked, err := w.entries().GetEntry(ctx, &entryv1.GetEntryRequest{Id: made.Id, OutputMask: &types.EntryMask{Hint: true}})
	must(t, err)
	if diff := cmp.Diff(&types.Entry{Id: made.Id, Hint: "internal"}, masked, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	_, err = w.entries().GetEntry(ctx, &entryv1.GetEntryRequest{Id: "no-such"})
	wantCode(t, err, codes.NotFound)
	_, err = w.entries().GetEntry(ctx, &entryv1.GetEntryRequest{})
	wantCode(t, err, codes.InvalidArgument)
}

// One result per item, each with a status, whatever the item.
func TestBatchCreate(t *testing.T) {
	w := newWorld(t)
	first := w.create(entry("/svc/web", "/node/a", "uid:1", "gid:1"))[0]
	// As the controller-manager probes: the same entry with other details.
	probe := entry("/svc/web", "/node/a", "gid:1", "uid:1")
	probe.StoreSvid, probe.Hint, probe.JwtSvidTtl = true, "probe", 60
	sameID := entry("/svc/other", "/node/a", "uid:1")
	sameID.Id = first.Id
	resp, err := w.entries().BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{
		probe, sameID, {}, entry("/svc/db", "/node/a", "uid:2"), entry("/svc/db", "/node/a", "uid:2"),
	}})
	must(t, err)
	var got []codes.Code
	for n, r := range resp.Results {
		if r.Status == nil {
			t.Fatalf("result %d has no status", n)
		}
		got = append(got, codes.Code(r.Status.Code))
	}
	want := []codes.Code{codes.AlreadyExists, codes.AlreadyExists, codes.InvalidArgument, codes.OK, codes.AlreadyExists}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	for _, n := range []int{0, 1} {
		if diff := cmp.Diff(first, resp.Results[n].Entry, protocmp.Transform()); diff != "" {
			t.Errorf("result %d is not the existing entry: %s", n, diff)
		}
	}
	if resp.Results[4].Entry.GetId() != resp.Results[3].Entry.GetId() {
		t.Error("two similar entries in one batch")
	}
	if got := len(w.did("entry", "created")); got != 2 {
		t.Errorf("%d creations on record, want 2", got)
	}
	_, err = w.entries().BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: make([]*types.Entry, 1001)})
	wantCode(t, err, codes.InvalidArgument)
}

func TestEntryValidation(t *testing.T) {
	w := newWorld(t)
	change := func(fn func(*types.Entry)) *types.Entry {
		e := entry("/svc/web", "/node/a", "uid:1")
		fn(e)
		return e
	}
	for field, e := range map[string]*types.Entry{
		"spiffe_id: missing":             change(func(e *types.Entry) { e.SpiffeId = nil }),
		"spiffe_id: path is empty":       change(func(e *types.Entry) { e.SpiffeId.Path = "" }),
		"spiffe_id: trust domain":        change(func(e *types.Entry) { e.SpiffeId.TrustDomain = "other.org" }),
		"spiffe_id: path":                change(func(e *types.Entry) { e.SpiffeId.Path = "/a/../b" }),
		`spiffe_id: "spiffe://example.o`: change(func(e *types.Entry) { e.SpiffeId.Path = "/spire/server" }),
		"parent_id: missing":             change(func(e *types.Entry) { e.ParentId = nil }),
		"parent_id: an entry":            change(func(e *types.Entry) { e.ParentId = e.SpiffeId }),
		"selectors: at least":            change(func(e *types.Entry) { e.Selectors = nil }),
		"selectors[0]: type and value":   change(func(e *types.Entry) { e.Selectors[0].Value = "" }),
		"selectors[0]: type \"a:b\"":     change(func(e *types.Entry) { e.Selectors[0].Type = "a:b" }),
		"x509_svid_ttl: 9":               change(func(e *types.Entry) { e.X509SvidTtl = 9 }),
		"x509_svid_ttl: -1":              change(func(e *types.Entry) { e.X509SvidTtl = -1 }),
		"jwt_svid_ttl: 1":                change(func(e *types.Entry) { e.JwtSvidTtl = 1 }),
		"federates_with[0]: \"example":   change(func(e *types.Entry) { e.FederatesWith = []string{"example.org"} }),
		"federates_with[0]: trust":       change(func(e *types.Entry) { e.FederatesWith = []string{"A B"} }),
		"dns_names[1]":                   change(func(e *types.Entry) { e.DnsNames = []string{"ok", "a..b"} }),
		"hint has":                       change(func(e *types.Entry) { e.Hint = strings.Repeat("x", 1025) }),
		"expires_at":                     change(func(e *types.Entry) { e.ExpiresAt = math.MaxInt64 }),
		"id \"a/b\"":                     change(func(e *types.Entry) { e.Id = "a/b" }),
		"id has 256":                     change(func(e *types.Entry) { e.Id = strings.Repeat("x", 256) }),
	} {
		resp, err := w.entries().BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
		must(t, err)
		st := resp.Results[0].Status
		if codes.Code(st.Code) != codes.InvalidArgument || !strings.HasPrefix(st.Message, field) {
			t.Errorf("want %q, got %v %q", field, codes.Code(st.Code), st.Message)
		}
	}
	if n := len(w.store.Index().Entries()); n != 0 {
		t.Errorf("%d entries were made", n)
	}
}

func TestBatchUpdate(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	made := w.create(entry("/svc/web", "/node/a", "uid:1"), entry("/svc/db", "/node/a", "uid:1"))
	updateOne := func(e *types.Entry, mask *types.EntryMask) *entryv1.BatchUpdateEntryResponse_Result {
		t.Helper()
		resp, err := w.entries().BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}, InputMask: mask})
		must(t, err)
		return resp.Results[0]
	}
	// Only what the mask names changes.
	r := updateOne(&types.Entry{Id: made[0].Id, Hint: "new", X509SvidTtl: 60}, &types.EntryMask{Hint: true})
	want := proto.CloneOf(made[0])
	want.Hint = "new"
	want.RevisionNumber = r.Entry.GetRevisionNumber()
	if diff := cmp.Diff(want, r.Entry, protocmp.Transform()); diff != "" || r.Entry.RevisionNumber <= made[0].RevisionNumber {
		t.Errorf("revision %d; %s", r.Entry.RevisionNumber, diff)
	}
	// Nothing changed, nobody signs again.
	if again := updateOne(&types.Entry{Id: made[0].Id, Hint: "new"}, &types.EntryMask{Hint: true}); again.Entry.RevisionNumber != r.Entry.RevisionNumber {
		t.Error("an empty update bumped the revision")
	}
	// A nil mask means all fields.
	whole := entry("/svc/web2", "/node/b", "uid:7")
	whole.Id = made[0].Id
	if r := updateOne(whole, nil); r.Entry.GetSpiffeId().GetPath() != "/svc/web2" || r.Entry.Hint != "" {
		t.Errorf("updated to %v", r.Entry)
	}
	for name, c := range map[string]struct {
		e    *types.Entry
		mask *types.EntryMask
		want codes.Code
	}{
		"no id":     {&types.Entry{}, nil, codes.InvalidArgument},
		"unknown":   {&types.Entry{Id: "x"}, nil, codes.NotFound},
		"invalid":   {&types.Entry{Id: made[0].Id}, &types.EntryMask{Selectors: true}, codes.InvalidArgument},
		"duplicate": {&types.Entry{Id: made[1].Id, SpiffeId: id("/svc/web2"), ParentId: id("/node/b"), Selectors: whole.Selectors}, nil, codes.AlreadyExists},
	} {
		if r := updateOne(c.e, c.mask); r.Status == nil || codes.Code(r.Status.Code) != c.want || r.Entry != nil {
			t.Errorf("%s: %v", name, r)
		}
	}
	resp, err := w.entries().BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{made[1].Id, made[1].Id, ""}})
	must(t, err)
	var got []codes.Code
	for _, r := range resp.Results {
		got = append(got, codes.Code(r.Status.Code))
	}
	if diff := cmp.Diff([]codes.Code{codes.OK, codes.NotFound, codes.InvalidArgument}, got); diff != "" {
		t.Error(diff)
	}
}

func TestListEntries(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := entry("/svc/a", "/node/1", "x")
	b := entry("/svc/b", "/node/1", "x", "y")
	c := entry("/svc/c", "/node/2", "x", "y", "z")
	b.Hint, c.Downstream = "internal", true
	b.FederatesWith = []string{"one.org", "two.org"}
	w.setBundles(foreignBundle(t, "one.org"), foreignBundle(t, "two.org"))
	w.create(a, b, c)
	sel := func(match types.SelectorMatch_MatchBehavior, values ...string) *types.SelectorMatch {
		return &types.SelectorMatch{Selectors: entry("/a", "/b", values...).Selectors, Match: match}
	}
	type filter = entryv1.ListEntriesRequest_Filter
	for name, tc := range map[string]struct {
		filter *filter
		want   string
	}{
		"none":               {nil, "abc"},
		"spiffe_id":          {&filter{BySpiffeId: id("/svc/b")}, "b"},
		"parent_id":          {&filter{ByParentId: id("/node/1")}, "ab"},
		"exact":              {&filter{BySelectors: sel(types.SelectorMatch_MATCH_EXACT, "y", "x")}, "b"},
		"subset":             {&filter{BySelectors: sel(types.SelectorMatch_MATCH_SUBSET, "x", "y")}, "ab"},
		"superset":           {&filter{BySelectors: sel(types.SelectorMatch_MATCH_SUPERSET, "y")}, "bc"},
		"any":                {&filter{BySelectors: sel(types.SelectorMatch_MATCH_ANY, "z", "q")}, "c"},
		"federates":          {&filter{ByFederatesWith: &types.FederatesWithMatch{TrustDomains: []string{"one.org"}, Match: types.FederatesWithMatch_MATCH_ANY}}, "b"},
		"federates exact":    {&filter{ByFederatesWith: &types.FederatesWithMatch{TrustDomains: []string{"one.org"}}}, ""},
		"hint":               {&filter{ByHint: wrapperspb.String("internal")}, "b"},
		"no hint":            {&filter{ByHint: wrapperspb.String("")}, "ac"},
		"downstream":         {&filter{ByDownstream: wrapperspb.Bool(true)}, "c"},
		"downstream=false":   {&filter{ByDownstream: wrapperspb.Bool(false)}, "abc"}, // what `entry show` always sends
		"both":               {&filter{ByParentId: id("/node/1"), ByHint: wrapperspb.String("internal")}, "b"},
		"parent and nothing": {&filter{ByParentId: id("/node/9")}, ""},
	} {
		resp, err := w.entries().ListEntries(ctx, &entryv1.ListEntriesRequest{Filter: tc.filter})
		must(t, err)
		var got []byte
		for _, e := range resp.Entries {
			got = append(got, e.SpiffeId.Path[len(e.SpiffeId.Path)-1])
		}
		slices.Sort(got)
		if string(got) != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		count := &entryv1.CountEntriesRequest{}
		if f := tc.filter; f != nil {
			count.Filter = &entryv1.CountEntriesRequest_Filter{BySpiffeId: f.BySpiffeId, ByParentId: f.ByParentId, BySelectors: f.BySelectors, ByFederatesWith: f.ByFederatesWith, ByHint: f.ByHint, ByDownstream: f.ByDownstream}
		}
		n, err := w.entries().CountEntries(ctx, count)
		must(t, err)
		if int(n.Count) != len(tc.want) {
			t.Errorf("%s: count %d", name, n.Count)
		}
	}
	for name, f := range map[string]*filter{
		"no selectors":  {BySelectors: &types.SelectorMatch{}},
		"bad selector":  {BySelectors: &types.SelectorMatch{Selectors: []*types.Selector{{}}}},
		"bad behaviour": {BySelectors: sel(99, "x")},
		"foreign":       {BySpiffeId: &types.SPIFFEID{TrustDomain: "other.org", Path: "/a"}},
		"bad domain":    {ByFederatesWith: &types.FederatesWithMatch{TrustDomains: []string{"A B"}}},
	} {
		_, err := w.entries().ListEntries(ctx, &entryv1.ListEntriesRequest{Filter: f})
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		wantCode(t, err, codes.InvalidArgument)
	}
	_, err := w.entries().ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: -1})
	wantCode(t, err, codes.InvalidArgument)
}

// Pages hold every entry exactly once, and stay under 4 MB however large the
// entries are.
func TestListEntriesPages(t *testing.T) {
	w := newWorld(t)
	var batch []*types.Entry
	for n := range 700 {
		e := entry(fmt.Sprintf("/svc/%d", n), "/node/1", "x")
		for d := range 40 {
			e.DnsNames = append(e.DnsNames, fmt.Sprintf("%s-%d.example.org", strings.Repeat("x", 50), d), strings.Repeat("y.", 60)+"z")
		}
		batch = append(batch, e)
	}
	for part := range slices.Chunk(batch, 100) {
		w.create(part...)
	}
	for _, size := range []int32{0, 100, 300, 5000} {
		seen := map[string]bool{}
		token, pages := "", 0
		for {
			resp, err := w.entries().ListEntries(t.Context(), &entryv1.ListEntriesRequest{PageSize: size, PageToken: token})
			must(t, err)
			if proto.Size(resp) > 4<<20 || size > 0 && len(resp.Entries) > int(size) {
				t.Fatalf("page of %d entries, %d bytes", len(resp.Entries), proto.Size(resp))
			}
			for _, e := range resp.Entries {
				if seen[e.Id] {
					t.Fatalf("entry %s twice", e.Id)
				}
				seen[e.Id] = true
			}
			pages++
			if token = resp.NextPageToken; token == "" {
				break
			}
		}
		if len(seen) != len(batch) || pages < 2 {
			t.Errorf("page size %d: %d entries in %d pages", size, len(seen), pages)
		}
	}
}

func TestEntryExpiry(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	e := entry("/svc/web", "/node/a", "uid:1")
	e.ExpiresAt = w.clock.now().Add(30 * time.Minute).Unix()
	w.create(e)
	w.clock.advance(31 * time.Minute)
	list, err := a.entries().GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	must(t, err)
	if len(list.Entries) != 1 {
		t.Errorf("%d entries, want the alias alone", len(list.Entries))
	}
	must(t, w.issuer.Prune(t.Context()))
	if len(w.did("entry", "expired")) != 1 {
		t.Error("expiry is not on record")
	}
}

// An agent whose entries federate with someone must be able to go on.
func TestGetFederatedBundleIsNotFound(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token(""))
	_, err := a.bundles().GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.org"})
	wantCode(t, err, codes.NotFound)
	b, err := w.bundles().GetBundle(t.Context(), &bundlev1.GetBundleRequest{OutputMask: &types.BundleMask{SequenceNumber: true}})
	must(t, err)
	if len(b.X509Authorities)+len(b.JwtAuthorities) != 0 || b.SequenceNumber == 0 || b.TrustDomain != "example.org" {
		t.Errorf("masked bundle %v", b)
	}
}
