package workload

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/peercred"
)

// calls are the methods of the API as one function each: what the first answer
// is.
var calls = map[string]func(context.Context, workloadpb.SpiffeWorkloadAPIClient) error{
	"FetchX509SVID": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
		return first(s, err)
	},
	"FetchX509Bundles": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
		return first(s, err)
	},
	"FetchJWTBundles": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
		return first(s, err)
	},
	"FetchJWTSVID": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		_, err := c.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"a"}})
		return err
	},
	"ValidateJWTSVID": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		_, err := c.ValidateJWTSVID(ctx, &workloadpb.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"})
		return err
	},
	"FetchWITSVID": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchWITSVID(ctx, &workloadpb.WITSVIDRequest{})
		return first(s, err)
	},
	"FetchWITBundles": func(ctx context.Context, c workloadpb.SpiffeWorkloadAPIClient) error {
		s, err := c.FetchWITBundles(ctx, &workloadpb.WITBundlesRequest{})
		return first(s, err)
	},
}

func first[M any](s interface{ Recv() (*M, error) }, err error) error {
	if err != nil {
		return err
	}
	_, err = s.Recv()
	return err
}

func TestStatus(t *testing.T) {
	ca := newAuthority(domain)
	web := ca.identity(1, "/web", "")
	unsigned := &Identity{EntryID: "e", ID: web.ID}
	wit := func(m string, c codes.Code) codes.Code {
		if strings.Contains(m, "WIT") {
			return codes.Unimplemented
		}
		return c
	}
	for _, tc := range []struct {
		name   string
		source *memory
		attest Attest
		ctx    func(context.Context) context.Context
		want   func(method string) codes.Code
	}{
		{"no security header", newMemory(ca, web), nil, func(ctx context.Context) context.Context { return ctx },
			func(string) codes.Code { return codes.InvalidArgument }},
		{"security header with another value", newMemory(ca, web), nil,
			func(ctx context.Context) context.Context {
				return metadata.AppendToOutgoingContext(ctx, securityHeader, "True")
			},
			func(string) codes.Code { return codes.InvalidArgument }},
		{"security header twice", newMemory(ca, web), nil, func(ctx context.Context) context.Context { return secured(secured(ctx)) },
			func(string) codes.Code { return codes.InvalidArgument }},
		{"no identity", newMemory(ca), nil, secured,
			func(m string) codes.Code { return wit(m, codes.PermissionDenied) }},
		{"starting", &memory{err: ErrStarting}, nil, secured,
			func(m string) codes.Code { return wit(m, codes.Unavailable) }},
		{"not attested", newMemory(ca, web), func(context.Context, peercred.Peer) ([]string, error) { return nil, errors.New("no") }, secured,
			func(m string) codes.Code { return wit(m, codes.PermissionDenied) }},
		{"no SVID yet", newMemory(ca, unsigned), nil, secured, func(m string) codes.Code {
			switch m {
			case "FetchX509SVID":
				return codes.Unavailable
			case "ValidateJWTSVID":
				return codes.InvalidArgument
			}
			return wit(m, codes.OK)
		}},
		{"all in order", newMemory(ca, web), nil, secured, func(m string) codes.Code {
			if m == "ValidateJWTSVID" { // the token is not one
				return codes.InvalidArgument
			}
			return wit(m, codes.OK)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, socket := serve(t, tc.source, func(c *Config) {
				if tc.attest != nil {
					c.Attest = tc.attest
				}
			})
			client := raw(t, socket)
			for method, call := range calls {
				ctx, cancel := context.WithCancel(t.Context())
				if got, want := status.Code(call(tc.ctx(ctx), client)), tc.want(method); got != want {
					t.Errorf("%s answers %v, want %v", method, got, want)
				}
				cancel()
			}
		})
	}
}

