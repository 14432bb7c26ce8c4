package issuer_test

import (
	"crypto/tls"
	"crypto/x509"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/testpki"
)

func (w *world) domains() trustdomainv1.TrustDomainClient {
	return trustdomainv1.NewTrustDomainClient(w.admin)
}

func webRelation(name, url string) *types.FederationRelationship {
	return &types.FederationRelationship{TrustDomain: name, BundleEndpointUrl: url, BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}}
}

func spiffeRelation(name, url, id string) *types.FederationRelationship {
	return &types.FederationRelationship{TrustDomain: name, BundleEndpointUrl: url,
		BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: id}}}
}

// relate creates relationships and returns the codes.
func (w *world) relate(relations ...*types.FederationRelationship) []codes.Code {
	w.t.Helper()
	resp, err := w.domains().BatchCreateFederationRelationship(w.t.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: relations})
	must(w.t, err)
	var got []codes.Code
	for n, r := range resp.Results {
		got = append(got, codes.Code(r.Status.Code))
		if (r.Status.Code == 0) != (r.FederationRelationship != nil) || r.FederationRelationship.GetTrustDomain() != relations[n].TrustDomain && r.Status.Code == 0 {
			w.t.Errorf("result %v", r)
		}
	}
	return got
}

func TestFederationRelationships(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	// Nothing listens there: what is kept does not depend on it.
	one := webRelation("one.org", "https://127.0.0.1:1/b")
	two := spiffeRelation("two.org", "https://127.0.0.1:1/c", "spiffe://two.org/spire/server")
	two.TrustDomainBundle = foreignBundle(t, "two.org")
	got := w.relate(one, webRelation("example.org", "https://a.test"), webRelation("one.org", "https://other.test"), two, webRelation("", "https://a.test"), webRelation("a.org", "http://a.test"),
		&types.FederationRelationship{TrustDomain: "a.org", BundleEndpointUrl: "https://a.test"}, spiffeRelation("a.org", "https://a.test", "spiffe://a.org"), spiffeRelation("a.org", "https://a.test", "x"))
	if diff := cmp.Diff([]codes.Code{codes.OK, codes.InvalidArgument, codes.AlreadyExists, codes.OK, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument}, got); diff != "" {
		t.Fatal(diff)
	}
	mixed := webRelation("b.org", "https://b.test")
	mixed.TrustDomainBundle = foreignBundle(t, "one.org")
	if got := w.relate(mixed); got[0] != codes.InvalidArgument {
		t.Errorf("with the bundle of another: %v", got)
	}
	get := func(name string, mask *types.FederationRelationshipMask) *types.FederationRelationship {
		t.Helper()
		r, err := w.domains().GetFederationRelationship(ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: name, OutputMask: mask})
		must(t, err)
		return r
	}
	for _, want := range []*types.FederationRelationship{one, two} {
		if diff := cmp.Diff(want, get(want.TrustDomain, nil), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff(&types.FederationRelationship{TrustDomain: "two.org", BundleEndpointUrl: two.BundleEndpointUrl}, get("two.org", &types.FederationRelationshipMask{BundleEndpointUrl: true}), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]codes.Code{"three.org": codes.NotFound, "A B": codes.InvalidArgument} {
		_, err := w.domains().GetFederationRelationship(ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: name})
		wantCode(t, err, want)
		_, err = w.domains().RefreshBundle(ctx, &trustdomainv1.RefreshBundleRequest{TrustDomain: name})
		wantCode(t, err, want)
	}
	var names []string
	for token := ""; ; {
		page, err := w.domains().ListFederationRelationships(ctx, &trustdomainv1.ListFederationRelationshipsRequest{PageSize: 1, PageToken: token})
		must(t, err)
		for _, r := range page.FederationRelationships {
			names = append(names, r.TrustDomain)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"one.org", "two.org"}, names); diff != "" {
		t.Error(diff)
	}
	updated, err := w.domains().BatchUpdateFederationRelationship(ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{{TrustDomain: "two.org", BundleEndpointUrl: "https://127.0.0.1:1/new"}, {TrustDomain: "one.org", BundleEndpointUrl: "ftp://x"}, {TrustDomain: "three.org"}},
		InputMask:               &types.FederationRelationshipMask{BundleEndpointUrl: true}})
	must(t, err)
	two.BundleEndpointUrl = "https://127.0.0.1:1/new"
	if diff := cmp.Diff(two, updated.Results[0].FederationRelationship, protocmp.Transform()); diff != "" || updated.Results[1].Status.Code != int32(codes.InvalidArgument) || updated.Results[2].Status.Code != int32(codes.NotFound) {
		t.Error(diff, updated.Results)
	}
	deleted, err := w.domains().BatchDeleteFederationRelationship(ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{"two.org", "two.org", "A B"}})
	must(t, err)
	for n, want := range []codes.Code{codes.OK, codes.NotFound, codes.InvalidArgument} {
		if r := deleted.Results[n]; codes.Code(r.Status.Code) != want {
			t.Errorf("delete: %v", r)
		}
	}
	if w.store.Index().FederatedBundle(spiffeid.RequireTrustDomainFromString("two.org")) == nil {
		t.Error("the bundle went with the relationship")
	}
	for verb, want := range map[string]int{"created": 2, "updated": 1, "deleted": 1} {
		if n := len(w.did("federation-relationship", verb)); n != want {
			t.Errorf("%d relationships %s are on record, want %d", n, verb, want)
		}
	}
}

