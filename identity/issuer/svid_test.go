package issuer_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

func TestBatchNewX509SVID(t *testing.T) {
	w := newWorld(t)
	a, other := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	e := entry("/svc/web", "/node/a", "uid:1")
	e.X509SvidTtl, e.DnsNames, e.Hint = 60, []string{"web.example.org"}, "internal"
	web := w.create(e)[0]
	key := newKey(t)
	good := csr(t, key, "spiffe://example.org/svc/web")
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	must(t, err)
	two, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "a"}, {Scheme: "spiffe", Host: "b"}}}, key)
	must(t, err)
	forged := append([]byte{}, good...)
	forged[len(forged)-1] ^= 1
	cases := []struct {
		entry string
		csr   []byte
		code  codes.Code
		says  string
	}{
		{web.Id, good, codes.OK, ""},
		{web.Id, csr(t, key, ""), codes.OK, ""},
		{"", good, codes.InvalidArgument, "entry_id is missing"},
		{"unknown", good, codes.NotFound, "not authorized"},
		{web.Id, nil, codes.InvalidArgument, "csr is missing"},
		{web.Id, []byte("junk"), codes.InvalidArgument, "csr is malformed"},
		{web.Id, make([]byte, 20<<10), codes.InvalidArgument, "csr has"},
		{web.Id, forged, codes.InvalidArgument, "not signed"},
		{web.Id, csr(t, key, "spiffe://example.org/svc/db"), codes.InvalidArgument, "csr asks for"},
		{web.Id, csr(t, key, "spiffe://example.org/spire/server"), codes.InvalidArgument, "csr asks for"},
		{web.Id, two, codes.InvalidArgument, "2 URIs"},
		{web.Id, csr(t, p224, ""), codes.InvalidArgument, "P-256, P-384 or P-521"},
	}
	req := &svidv1.BatchNewX509SVIDRequest{}
	for _, c := range cases {
		req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: c.entry, Csr: c.csr})
	}
	resp, err := a.svids().BatchNewX509SVID(t.Context(), req)
	must(t, err)
	if len(resp.Results) != len(cases) {
		t.Fatalf("%d results for %d items", len(resp.Results), len(cases))
	}
	bundle, _ := w.issuer.Bundle()
	for n, c := range cases {
		r := resp.Results[n]
		if r.Status == nil || codes.Code(r.Status.Code) != c.code || !strings.Contains(r.Status.Message, c.says) {
			t.Errorf("item %d: %v, want %v %q", n, r.Status, c.code, c.says)
			continue
		}
		if c.code != codes.OK {
			if r.Svid != nil {
				t.Errorf("item %d: refused, and yet an SVID", n)
			}
			continue
		}
		id, chains, err := x509svid.ParseAndVerify(r.Svid.CertChain, bundle)
		must(t, err)
		leaf := chains[0][0]
		if id.String() != "spiffe://example.org/svc/web" || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(key.Public()) ||
			leaf.DNSNames[0] != "web.example.org" || leaf.NotAfter.Sub(leaf.NotBefore) != 70*time.Second ||
			r.Svid.ExpiresAt != leaf.NotAfter.Unix() || r.Svid.Hint != "internal" {
			t.Errorf("item %d: %v, %v", n, id, r.Svid)
		}
	}
	// Another agent gets nothing of it.
	resp, err = other.svids().BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: req.Params[:1]})
	must(t, err)
	if codes.Code(resp.Results[0].Status.Code) != codes.NotFound {
		t.Errorf("another agent: %v", resp.Results[0])
	}
	_, err = a.svids().BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = a.svids().BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: make([]*svidv1.NewX509SVIDParams, 501)})
	wantCode(t, err, codes.InvalidArgument)
}

func TestKeyTypes(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	web := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	for name, key := range map[string]any{"P-384": p384, "RSA 2048": rsa2048} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		must(t, err)
		resp, err := a.svids().BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: web.Id, Csr: der}}})
		must(t, err)
		if resp.Results[0].Status.Code != 0 {
			t.Errorf("%s: %v", name, resp.Results[0].Status)
		}
	}
}

func TestNewJWTSVID(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, other := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	web := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	resp, err := a.svids().NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: web.Id, Audience: []string{"db"}})
	must(t, err)
	s := resp.Svid
	if s.Id.GetPath() != "/svc/web" || s.IssuedAt == 0 || s.ExpiresAt-s.IssuedAt != 300 {
		t.Errorf("JWT-SVID %v", s)
	}
	// Verified with what an agent has: the bundle as it goes over the wire.
	b, err := a.bundles().GetBundle(ctx, &bundlev1.GetBundleRequest{})
	must(t, err)
	verifier := jwtbundle.New(td)
	for _, k := range b.JwtAuthorities {
		key, err := x509.ParsePKIXPublicKey(k.PublicKey)
		must(t, err)
		must(t, verifier.AddJWTAuthority(k.KeyId, key))
	}
	if _, err := jwtsvid.ParseAndValidate(s.Token, verifier, []string{"db"}); err != nil {
		t.Error(err)
	}
	if _, err := jwtsvid.ParseAndValidate(s.Token, verifier, []string{"cache"}); err == nil {
		t.Error("valid for another audience")
	}
	long := make([]string, 65)
	for n := range long {
		long[n] = fmt.Sprint("a", n)
	}
	for name, req := range map[string]*svidv1.NewJWTSVIDRequest{
		"no entry":    {Audience: []string{"a"}},
		"no audience": {EntryId: web.Id},
		"empty":       {EntryId: web.Id, Audience: []string{""}},
		"many":        {EntryId: web.Id, Audience: long},
		"long":        {EntryId: web.Id, Audience: []string{strings.Repeat("a", 2049)}},
	} {
		if _, err := a.svids().NewJWTSVID(ctx, req); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			wantCode(t, err, codes.InvalidArgument)
		}
	}
	_, err = other.svids().NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: web.Id, Audience: []string{"db"}})
	wantCode(t, err, codes.NotFound)
	if got := len(w.did("jwt-svid", "issued")); got != 1 {
		t.Errorf("%d on record", got)
	}
}

