package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

const name = "spiffe://example.org/svc/web"

// fake is a Workload API that keeps the standards, but for what a test breaks.
type fake struct {
	workloadpb.UnimplementedSpiffeWorkloadAPIServer
	caKey, leafKey, jwtKey *ecdsa.PrivateKey
	ca, leaf               *x509.Certificate

	ignoreHeader, noDenial bool
	x509                   func(*workloadpb.X509SVIDResponse)
	claims, header         func(map[string]any)
	jwks                   func(*jose.JSONWebKeySet)
	acceptAll              bool
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newFake(t *testing.T, leaf, ca func(*x509.Certificate)) *fake {
	t.Helper()
	f := &fake{caKey: key(t), leafKey: key(t), jwtKey: key(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org"}},
	}
	if ca != nil {
		ca(template)
	}
	f.ca = sign(t, template, template, f.caKey, f.caKey)
	template = &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/svc/web"}},
	}
	if leaf != nil {
		leaf(template)
	}
	f.leaf = sign(t, template, f.ca, f.leafKey, f.caKey)
	return f
}

func sign(t *testing.T, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (f *fake) admit(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("workload.spiffe.io"); !f.ignoreHeader && (len(got) != 1 || got[0] != "true") {
		return status.Error(codes.InvalidArgument, "no header")
	}
	return nil
}

func (f *fake) FetchX509SVID(_ *workloadpb.X509SVIDRequest, s grpc.ServerStreamingServer[workloadpb.X509SVIDResponse]) error {
	if err := f.admit(s.Context()); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(f.leafKey)
	if err != nil {
		return err
	}
	m := &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{{SpiffeId: name, X509Svid: f.leaf.Raw, X509SvidKey: der, Bundle: f.ca.Raw}}}
	if f.x509 != nil {
		f.x509(m)
	}
	if err := s.Send(m); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func (f *fake) FetchX509Bundles(_ *workloadpb.X509BundlesRequest, s grpc.ServerStreamingServer[workloadpb.X509BundlesResponse]) error {
	return s.Send(&workloadpb.X509BundlesResponse{Bundles: map[string][]byte{"spiffe://example.org": f.ca.Raw}})
}

func (f *fake) keys() []byte {
	set := &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: f.jwtKey.Public(), KeyID: "k1"}}}
	if f.jwks != nil {
		f.jwks(set)
	}
	doc, _ := json.Marshal(set)
	return doc
}

func (f *fake) FetchJWTBundles(_ *workloadpb.JWTBundlesRequest, s grpc.ServerStreamingServer[workloadpb.JWTBundlesResponse]) error {
	return s.Send(&workloadpb.JWTBundlesResponse{Bundles: map[string][]byte{"spiffe://example.org": f.keys()}})
}

func (f *fake) FetchJWTSVID(_ context.Context, r *workloadpb.JWTSVIDRequest) (*workloadpb.JWTSVIDResponse, error) {
	switch {
	case len(r.GetAudience()) == 0:
		return nil, status.Error(codes.InvalidArgument, "no audience")
	case r.GetSpiffeId() != "" && r.GetSpiffeId() != name && !f.noDenial:
		return nil, status.Error(codes.PermissionDenied, "not yours")
	}
	claims := map[string]any{"sub": name, "aud": r.GetAudience(), "exp": time.Now().Add(time.Minute).Unix()}
	header := map[string]any{"kid": "k1", "typ": "JWT"}
	if f.claims != nil {
		f.claims(claims)
	}
	if f.header != nil {
		f.header(header)
	}
	options := &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{}}
	for k, v := range header {
		options.ExtraHeaders[jose.HeaderKey(k)] = v
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: f.jwtKey}, options)
	if err != nil {
		return nil, err
	}
	payload, _ := json.Marshal(claims)
	signed, err := signer.Sign(payload)
	if err != nil {
		return nil, err
	}
	token, err := signed.CompactSerialize()
	return &workloadpb.JWTSVIDResponse{Svids: []*workloadpb.JWTSVID{{SpiffeId: name, Svid: token}}}, err
}