// partnerEndpoint serves the bundle that a test gives it.
type partnerEndpoint struct {
	*httptest.Server
	doc  atomic.Pointer[[]byte]
	cert atomic.Pointer[tls.Certificate]
}

func newPartnerEndpoint(t testing.TB) *partnerEndpoint {
	t.Helper()
	p := &partnerEndpoint{}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(*p.doc.Load()) }))
	p.Config.ErrorLog = log.New(new(strings.Builder), "", 0)
	p.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if cert := p.cert.Load(); cert != nil {
			return &tls.Config{Certificates: []tls.Certificate{*cert}}, nil
		}
		return nil, nil
	}}
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

func (p *partnerEndpoint) publish(t testing.TB, sequence uint64, authorities ...*x509.Certificate) {
	t.Helper()
	doc, err := federation.Marshal(&registry.FederatedBundle{TrustDomain: spiffeid.RequireTrustDomainFromString("one.org"), Sequence: sequence, X509Authorities: authorities})
	must(t, err)
	p.doc.Store(&doc)
}

func (p *partnerEndpoint) show(t testing.TB, pki *testpki.CA) {
	t.Helper()
	svid := pki.SVID(t, "/spire/server", time.Hour)
	p.cert.Store(&tls.Certificate{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey})
}

func TestRefreshBundle(t *testing.T) {
	p := newPartnerEndpoint(t)
	web := x509.NewCertPool()
	web.AddCert(p.Certificate())
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) {
		c.FederationRoots = func(spiffeid.TrustDomain) (*x509.CertPool, error) { return web, nil }
	})
	one := spiffeid.RequireTrustDomainFromString("one.org")
	a, b := testpki.New(t, "one.org").Bundle().X509Authorities()[0], testpki.New(t, "one.org").Bundle().X509Authorities()[0]
	p.publish(t, 5, a)
	if got := w.relate(webRelation("one.org", p.URL)); got[0] != codes.OK {
		t.Fatal(got)
	}
	refresh := func(want string) {
		t.Helper()
		_, err := w.domains().RefreshBundle(t.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: "one.org"})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(status.Convert(err).Message(), want) {
			t.Fatalf("refresh: %v, want %q", err, want)
		}
	}
	kept := func(sequence uint64, authorities ...*x509.Certificate) {
		t.Helper()
		got := w.store.Index().FederatedBundle(one)
		if got == nil || got.Sequence != sequence || !got.Equal(&registry.FederatedBundle{TrustDomain: one, Sequence: sequence, X509Authorities: authorities}) {
			t.Fatalf("kept is %+v, want sequence %d with %d authorities", got, sequence, len(authorities))
		}
	}
	refresh("")
	kept(5, a)
	p.publish(t, 6, a, b)
	refresh("")
	kept(6, a, b)

	// Each of these is told, on record, and what was known stays.
	p.publish(t, 5, a)
	refresh("runs backwards")
	own, _ := w.issuer.Bundle()
	p.publish(t, 7, own.X509Authorities...)
	refresh("claim our own trust domain")
	garbage := []byte(`{"spiffe_sequence":8}`)
	p.doc.Store(&garbage)
	refresh("keys is missing")
	kept(6, a, b)
	var causes []string
	for _, act := range w.did("federated-bundle", "refreshed") {
		if act.Failed {
			causes = append(causes, act.Kind+" "+act.Details[1][1])
		}
		if act.Actor != "spiffe://example.org/spire/server" {
			t.Errorf("act by %s", act.Actor)
		}
	}
	if diff := cmp.Diff([]string{identity.ActAlarm + " backwards", identity.ActAlarm + " own_trust_domain", identity.ActAdmin + " garbage"}, causes); diff != "" {
		t.Error(diff)
	}
	if s := w.issuer.Federation(); len(s) != 1 || s[0].Cause != federation.Garbage || s[0].Failures[federation.RanBackwards] != 1 {
		t.Errorf("state %+v", s)
	}

	p.publish(t, 9) // all revoked
	refresh("")
	kept(9)
	p.publish(t, 0, a) // without a sequence number the latest counts
	refresh("")
	kept(0, a)
	p.publish(t, 1, a)
	refresh("")
	w.refuseActs(func(act identity.Act) bool { return act.Object == "federated-bundle" })
	p.publish(t, 2, b)
	refresh("could not be kept")
	kept(1, a)
	w.refuseActs(nil)
	refresh("")
	kept(2, b)
}

