package issuer_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/internal/testpki"
)

func foreignBundle(t testing.TB, name string) *types.Bundle {
	t.Helper()
	pki := testpki.New(t, name)
	key, err := x509.MarshalPKIXPublicKey(newKey(t).Public())
	must(t, err)
	return &types.Bundle{
		TrustDomain:     name,
		X509Authorities: []*types.X509Certificate{{Asn1: pki.Bundle().X509Authorities()[0].Raw}},
		JwtAuthorities:  []*types.JWTKey{{KeyId: "k", PublicKey: key, ExpiresAt: time.Now().Add(time.Hour).Unix()}},
		RefreshHint:     60, SequenceNumber: 3,
	}
}

func (w *world) setBundles(bundles ...*types.Bundle) []*bundlev1.BatchSetFederatedBundleResponse_Result {
	w.t.Helper()
	resp, err := w.bundles().BatchSetFederatedBundle(w.t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: bundles})
	must(w.t, err)
	if len(resp.Results) != len(bundles) {
		w.t.Fatalf("%d results for %d bundles", len(resp.Results), len(bundles))
	}
	return resp.Results
}

func TestFederatedBundles(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	one, two := foreignBundle(t, "one.org"), foreignBundle(t, "two.org")
	created, err := w.bundles().BatchCreateFederatedBundle(ctx, &bundlev1.BatchCreateFederatedBundleRequest{Bundle: []*types.Bundle{one, {TrustDomain: "example.org"}, one, two}})
	must(t, err)
	var got []codes.Code
	for _, r := range created.Results {
		got = append(got, codes.Code(r.Status.Code))
	}
	if diff := cmp.Diff([]codes.Code{codes.OK, codes.InvalidArgument, codes.AlreadyExists, codes.OK}, got); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff(one, created.Results[0].Bundle, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if created.Results[1].Bundle != nil || created.Results[2].Bundle != nil {
		t.Error("a refused item has a bundle")
	}
	// By agents too, and only with what the mask names.
	a := w.join(w.token(""))
	_, err = a.bundles().GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: "ONE.org", OutputMask: &types.BundleMask{RefreshHint: true}})
	wantCode(t, err, codes.InvalidArgument) // names are lower case
	b, err := a.bundles().GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: "one.org", OutputMask: &types.BundleMask{RefreshHint: true}})
	must(t, err)
	if diff := cmp.Diff(&types.Bundle{TrustDomain: "one.org", RefreshHint: 60}, b, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	_, err = a.bundles().GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: "example.org"})
	wantCode(t, err, codes.InvalidArgument)
	count, err := w.bundles().CountBundles(ctx, &bundlev1.CountBundlesRequest{})
	must(t, err)
	if count.Count != 3 {
		t.Errorf("%d bundles, want ours and two", count.Count)
	}

	var names []string
	for token := ""; ; {
		page, err := w.bundles().ListFederatedBundles(ctx, &bundlev1.ListFederatedBundlesRequest{PageSize: 1, PageToken: token})
		must(t, err)
		for _, b := range page.Bundles {
			names = append(names, b.TrustDomain)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"one.org", "two.org"}, names); diff != "" {
		t.Error(diff)
	}

	// An update with a mask leaves the rest as it is.
	change := &types.Bundle{TrustDomain: "one.org", RefreshHint: 90, SequenceNumber: 99}
	updated, err := w.bundles().BatchUpdateFederatedBundle(ctx, &bundlev1.BatchUpdateFederatedBundleRequest{
		Bundle: []*types.Bundle{change, {TrustDomain: "three.org"}}, InputMask: &types.BundleMask{RefreshHint: true}})
	must(t, err)
	one.RefreshHint = 90
	if diff := cmp.Diff(one, updated.Results[0].Bundle, protocmp.Transform()); diff != "" || updated.Results[1].Status.Code != int32(codes.NotFound) {
		t.Error(diff, updated.Results[1].Status)
	}
	// Empty is a bundle too: all is revoked.
	if r := w.setBundles(&types.Bundle{TrustDomain: "one.org"}, foreignBundle(t, "three.org")); r[0].Status.Code != 0 || r[1].Status.Code != 0 || len(r[0].Bundle.X509Authorities) != 0 {
		t.Errorf("set: %v", r)
	}
	if n := len(w.did("federated-bundle", "updated")); n != 2 {
		t.Errorf("%d updates are on record, want 2", n)
	}
	if n := len(w.did("federated-bundle", "created")); n != 3 {
		t.Errorf("%d creations are on record, want 3", n)
	}
}