func (f *fake) ValidateJWTSVID(_ context.Context, r *workloadpb.ValidateJWTSVIDRequest) (*workloadpb.ValidateJWTSVIDResponse, error) {
	if r.GetAudience() == "" || r.GetSvid() == "" {
		return nil, status.Error(codes.InvalidArgument, "empty")
	}
	if !f.acceptAll {
		signed, err := jose.ParseSignedCompact(r.GetSvid(), algorithms)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if _, err := signed.Verify(f.jwtKey.Public()); err != nil || r.GetAudience() != "conformance" {
			return nil, status.Error(codes.InvalidArgument, "not valid")
		}
	}
	claims, err := structpb.NewStruct(map[string]any{"sub": name, "aud": "conformance", "exp": 1})
	return &workloadpb.ValidateJWTSVIDResponse{SpiffeId: name, Claims: claims}, err
}

func (f *fake) serve(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	workloadpb.RegisterSpiffeWorkloadAPIServer(s, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return "unix://" + socket
}

// outcome runs the program and gives its exit code and the failed checks.
func outcome(t *testing.T, args ...string) (int, []string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), append(args, "--output", "json"), &stdout, &stderr)
	var doc struct{ Checks []Check }
	if err := json.Unmarshal(stdout.Bytes(), &doc); err != nil {
		t.Fatalf("%v: %s%s", err, &stdout, &stderr)
	}
	var failed []string
	for _, c := range doc.Checks {
		if c.Result == Fail {
			failed = append(failed, c.ID)
		}
	}
	return code, failed
}