func TestMint(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	key := newKey(t)
	u, err := url.Parse("spiffe://example.org/adhoc")
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "adhoc"}, URIs: []*url.URL{u}, DNSNames: []string{"adhoc.example.org"},
	}, key)
	must(t, err)
	resp, err := w.minting().MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: der, Ttl: 120})
	must(t, err)
	bundle, _ := w.issuer.Bundle()
	_, chains, err := x509svid.ParseAndVerify(resp.Svid.CertChain, bundle)
	must(t, err)
	leaf := chains[0][0]
	if leaf.Subject.CommonName != "adhoc" || len(leaf.DNSNames) != 1 || time.Until(leaf.NotAfter) > 2*time.Minute {
		t.Errorf("minted %v %v %v", leaf.Subject, leaf.DNSNames, leaf.NotAfter)
	}
	for name, der := range map[string][]byte{
		"no URI":  csr(t, key, ""),
		"foreign": csr(t, key, "spiffe://other.org/a"),
		"server":  csr(t, key, "spiffe://example.org/spire/server"),
		"agent":   csr(t, key, "spiffe://example.org/spire/agent/x"),
		"no path": csr(t, key, "spiffe://example.org"),
		"https":   csr(t, key, "https://example.org/a"),
	} {
		if _, err := w.minting().MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: der}); err == nil {
			t.Errorf("%s: minted", name)
		} else {
			wantCode(t, err, codes.InvalidArgument)
		}
	}
	jwt, err := w.minting().MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{Id: id("/adhoc"), Audience: []string{"x"}, Ttl: 60})
	must(t, err)
	if jwt.Svid.ExpiresAt-jwt.Svid.IssuedAt != 60 {
		t.Errorf("minted %v", jwt.Svid)
	}
	_, err = w.minting().MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{Id: id("/spire/server"), Audience: []string{"x"}})
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.minting().MintWITSVID(ctx, &svidv1.MintWITSVIDRequest{})
	wantCode(t, err, codes.Unimplemented)
	_, err = w.minting().NewDownstreamX509CA(ctx, &svidv1.NewDownstreamX509CARequest{})
	wantCode(t, err, codes.PermissionDenied)
}

// asWorkload is a caller with a workload's SVID.
func (w *world) asWorkload(t *testing.T, path string) *agent {
	t.Helper()
	key := newKey(t)
	resp, err := w.minting().MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: csr(t, key, "spiffe://example.org"+path)})
	must(t, err)
	a := &agent{w: w}
	a.adopt(resp.Svid, key)
	t.Cleanup(func() { a.conn.Close() })
	return a
}

func TestAdminByEntry(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	boss := w.asWorkload(t, "/boss")
	_, err := boss.entries().CountEntries(ctx, &entryv1.CountEntriesRequest{})
	wantCode(t, err, codes.PermissionDenied)
	e := entry("/boss", "/node/a", "uid:1")
	e.Admin = true
	made := w.create(e)[0]
	_, err = boss.entries().CountEntries(ctx, &entryv1.CountEntriesRequest{})
	must(t, err)
	// The control plane's own names are given on the admin socket only.
	resp, err := boss.entries().BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{entry("/writ/server", "/node/a", "uid:1")}})
	must(t, err)
	if codes.Code(resp.Results[0].Status.Code) != codes.PermissionDenied {
		t.Errorf("a remote administrator made /writ/server: %v", resp.Results[0])
	}
	server := w.create(entry("/writ/server", "/node/a", "uid:1"))[0]
	upd, err := boss.entries().BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
		Entries: []*types.Entry{{Id: made.Id, SpiffeId: id("/writ/server")}, {Id: server.Id, ParentId: id("/node/mine")}}, InputMask: &types.EntryMask{SpiffeId: true, ParentId: true},
	})
	must(t, err)
	for n, r := range upd.Results {
		if r.Status.Code == 0 {
			t.Errorf("update %d passed", n)
		}
	}
	_, err = boss.svids().MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr(t, newKey(t), "spiffe://example.org/writ/server")})
	wantCode(t, err, codes.PermissionDenied)
	w.deleteEntry(made.Id)
	_, err = boss.entries().CountEntries(ctx, &entryv1.CountEntriesRequest{})
	wantCode(t, err, codes.PermissionDenied)
}