func TestFederatedBundleRefusals(t *testing.T) {
	w := newWorld(t)
	own, err := w.bundles().GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	must(t, err)
	for name, tc := range map[string]struct {
		change func(*types.Bundle)
		want   string
	}{
		"own trust domain": {func(b *types.Bundle) { b.TrustDomain = "example.org" }, "own trust domain"},
		"no trust domain":  {func(b *types.Bundle) { b.TrustDomain = "" }, "trust_domain"},
		"our authority":    {func(b *types.Bundle) { b.X509Authorities = append(b.X509Authorities, own.X509Authorities[0]) }, "claim our own trust domain"},
		"our JWT key":      {func(b *types.Bundle) { b.JwtAuthorities[0].PublicKey = own.JwtAuthorities[0].PublicKey }, "our own trust domain"},
		"garbage":          {func(b *types.Bundle) { b.X509Authorities[0].Asn1 = []byte("x") }, "x509_authorities[0]: not a certificate"},
		"nothing":          {func(b *types.Bundle) { b.X509Authorities[0].Asn1 = nil }, "x509_authorities[0]: not a certificate"},
		"no key id":        {func(b *types.Bundle) { b.JwtAuthorities[0].KeyId = "" }, "key_id is missing"},
		"key id twice":     {func(b *types.Bundle) { b.JwtAuthorities = append(b.JwtAuthorities, b.JwtAuthorities[0]) }, "twice"},
		"not a key":        {func(b *types.Bundle) { b.JwtAuthorities[0].PublicKey = []byte("x") }, "not a PKIX public key"},
		"negative hint":    {func(b *types.Bundle) { b.RefreshHint = -1 }, "refresh_hint"},
		"large sequence":   {func(b *types.Bundle) { b.SequenceNumber = 1 << 63 }, "sequence_number"},
	} {
		b := foreignBundle(t, "one.org")
		tc.change(b)
		r := w.setBundles(b)[0]
		if codes.Code(r.Status.Code) != codes.InvalidArgument || !strings.Contains(r.Status.Message, tc.want) || r.Bundle != nil {
			t.Errorf("%s: %v", name, r)
		}
	}
	if len(w.did("federated-bundle", "created")) != 0 {
		t.Error("something was kept")
	}
	// What cannot be put on record is not done, as a whole.
	w.refuseActs(func(a identity.Act) bool { return a.ObjectID == "spiffe://two.org" })
	_, err = w.bundles().BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{foreignBundle(t, "one.org"), foreignBundle(t, "two.org")}})
	wantCode(t, err, codes.Unavailable)
	w.refuseActs(nil)
	if len(w.store.Index().FederatedBundles()) != 0 {
		t.Error("half of a batch was kept")
	}
}

func TestDeleteFederatedBundle(t *testing.T) {
	for mode, tc := range map[bundlev1.BatchDeleteFederatedBundleRequest_Mode]struct {
		want    codes.Code
		entries map[string][]string // by path: what it federates with after
	}{
		bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT:   {codes.FailedPrecondition, map[string][]string{"/a": {"one.org", "two.org"}, "/b": {"two.org"}}},
		bundlev1.BatchDeleteFederatedBundleRequest_DELETE:     {codes.OK, map[string][]string{"/b": {"two.org"}}},
		bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE: {codes.OK, map[string][]string{"/a": {"two.org"}, "/b": {"two.org"}}},
	} {
		t.Run(mode.String(), func(t *testing.T) {
			w := newWorld(t)
			w.setBundles(foreignBundle(t, "one.org"), foreignBundle(t, "two.org"), foreignBundle(t, "free.org"))
			a, b := entry("/a", "/node/n", "uid:1"), entry("/b", "/node/n", "uid:2")
			a.FederatesWith, b.FederatesWith = []string{"one.org", "two.org"}, []string{"two.org"}
			before := w.create(a, b)
			resp, err := w.bundles().BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{
				TrustDomains: []string{"one.org", "free.org", "nobody.org", "example.org"}, Mode: mode})
			must(t, err)
			var got []codes.Code
			for _, r := range resp.Results {
				got = append(got, codes.Code(r.Status.Code))
			}
			if diff := cmp.Diff([]codes.Code{tc.want, codes.OK, codes.NotFound, codes.InvalidArgument}, got); diff != "" || resp.Results[2].TrustDomain != "nobody.org" {
				t.Error(diff, resp.Results)
			}
			list, err := w.entries().ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
			must(t, err)
			after := map[string][]string{}
			for _, e := range list.Entries {
				after[e.SpiffeId.Path] = e.FederatesWith
				if e.SpiffeId.Path == "/a" && mode == bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE && e.RevisionNumber <= before[0].RevisionNumber {
					t.Error("the entry changed and its revision did not")
				}
			}
			if diff := cmp.Diff(tc.entries, after); diff != "" {
				t.Error(diff)
			}
			if kept := w.store.Index().FederatedBundle(spiffeid.RequireTrustDomainFromString("one.org")); (kept != nil) != (tc.want != codes.OK) {
				t.Errorf("the bundle: %v", kept)
			}
		})
	}
	w := newWorld(t)
	_, err := w.bundles().BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{Mode: 7})
	wantCode(t, err, codes.InvalidArgument)
}

