package sds

import (
	"bytes"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-dev/writ/identity/workload"
)

const (
	web, api = "spiffe://example.org/web", "spiffe://example.org/api"
	own, far = "example.org", "far.org"
)

func TestNames(t *testing.T) {
	known := map[string]*authority{own: newAuthority(own), far: newAuthority(far)}
	unsigned := known[own].identity(3, "spiffe://example.org/unsigned")
	unsigned.Chain, unsigned.Key = nil, nil
	revoked := must(workload.NewBundle(spiffeid.RequireTrustDomainFromString("revoked.org"), nil, nil))
	grant := workload.Grant{
		Identities: []*workload.Identity{unsigned, known[own].identity(1, web), known[own].identity(2, api)},
		Bundle:     known[own].bundle, Federated: []*workload.Bundle{revoked, known[far].bundle},
	}
	plain := envoy(40)
	plain.Metadata = must(structpb.NewStruct(map[string]any{metadataKey: "true"}))
	spiffe := envoy(40)
	spiffe.Metadata = must(structpb.NewStruct(map[string]any{metadataKey: false}))
	nonsense := envoy(40)
	nonsense.Metadata = must(structpb.NewStruct(map[string]any{metadataKey: 7}))
	type want = map[string]string
	for _, tc := range []struct {
		name     string
		names    []string
		node     *corev3.Node
		disabled bool
		want     want
		code     codes.Code
	}{
		{"the default is the first that is signed", []string{"default"}, envoy(40), false, want{"default": web + " #1"}, 0},
		{"by name", []string{api, web}, envoy(40), false, want{web: web + " #1", api: api + " #2"}, 0},
		{"named twice", []string{api, "", api}, envoy(40), false, want{api: api + " #2"}, 0},
		{"own bundle", []string{"ROOTCA"}, envoy(40), false, want{"ROOTCA": "example.org=example.org "}, 0},
		{"all bundles", []string{"ALL"}, envoy(40), false, want{"ALL": "example.org=example.org far.org=far.org "}, 0},
		{"a federated bundle", []string{"spiffe://far.org"}, envoy(40), false, want{"spiffe://far.org": "far.org=far.org "}, 0},
		{"certificate and bundles at once", []string{"default", "ALL", "ROOTCA"}, envoy(40), false,
			want{"default": web + " #1", "ALL": "example.org=example.org far.org=far.org ", "ROOTCA": "example.org=example.org "}, 0},
		{"everything", nil, envoy(40), false,
			want{web: web + " #1", api: api + " #2", "spiffe://example.org": "example.org=example.org ", "spiffe://far.org": "far.org=far.org "}, 0},
		{"Envoy 1.17 has no SPIFFE validator", []string{"ROOTCA"}, envoy(17), false, want{"ROOTCA": "ca example.org"}, 0},
		{"nor one that does not say what it is", []string{"spiffe://far.org"}, nil, false, want{"spiffe://far.org": "ca far.org"}, 0},
		{"by metadata", []string{"ROOTCA"}, plain, false, want{"ROOTCA": "ca example.org"}, 0},
		{"by configuration", []string{"ROOTCA"}, envoy(40), true, want{"ROOTCA": "ca example.org"}, 0},
		{"metadata override the configuration", []string{"ROOTCA"}, spiffe, true, want{"ROOTCA": "example.org=example.org "}, 0},
		{"metadata that say nothing", []string{"ROOTCA"}, nonsense, false, want{"ROOTCA": "example.org=example.org "}, 0},
		{"all bundles in one file would be one trust domain", []string{"ALL"}, plain, false, nil, codes.InvalidArgument},
		{"somebody else", []string{"spiffe://example.org/db", web}, envoy(40), false, nil, codes.InvalidArgument},
		{"somebody else's bundle", []string{"spiffe://other.org"}, envoy(40), false, nil, codes.InvalidArgument},
		{"a bundle without authorities", []string{"spiffe://revoked.org"}, envoy(40), false, nil, codes.InvalidArgument},
		{"which would verify nothing", []string{"spiffe://revoked.org"}, plain, false, nil, codes.InvalidArgument},
		{"not signed", []string{"spiffe://example.org/unsigned"}, envoy(40), false, nil, codes.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			names := DefaultNames()
			names.DisableSPIFFECertValidation = tc.disabled
			_, _, client := serve(t, grant, Config{Names: names})
			resp, err := client.FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{Node: tc.node, ResourceNames: tc.names, TypeUrl: secretType})
			if status.Code(err) != tc.code {
				t.Fatalf("got %v, want %v", err, tc.code)
			}
			if tc.code == codes.OK {
				if diff := cmp.Diff(tc.want, shown(t, resp, known)); diff != "" {
					t.Errorf("secrets (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// With CRLs: for those who take plain CA certificates, for our own trust domain, and
// nothing instead where there is none.
func TestCRL(t *testing.T) {
	known := map[string]*authority{own: newAuthority(own), far: newAuthority(far)}
	grant := workload.Grant{Identities: []*workload.Identity{known[own].identity(1, web)}, Bundle: known[own].bundle, Federated: []*workload.Bundle{known[far].bundle}}
	names := DefaultNames()
	names.CRL = true
	ask := func(grant workload.Grant, node *corev3.Node, name string) (*tlsv3.CertificateValidationContext, string, error) {
		t.Helper()
		_, _, client := serve(t, grant, Config{Names: names})
		resp, err := client.FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{Node: node, ResourceNames: []string{name}})
		if err != nil {
			return nil, "", err
		}
		var secret tlsv3.Secret
		if err := resp.Resources[0].UnmarshalTo(&secret); err != nil {
			t.Fatal(err)
		}
		return secret.GetValidationContext(), resp.VersionInfo, nil
	}
	if _, _, err := ask(grant, nil, "ROOTCA"); status.Code(err) != codes.Unavailable {
		t.Errorf("without a list: %v, want Unavailable", err)
	}
	grant.CRLs = [][]byte{[]byte("first"), []byte("second")}
	c, version, err := ask(grant, nil, "ROOTCA")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(c.Crl.GetInlineBytes(), []byte("BEGIN X509 CRL")); n != 2 || !c.OnlyVerifyLeafCertCrl || len(c.TrustedCa.GetInlineBytes()) == 0 {
		t.Errorf("%d lists in %v", n, c)
	}
	grant.CRLs = [][]byte{[]byte("first"), []byte("third")}
	if _, next, err := ask(grant, nil, "spiffe://example.org"); err != nil || next == version {
		t.Errorf("another list has the same version: %v", err)
	}
	for _, name := range []string{"spiffe://far.org", "ALL"} {
		node := envoy(40)
		if name != "ALL" {
			node = nil
		}
		if c, _, err := ask(grant, node, name); err != nil || c.Crl != nil || c.OnlyVerifyLeafCertCrl {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}

// Istio asks for all bundles under the name ROOTCA.
func TestConfiguredNames(t *testing.T) {
	known := map[string]*authority{own: newAuthority(own), far: newAuthority(far)}
	grant := workload.Grant{Identities: []*workload.Identity{known[own].identity(1, web)}, Bundle: known[own].bundle, Federated: []*workload.Bundle{known[far].bundle}}
	_, _, client := serve(t, grant, Config{Names: Names{DefaultSVIDName: "me", DefaultAllBundlesName: "ROOTCA"}})
	resp, err := client.FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{Node: envoy(40), ResourceNames: []string{"me", "ROOTCA"}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"me": web + " #1", "ROOTCA": "example.org=example.org far.org=far.org "}
	if diff := cmp.Diff(want, shown(t, resp, known)); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
}

func TestNoIdentity(t *testing.T) {
	_, _, client := serve(t, workload.Grant{Bundle: newAuthority(own).bundle}, Config{Names: DefaultNames()})
	if _, err := client.FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v, want PermissionDenied", err)
	}
	if _, err := client.FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("clusters: %v, want InvalidArgument", err)
	}
	delta, err := client.DeltaSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := delta.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("delta: %v, want Unimplemented", err)
	}
}

// session is a StreamSecrets call and what its Envoy has.
type session struct {
	t     *testing.T
	known map[string]*authority
	call  interface {
		Send(*discoveryv3.DiscoveryRequest) error
		Recv() (*discoveryv3.DiscoveryResponse, error)
	}
	last *discoveryv3.DiscoveryResponse
}

func (s *session) send(req *discoveryv3.DiscoveryRequest) {
	s.t.Helper()
	req.TypeUrl = secretType
	if err := s.call.Send(req); err != nil {
		s.t.Fatal(err)
	}
}

// ack says that the last response was taken, and what is wanted now.
func (s *session) ack(names ...string) {
	s.t.Helper()
	s.send(&discoveryv3.DiscoveryRequest{ResourceNames: names, VersionInfo: s.last.VersionInfo, ResponseNonce: s.last.Nonce})
}

func (s *session) want(nonce string, secrets map[string]string) {
	s.t.Helper()
	resp, err := s.call.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.Nonce != nonce || resp.TypeUrl != secretType || resp.VersionInfo == "" {
		s.t.Errorf("nonce %q, type %q, version %q; want nonce %s", resp.Nonce, resp.TypeUrl, resp.VersionInfo, nonce)
	}
	if diff := cmp.Diff(secrets, shown(s.t, resp, s.known)); diff != "" {
		s.t.Errorf("secrets (-want +got):\n%s", diff)
	}
	s.last = resp
}

func (s *session) wantEnd(code codes.Code) {
	s.t.Helper()
	if resp, err := s.call.Recv(); status.Code(err) != code {
		s.t.Errorf("got %v, %v, want the end with %v", resp, err, code)
	}
}

func open(t *testing.T, identities ...int64) (*session, *source, *workload.Server, *int) {
	t.Helper()
	ca := newAuthority(own)
	grant := workload.Grant{Bundle: ca.bundle}
	for i, name := range []string{web, api} {
		if i < len(identities) {
			grant.Identities = append(grant.Identities, ca.identity(identities[i], name))
		}
	}
	rejected := new(int)
	src, server, client := serve(t, grant, Config{Names: DefaultNames(), Rejected: func() { *rejected++ }})
	call, err := client.StreamSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &session{t: t, known: map[string]*authority{own: ca}, call: call}, src, server, rejected
}

type secretsOf = map[string]string

// rotate gives the first identity another SVID. That a response to anything
// before it was not sent shows in the nonce, which counts responses.
func rotate(s *session, src *source, serial int64) {
	next := s.known[own].identity(serial, web)
	src.set(func(g *workload.Grant) { g.Identities = append([]*workload.Identity{next}, g.Identities[1:]...) })
}

func TestPushes(t *testing.T) {
	s, src, _, rejected := open(t, 1, 2)
	s.send(&discoveryv3.DiscoveryRequest{Node: envoy(40), ResourceNames: []string{"default"}})
	s.want("1", secretsOf{"default": web + " #1"})
	first := s.last
	src.processed(func() { s.ack("default") })
	rotate(s, src, 3)
	s.want("2", secretsOf{"default": web + " #3"})
	if s.last.VersionInfo == first.VersionInfo {
		t.Error("another SVID has the same version")
	}
	// Late answers to the first response change nothing.
	src.processed(func() {
		s.send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{api}, VersionInfo: first.VersionInfo, ResponseNonce: first.Nonce})
	})
	src.processed(func() { s.ack("default") })
	// The bundle is not among what is asked for.
	src.processed(func() { src.set(func(g *workload.Grant) { g.Bundle = newAuthority(own).bundle }) })
	src.set(func(g *workload.Grant) { g.Bundle = s.known[own].bundle })
	// Other names are answered at once, the node known from the first request.
	s.ack("default", "ROOTCA")
	s.want("3", secretsOf{"default": web + " #3", "ROOTCA": "example.org=example.org "})
	// A response that was not taken is not repeated, its successor is sent.
	src.processed(func() {
		s.send(&discoveryv3.DiscoveryRequest{
			ResourceNames: []string{"default", "ROOTCA"}, VersionInfo: first.VersionInfo, ResponseNonce: s.last.Nonce,
			ErrorDetail: &rpcstatus.Status{Code: int32(codes.Internal), Message: "bad key"},
		})
	})
	rotate(s, src, 4)
	s.want("4", secretsOf{"default": web + " #4", "ROOTCA": "example.org=example.org "})
	if *rejected != 1 {
		t.Errorf("%d rejected responses counted, want 1", *rejected)
	}
	// Nothing is wanted any more, and then something again.
	src.processed(func() { s.ack() })
	src.processed(func() { rotate(s, src, 5) })
	s.ack(api)
	s.want("5", secretsOf{api: api + " #2"})
	src.processed(func() { s.ack(api) })
	s.ack(api, web)
	s.want("6", secretsOf{api: api + " #2", web: web + " #5"})
}

// Envoy keeps what it has. What is taken away is therefore replaced first.
func TestTakenAway(t *testing.T) {
	const nobody = " #1"
	t.Run("all", func(t *testing.T) {
		s, src, _, _ := open(t, 10, 20)
		s.send(&discoveryv3.DiscoveryRequest{Node: envoy(40), ResourceNames: []string{"default", "ROOTCA", api}})
		s.want("1", secretsOf{"default": web + " #10", "ROOTCA": "example.org=example.org ", api: api + " #20"})
		src.set(func(g *workload.Grant) { g.Identities = nil })
		s.want("2", secretsOf{"default": nobody, api: nobody})
		s.wantEnd(codes.PermissionDenied)
	})
	t.Run("one of two", func(t *testing.T) {
		s, src, _, _ := open(t, 10, 20)
		s.send(&discoveryv3.DiscoveryRequest{Node: envoy(40), ResourceNames: []string{"default", api}})
		s.want("1", secretsOf{"default": web + " #10", api: api + " #20"})
		src.set(func(g *workload.Grant) { g.Identities = g.Identities[:1] })
		s.want("2", secretsOf{api: nobody})
		s.wantEnd(codes.InvalidArgument)
	})
	t.Run("nothing for a name that never was", func(t *testing.T) {
		s, _, _, _ := open(t, 10)
		s.send(&discoveryv3.DiscoveryRequest{Node: envoy(40), ResourceNames: []string{"default"}})
		s.want("1", secretsOf{"default": web + " #10"})
		s.ack("default", api)
		s.wantEnd(codes.InvalidArgument)
	})
	t.Run("not where the agent stops", func(t *testing.T) {
		s, _, server, _ := open(t, 10)
		s.send(&discoveryv3.DiscoveryRequest{Node: envoy(40), ResourceNames: []string{"default"}})
		s.want("1", secretsOf{"default": web + " #10"})
		go server.Stop(t.Context())
		s.wantEnd(codes.Unavailable)
	})
	t.Run("not where the SVID has expired", func(t *testing.T) {
		s, src, _, _ := open(t, 10)
		s.send(&discoveryv3.DiscoveryRequest{Node: envoy(40), ResourceNames: []string{"default"}})
		s.want("1", secretsOf{"default": web + " #10"})
		src.set(func(g *workload.Grant) {
			g.Identities = []*workload.Identity{{EntryID: web, ID: g.Identities[0].ID}}
		})
		s.wantEnd(codes.Unavailable)
	})
}

// Whatever is asked for, what comes back has been asked for and is the caller's.
func FuzzNames(f *testing.F) {
	ca := newAuthority(own)
	grant := workload.Grant{Identities: []*workload.Identity{ca.identity(1, web)}, Bundle: ca.bundle}
	for _, seed := range []string{"default", "ALL,ROOTCA", web, "spiffe://example.org", ",,", api, "spiffe://example.org/WEB"} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	s := &service{c: Config{Names: DefaultNames()}}
	mine := map[string]bool{"default": true, "ALL": true, "ROOTCA": true, web: true, "spiffe://example.org": true}
	f.Fuzz(func(t *testing.T, list string, spiffe bool) {
		asked := names(&discoveryv3.DiscoveryRequest{ResourceNames: strings.Split(list, ",")})
		set, err := s.build(grant, asked, spiffe)
		if err != nil {
			return
		}
		if len(asked) > 0 && len(set.list) != len(asked) {
			t.Errorf("%d secrets for %q", len(set.list), asked)
		}
		for _, secret := range set.list {
			if !mine[secret.Name] {
				t.Errorf("%q is nobody's", secret.Name)
			}
		}
	})
}