func TestMandatoryFields(t *testing.T) {
	ca := newAuthority(domain)
	_, socket := serve(t, newMemory(ca, ca.identity(1, "/web", "")))
	client := raw(t, socket)
	ctx := secured(t.Context())
	for name, req := range map[string]*workloadpb.JWTSVIDRequest{
		"no audience":        {},
		"empty audience":     {Audience: []string{"a", ""}},
		"too many audiences": {Audience: slices.Repeat([]string{"a"}, maxAudiences+1)},
		"bad SPIFFE ID":      {Audience: []string{"a"}, SpiffeId: "http://example.org/web"},
	} {
		if _, err := client.FetchJWTSVID(ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("FetchJWTSVID with %s: %v, want InvalidArgument", name, err)
		}
	}
	if _, err := client.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://example.org/other"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("FetchJWTSVID of another's identity: %v, want PermissionDenied", err)
	}
	for name, req := range map[string]*workloadpb.ValidateJWTSVIDRequest{
		"no audience": {Svid: "x"},
		"no svid":     {Audience: "a"},
	} {
		if _, err := client.ValidateJWTSVID(ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("ValidateJWTSVID with %s: %v, want InvalidArgument", name, err)
		}
	}
}

func TestX509SVIDMessage(t *testing.T) {
	ca, partner := newAuthority(domain), newAuthority(spiffeid.RequireTrustDomainFromString("partner.test"))
	web, api, later := ca.identity(1, "/web", "internal"), ca.identity(2, "/api", ""), &Identity{ID: spiffeid.RequireFromPath(domain, "/later")}
	source := newMemory(ca, web, later, api)
	source.set(func(g *Grant) { g.Federated = []*Bundle{partner.bundle} })
	_, socket := serve(t, source)
	stream, err := raw(t, socket).FetchX509SVID(secured(t.Context()), &workloadpb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	type svid struct{ ID, Hint, Bundle string }
	var got []svid
	for _, s := range msg.Svids {
		got = append(got, svid{s.SpiffeId, s.Hint, string(s.Bundle)})
		if _, err := x509.ParsePKCS8PrivateKey(s.X509SvidKey); err != nil {
			t.Error(err)
		}
	}
	own := string(ca.cert.Raw)
	want := []svid{{"spiffe://example.org/web", "internal", own}, {"spiffe://example.org/api", "", own}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("SVIDs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string][]byte{"spiffe://partner.test": partner.cert.Raw}, msg.FederatedBundles); diff != "" {
		t.Errorf("federated bundles (-want +got):\n%s", diff)
	}
}

// Each message is the whole state, a change that is none is not sent, and what
// is taken away ends the stream.
func TestStreamFollowsChanges(t *testing.T) {
	ca := newAuthority(domain)
	source := newMemory(ca, ca.identity(1, "/web", ""))
	_, socket := serve(t, source)
	stream, err := raw(t, socket).FetchX509SVID(secured(t.Context()), &workloadpb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() []string {
		t.Helper()
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, s := range msg.Svids {
			certs, err := x509.ParseCertificates(s.X509Svid)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, s.SpiffeId+"#"+certs[0].SerialNumber.String())
		}
		return ids
	}
	steps := []struct {
		change func(*Grant)
		want   []string
	}{
		{func(*Grant) {}, []string{"spiffe://example.org/web#1"}},
		{func(g *Grant) { g.Identities = []*Identity{g.Identities[0], ca.identity(2, "/api", "")} },
			[]string{"spiffe://example.org/web#1", "spiffe://example.org/api#2"}},
		{func(g *Grant) { g.Identities = g.Identities[1:] }, []string{"spiffe://example.org/api#2"}},
		{func(g *Grant) { g.Identities = []*Identity{ca.identity(3, "/api", "")} }, []string{"spiffe://example.org/api#3"}},
	}
	for i, step := range steps {
		if i > 0 {
			source.setAndWait(func(*Grant) {}) // changes nothing, so nothing may come of it
			source.set(step.change)
		}
		if diff := cmp.Diff(step.want, next()); diff != "" {
			t.Fatalf("message %d (-want +got):\n%s", i, diff)
		}
	}
	source.set(func(g *Grant) { g.Identities = nil })
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after the last identity: %v, want PermissionDenied", err)
	}
}

func TestExpiredIsNotServed(t *testing.T) {
	ca := newAuthority(domain)
	source := newMemory(ca, ca.identity(1, "/web", ""))
	_, socket := serve(t, source)
	stream, err := raw(t, socket).FetchX509SVID(secured(t.Context()), &workloadpb.X509SVIDRequest{})
	if err := first(stream, err); err != nil {
		t.Fatal(err)
	}
	source.set(func(g *Grant) { g.Identities = []*Identity{{ID: g.Identities[0].ID}} })
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("once the SVID has expired: %v, want Unavailable", err)
	}
}