// Nobody can be verified of a trust domain without a bundle. What an entry has
// stays when the bundle is gone.
func TestFederatesWithUnknown(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	e := entry("/svc/web", "/node/a", "uid:1")
	e.FederatesWith = []string{"one.org"}
	created, err := w.entries().BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e, entry("/svc/other", "/node/a", "uid:1")}})
	must(t, err)
	if s := created.Results[0].Status; codes.Code(s.Code) != codes.FailedPrecondition || !strings.Contains(s.Message, `federates_with[0]: there is no bundle of trust domain "one.org"`) || created.Results[1].Status.Code != 0 {
		t.Errorf("created: %v", created)
	}
	m := userTemplate()
	m.FederatesWith = []string{"one.org"}
	_, err = w.templates().Create(ctx, &templatev1.CreateRequest{Template: m})
	wantCode(t, err, codes.FailedPrecondition)

	w.setBundles(foreignBundle(t, "one.org"))
	made, tmpl := w.create(e)[0], w.createTemplate(m)
	must(t, w.store.Update(ctx, func(tx *sqlstore.Tx) error {
		return tx.DeleteFederatedBundle(spiffeid.RequireTrustDomainFromString("one.org"))
	}))
	update := func(hint string, with ...string) (codes.Code, codes.Code) {
		made.Hint, made.FederatesWith = hint, with
		resp, err := w.entries().BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{made}})
		must(t, err)
		tmpl.Hint, tmpl.FederatesWith, tmpl.Revision = hint, with, 0
		_, err = w.templates().Update(ctx, &templatev1.UpdateRequest{Template: tmpl})
		return codes.Code(resp.Results[0].Status.Code), status.Code(err)
	}
	if a, b := update("kept", "one.org"); a != codes.OK || b != codes.OK {
		t.Errorf("kept: %v %v", a, b)
	}
	if a, b := update("more", "one.org", "two.org"); a != codes.FailedPrecondition || b != codes.FailedPrecondition {
		t.Errorf("more: %v %v", a, b)
	}
}

// An agent whose entries federate is told of a bundle at once, and one whose
// entries do not is not.
func TestWatchTellsOfFederatedBundles(t *testing.T) {
	w := newWorld(t)
	a, b := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	e := entry("/svc/web", "/node/a", "uid:1")
	e.FederatesWith = []string{"one.org"}
	w.setBundles(foreignBundle(t, "one.org"))
	w.create(e, entry("/svc/other", "/node/b", "uid:1"))
	watchA, first := startWatch(t, a)
	watchB, _ := startWatch(t, b)
	next := foreignBundle(t, "one.org")
	next.SequenceNumber++
	w.setBundles(next)
	if c, err := watchA.Recv(); err != nil || c.Revision <= first.Revision || c.Bundle {
		t.Errorf("told %v, %v", c, err)
	}
	made := w.create(entry("/svc/more", "/node/b", "uid:2"))[0]
	c, err := watchB.Recv()
	must(t, err)
	if revision, _ := w.store.Index().Revision(); made.RevisionNumber != int64(revision) || c.Revision < revision {
		t.Errorf("B was first told of %d, before revision %d", c.Revision, revision)
	}
}