// What is broken fails by its name, and nothing else does.
func TestWorkloadAPI(t *testing.T) {
	for _, tt := range []struct {
		name     string
		leaf, ca func(*x509.Certificate)
		change   func(*fake)
		code     int
		failed   []string
	}{
		{name: "sound"},
		{name: "no header", change: func(f *fake) { f.ignoreHeader = true }, code: 1, failed: []string{"endpoint-header", "endpoint-header-other"}},
		{name: "two URIs", leaf: func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "https", Host: "x"}) }, code: 1, failed: []string{"svid-uri"}},
		{name: "leaf may sign", leaf: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, code: 1, failed: []string{"svid-key-usage"}},
		{name: "leaf for servers", leaf: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, code: 1, failed: []string{"svid-eku"}},
		{name: "no extended key usage", leaf: func(c *x509.Certificate) { c.ExtKeyUsage = nil }, failed: []string{"svid-eku-present"}},
		{name: "no key usage", leaf: func(c *x509.Certificate) { c.KeyUsage = 0 }, code: 1, failed: []string{"svid-key-usage-critical", "svid-key-usage"}},
		{name: "expired", leaf: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, code: 1, failed: []string{"svid-chain", "svid-time"}},
		{name: "authority with path", ca: func(c *x509.Certificate) { c.URIs[0].Path = "/x" }, code: 1, failed: []string{"ca-path"}},
		{name: "another's key", change: func(f *fake) { f.leafKey = f.jwtKey }, code: 1, failed: []string{"svid-key"}},
		{name: "upper case", change: func(f *fake) {
			f.x509 = func(m *workloadpb.X509SVIDResponse) { m.Svids[0].SpiffeId = "spiffe://Example.org/svc/web" }
		}, code: 1,
			failed: []string{"x509-bundles-own", "x509-bundles-same", "id-trust-domain", "svid-uri", "ca-path", "jwt-bundles-own"}},
		{name: "hint twice", change: func(f *fake) {
			f.x509 = func(m *workloadpb.X509SVIDResponse) { m.Svids[0].Hint = "a"; m.Svids = append(m.Svids, m.Svids[0]) }
		}, code: 1, failed: []string{"x509-hints"}},
		{name: "header jku", change: func(f *fake) { f.header = func(h map[string]any) { h["jku"] = "https://x" } }, code: 1, failed: []string{"jwt-header"}},
		{name: "no exp", change: func(f *fake) { f.claims = func(c map[string]any) { delete(c, "exp") } }, code: 1, failed: []string{"jwt-exp"}},
		{name: "other sub", change: func(f *fake) { f.claims = func(c map[string]any) { c["sub"] = "x" } }, code: 1, failed: []string{"jwt-sub"}},
		{name: "no kid", change: func(f *fake) { f.jwks = func(s *jose.JSONWebKeySet) { s.Keys[0].KeyID = "" } }, code: 1, failed: []string{"jwt-signature", "jwt-bundles-kid"}},
		{name: "anybody's", change: func(f *fake) { f.noDenial = true }, failed: []string{"jwt-other"}},
		{name: "takes everything", change: func(f *fake) { f.acceptAll = true }, code: 1, failed: []string{"jwt-validate-audience", "jwt-validate-tampered", "jwt-validate-none"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, tt.leaf, tt.ca)
			if tt.change != nil {
				tt.change(f)
			}
			code, failed := outcome(t, "--socket", f.serve(t))
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if diff := cmp.Diff(tt.failed, failed); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestBundleEndpoint(t *testing.T) {
	f := newFake(t, nil, nil)
	x5c := base64.StdEncoding.EncodeToString(f.ca.Raw)
	public := f.caKey.PublicKey
	point, err := public.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	x, y := base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
	ca := `{"use":"x509-svid","kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `","x5c":["` + x5c + `"]}`
	sound := `{"keys":[` + ca + `,{"use":"jwt-svid","kty":"EC","kid":"a","crv":"P-256","x":"` + x + `","y":"` + y + `"}],"spiffe_sequence":4,"spiffe_refresh_hint":300}`
	for _, tt := range []struct {
		name, doc, id string
		code          int
		failed        []string
	}{
		{name: "sound", doc: sound},
		{name: "no keys", doc: `{"spiffe_sequence":4,"spiffe_refresh_hint":300}`, code: 1, failed: []string{"bundle-keys"}},
		{name: "no hint", doc: strings.Replace(sound, `,"spiffe_refresh_hint":300`, "", 1), failed: []string{"bundle-hint"}},
		{name: "kid", doc: strings.Replace(sound, `"use":"x509-svid"`, `"use":"x509-svid","kid":"b"`, 1), code: 1, failed: []string{"bundle-x509-kid"}},
		{name: "no kid", doc: strings.Replace(sound, `"kid":"a",`, "", 1), code: 1, failed: []string{"bundle-jwt-kid"}},
		{name: "two certificates", doc: strings.Replace(sound, `["`+x5c, `["`+x5c+`","`+x5c, 1), code: 1, failed: []string{"bundle-x509-x5c", "bundle-workload"}},
		{name: "private", doc: strings.Replace(sound, `"kid":"a"`, `"kid":"a","d":"AA"`, 1), code: 1, failed: []string{"bundle-private"}},
		{name: "no JSON", doc: "<html>", code: 1, failed: []string{"bundle-get"}},
		{name: "another's name", doc: sound, id: "spiffe://example.org/other", code: 1, failed: []string{"bundle-spiffe", "bundle-get"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(tt.doc)) }))
			s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{f.leaf.Raw}, PrivateKey: f.leafKey}}}
			s.Config.ErrorLog = nil
			s.StartTLS()
			defer s.Close()
			id := tt.id
			if id == "" {
				id = name
			}
			roots := filepath.Join(t.TempDir(), "roots.pem")
			if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.ca.Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			code, failed := outcome(t, "--socket", f.serve(t), "--bundle-endpoint", s.URL, "--endpoint-id", id, "--roots", roots)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if diff := cmp.Diff(tt.failed, failed); diff != "" {
				t.Error(diff)
			}
		})
	}
}