func TestBundles(t *testing.T) {
	ca, partner := newAuthority(domain), newAuthority(spiffeid.RequireTrustDomainFromString("partner.test"))
	onlyX509 := must(NewBundle(spiffeid.RequireTrustDomainFromString("x509.test"), []*x509.Certificate{partner.cert}, nil))
	source := newMemory(ca, ca.identity(1, "/web", ""))
	source.set(func(g *Grant) { g.Federated = []*Bundle{partner.bundle, onlyX509} })
	_, socket := serve(t, source)
	client := raw(t, socket)
	xs, err := client.FetchX509Bundles(secured(t.Context()), &workloadpb.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := xs.Recv()
	if err != nil {
		t.Fatal(err)
	}
	wantX := map[string][]byte{"spiffe://example.org": ca.cert.Raw, "spiffe://partner.test": partner.cert.Raw, "spiffe://x509.test": partner.cert.Raw}
	if diff := cmp.Diff(wantX, x.Bundles); diff != "" {
		t.Errorf("X.509 bundles (-want +got):\n%s", diff)
	}
	js, err := client.FetchJWTBundles(secured(t.Context()), &workloadpb.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	j, err := js.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(j.Bundles) != 2 || j.Bundles["spiffe://example.org"] == nil || j.Bundles["spiffe://partner.test"] == nil {
		t.Errorf("JWT bundles of %d trust domains, want example.org and partner.test", len(j.Bundles))
	}
	for td, doc := range j.Bundles {
		var set struct{ Keys []map[string]any }
		if err := json.Unmarshal(doc, &set); err != nil {
			t.Fatal(err)
		}
		for _, k := range set.Keys {
			if k["use"] != "jwt-svid" || k["kid"] == "" || k["d"] != nil {
				t.Errorf("key of %s: %v", td, k)
			}
		}
	}
	// The own bundle is there though it has no keys at all.
	empty := must(NewBundle(domain, nil, nil))
	source.set(func(g *Grant) { g.Bundle, g.Federated = empty, nil })
	if j, err = js.Recv(); err != nil || string(j.Bundles["spiffe://example.org"]) != `{"keys":[]}` {
		t.Errorf("own bundle without keys: %v, %v", j, err)
	}
}

func TestNewBundleRefuses(t *testing.T) {
	key := newKey()
	for name, keys := range map[string]map[string]crypto.PublicKey{
		"empty key id": {"": key.Public()},
		"private key":  {"k": key},
	} {
		if _, err := NewBundle(domain, nil, keys); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestValidateJWTSVID(t *testing.T) {
	ca, stranger := newAuthority(domain), newAuthority(domain)
	_, socket := serve(t, newMemory(ca, ca.identity(1, "/web", "")))
	client := raw(t, socket)
	now := time.Now()
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{"sub": "spiffe://example.org/web", "aud": []string{"a"}, "exp": now.Add(time.Minute).Unix(), "extra": map[string]any{"n": 1}}
		for k, v := range change {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return c
	}
	none := base64JSON(t, map[string]any{"alg": "none", "kid": "k1"}) + "." + base64JSON(t, claims(nil)) + "."
	for _, tc := range []struct {
		name  string
		token string
		ok    bool
	}{
		{"valid", ca.token(claims(nil), nil), true},
		{"typ JWT", ca.token(claims(nil), map[jose.HeaderKey]any{"typ": "JWT"}), true},
		{"typ JOSE", ca.token(claims(nil), map[jose.HeaderKey]any{"typ": "JOSE"}), true},
		{"another typ", ca.token(claims(nil), map[jose.HeaderKey]any{"typ": "at+jwt"}), false},
		{"no sub", ca.token(claims(map[string]any{"sub": nil}), nil), false},
		{"sub is no SPIFFE ID", ca.token(claims(map[string]any{"sub": "web"}), nil), false},
		{"no aud", ca.token(claims(map[string]any{"aud": nil}), nil), false},
		{"another aud", ca.token(claims(map[string]any{"aud": []string{"b"}}), nil), false},
		{"no exp", ca.token(claims(map[string]any{"exp": nil}), nil), false},
		{"expired a second ago", ca.token(claims(map[string]any{"exp": now.Add(-time.Second).Unix()}), nil), false},
		{"issued in half a minute", ca.token(claims(map[string]any{"iat": now.Add(30 * time.Second).Unix()}), nil), true},
		{"issued in two hours", ca.token(claims(map[string]any{"iat": now.Add(2 * time.Hour).Unix(), "exp": now.Add(3 * time.Hour).Unix()}), nil), false},
		{"signed by another", stranger.token(claims(nil), nil), false},
		{"another trust domain", ca.token(claims(map[string]any{"sub": "spiffe://other.test/web"}), nil), false},
		{"not signed", none, false},
		{"not a token", "a.b.c", false},
	} {
		resp, err := client.ValidateJWTSVID(secured(t.Context()), &workloadpb.ValidateJWTSVIDRequest{Audience: "a", Svid: tc.token})
		switch {
		case tc.ok && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case !tc.ok && status.Code(err) != codes.InvalidArgument:
			t.Errorf("%s: %v, %v, want InvalidArgument", tc.name, resp, err)
		case tc.name == "issued in two hours" && !strings.Contains(err.Error(), "in the future of this machine's clock"):
			t.Errorf("%s: %v", tc.name, err)
		case tc.ok && (resp.SpiffeId != "spiffe://example.org/web" || resp.Claims.Fields["extra"].GetStructValue().Fields["n"].GetNumberValue() != 1):
			t.Errorf("%s: %v", tc.name, resp)
		}
	}
}

// go-spiffe's client, unmodified.
func TestGoSPIFFE(t *testing.T) {
	ca := newAuthority(domain)
	web := ca.identity(1, "/web", "")
	source := newMemory(ca, web, ca.identity(2, "/api", "second"))
	_, socket := serve(t, source)
	ctx := t.Context()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	x509Source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(client))
	if err != nil {
		t.Fatal(err)
	}
	defer x509Source.Close()
	for serial := int64(1); serial < 5; serial++ {
		svid, err := x509Source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if svid.ID != web.ID || svid.Certificates[0].SerialNumber.Int64() != serial {
			t.Fatalf("got %s#%v, want serial %d", svid.ID, svid.Certificates[0].SerialNumber, serial)
		}
		source.set(func(g *Grant) { g.Identities = []*Identity{ca.identity(serial+1, "/web", "")} })
		<-x509Source.Updated()
	}
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b"}, Subject: web.ID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), "b"); err != nil {
		t.Error(err)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"a"}); err != nil {
		t.Error(err)
	}
	if set, err := client.FetchX509Bundles(ctx); err != nil || !set.Has(domain) {
		t.Errorf("X.509 bundles: %v, %v", set, err)
	}
	if _, err := client.FetchWITSVID(ctx, ""); status.Code(err) != codes.Unimplemented {
		t.Errorf("FetchWITSVID: %v, want Unimplemented", err)
	}
}

func TestTooManyJWTSVIDs(t *testing.T) {
	ca := newAuthority(domain)
	_, socket := serve(t, newMemory(ca, ca.identity(1, "/web", "")))
	_, err := raw(t, socket).FetchJWTSVID(secured(t.Context()), &workloadpb.JWTSVIDRequest{Audience: []string{"too many"}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v, want ResourceExhausted", err)
	}
}

func TestIssuerErrorsStayInside(t *testing.T) {
	ca := newAuthority(domain)
	source := newMemory(ca, ca.identity(1, "/web", ""))
	source.ca = nil
	_, socket := serve(t, source)
	_, err := raw(t, socket).FetchJWTSVID(secured(t.Context()), &workloadpb.JWTSVIDRequest{Audience: []string{"a"}})
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v, want Unavailable without the reason", err)
	}
}