// The endpoint is verified by the latest bundle: its keys can change without
// anybody setting a bundle again.
func TestRefreshBundleOverSPIFFE(t *testing.T) {
	p := newPartnerEndpoint(t)
	w := newWorld(t)
	one := spiffeid.RequireTrustDomainFromString("one.org")
	old, next := testpki.New(t, "one.org"), testpki.New(t, "one.org")
	oldCert, nextCert := old.Bundle().X509Authorities()[0], next.Bundle().X509Authorities()[0]
	p.publish(t, 1, oldCert)
	p.show(t, old)
	relation := spiffeRelation("one.org", p.URL, "spiffe://one.org/spire/server")
	if got := w.relate(relation); got[0] != codes.OK {
		t.Fatal(got)
	}
	refresh := func() error {
		_, err := w.domains().RefreshBundle(t.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: "one.org"})
		return err
	}
	if err := refresh(); err == nil || !strings.Contains(err.Error(), "set its bundle once") {
		t.Errorf("without a bundle: %v", err)
	}
	w.setBundles(&types.Bundle{TrustDomain: "one.org", X509Authorities: []*types.X509Certificate{{Asn1: oldCert.Raw}}})
	must(t, refresh())
	p.publish(t, 2, oldCert, nextCert)
	must(t, refresh())
	p.show(t, next)
	p.publish(t, 3, nextCert)
	must(t, refresh())
	p.show(t, old) // what is revoked proves nothing
	if err := refresh(); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("by a revoked authority: %v", err)
	}
	if b := w.store.Index().FederatedBundle(one); b.Sequence != 3 || len(b.X509Authorities) != 1 {
		t.Errorf("kept is %+v", b)
	}
}
