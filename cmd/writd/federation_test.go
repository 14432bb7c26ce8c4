package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/writdconf"
)

// domain is a writd of a trust domain of its own, with its public listeners.
type domain struct {
	t *testing.T
	*writd
	admin *grpc.ClientConn
	addrs map[string]string // of the listeners
}

func newDomain(t *testing.T, name string, change func(*writdconf.Config)) *domain {
	t.Helper()
	cfg := writdconf.Default()
	cfg.TrustDomain, cfg.DataDir = name, t.TempDir()
	change(&cfg)
	if err := cfg.Validate(unplaced); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	w := &writd{cfg: cfg, log: log, alarms: newAlarms(log), held: map[string]*sqldb.Held{}, started: time.Now()}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &domain{t: t, writd: w, addrs: map[string]string{}}
	running, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = w.issuer.Run(running) })
	memory := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	w.issuer.Register(s, func(context.Context) (issuer.Caller, error) { return issuer.LocalCaller(0), nil })
	done.Go(func() { _ = s.Serve(memory) })
	var ends []func()
	for _, open := range []func() (*listener, error){w.listenFederation, w.listenOIDC} {
		l, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if l != nil {
			d.addrs[l.name] = l.addr.String()
			done.Go(func() {
				if err := l.serve(); err != nil {
					t.Error(err)
				}
			})
			ends = append(ends, l.graceful)
		}
	}
	conn, err := grpc.NewClient("passthrough:writd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return memory.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	d.admin = conn
	t.Cleanup(func() {
		for _, end := range ends {
			end()
		}
		conn.Close()
		s.Stop()
		stop()
		done.Wait()
	})
	return d
}

// federate makes d recognise other, by its endpoint and its bundle of now.
func (d *domain) federate(other *domain) {
	d.t.Helper()
	b, err := bundlev1.NewBundleClient(other.admin).GetBundle(d.t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	b.JwtAuthorities, b.SequenceNumber = nil, 0 // as from a file with certificates
	resp, err := trustdomainv1.NewTrustDomainClient(d.admin).BatchCreateFederationRelationship(d.t.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{{
			TrustDomain: other.td.Name(), BundleEndpointUrl: "https://" + other.addrs["federation"], TrustDomainBundle: b,
			BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "spiffe://" + other.td.Name() + "/spire/server"}},
		}}})
	if err != nil || resp.Results[0].Status.Code != 0 {
		d.t.Fatal(resp, err)
	}
}

func (d *domain) refresh(other *domain) error {
	_, err := trustdomainv1.NewTrustDomainClient(d.admin).RefreshBundle(d.t.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: other.td.Name()})
	return err
}

func TestFederationBothWays(t *testing.T) {
	endpoint := func(c *writdconf.Config) {
		c.Federation = &writdconf.Federation{Listen: "127.0.0.1:0", RefreshHint: time.Hour}
	}
	a, b := newDomain(t, "a.test", endpoint), newDomain(t, "b.test", endpoint)
	a.federate(b)
	b.federate(a)
	for _, pair := range [][2]*domain{{a, b}, {b, a}} {
		if err := pair[0].refresh(pair[1]); err != nil {
			t.Fatal(err)
		}
		got, want := pair[0].registry.FederatedBundle(pair[1].td), pair[1].issuer.OwnBundle()
		if len(got.X509Authorities) != len(want.X509Authorities) || len(got.JWTAuthorities) != len(want.JWTAuthorities) || got.Sequence != want.Sequence || got.RefreshHint != time.Hour {
			t.Errorf("%s knows %+v of %s", pair[0].td, got, pair[1].td)
		}
	}
	if list := a.federationProblems(); len(list) != 0 {
		t.Errorf("problems: %v", list)
	}
	// The endpoint tells nothing to those who do not verify as it says, and
	// resumes no session.
	conn, err := tls.Dial("tcp", a.addrs["federation"], &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if leaf := conn.ConnectionState().PeerCertificates[0]; len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://a.test/spire/server" {
		t.Errorf("the endpoint shows %v", leaf.URIs)
	}
	if _, err := tls.Dial("tcp", a.addrs["federation"], &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}

func TestFederationFailureIsSeen(t *testing.T) {
	a := newDomain(t, "a.test", func(*writdconf.Config) {})
	b := newDomain(t, "b.test", func(c *writdconf.Config) { c.Federation = &writdconf.Federation{Listen: "127.0.0.1:0"} })
	b.addrs["federation"] = "127.0.0.1:1"
	a.federate(b)
	if err := a.refresh(b); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Fatalf("refresh: %v", err)
	}
	list := a.federationProblems()
	if len(list) != 1 || !strings.Contains(list[0], "the bundle of b.test is not refreshed") || !strings.Contains(list[0], "last refreshed: not since writd started") {
		t.Errorf("problems: %v", list)
	}
	rec := httptest.NewRecorder()
	a.healthHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{`writd_federation_refreshed_seconds{trust_domain="b.test"} 0`, `writd_federation_failures_total{cause="unreachable",trust_domain="b.test"}`} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("no metric %s", want)
		}
	}
	// Ready all the same: what was known is served.
	if list := a.problems(); len(list) != 0 {
		t.Errorf("not ready: %v", list)
	}
}

// webFiles writes a certificate for 127.0.0.1 and its key.
func webFiles(t *testing.T, certFile, keyFile string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func getWith(t *testing.T, root *x509.Certificate, url string) (string, error) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(root)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", resp.Status)
	}
	return string(body), err
}

// Endpoints with a certificate of the web take a new one without a restart, and
// go on with the old one while the files do not fit together.
func TestWebEndpoints(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	first := webFiles(t, certFile, keyFile)
	d := newDomain(t, "a.test", func(c *writdconf.Config) {
		c.Federation = &writdconf.Federation{Listen: "127.0.0.1:0", Profile: writdconf.ProfileWeb, CertFile: certFile, KeyFile: keyFile}
		c.OIDC = &writdconf.OIDC{Listen: "127.0.0.1:0", Issuer: "https://id.a.test", CertFile: certFile, KeyFile: keyFile}
	})
	doc, err := getWith(t, first, "https://"+d.addrs["federation"]+"/")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := federation.Parse(d.td, []byte(doc)); err != nil || len(b.X509Authorities) == 0 || len(b.JWTAuthorities) == 0 {
		t.Errorf("served %v, %v", b, err)
	}
	var discovery struct{ Issuer string }
	text, err := getWith(t, first, "https://"+d.addrs["oidc"]+"/.well-known/openid-configuration")
	if err != nil || json.Unmarshal([]byte(text), &discovery) != nil || discovery.Issuer != "https://id.a.test" {
		t.Errorf("discovery: %s, %v", text, err)
	}
	// A new certificate, and not yet its key.
	other := filepath.Join(dir, "other.pem")
	second := webFiles(t, certFile, other)
	if _, err := getWith(t, first, "https://"+d.addrs["federation"]+"/"); err != nil {
		t.Errorf("while the files do not fit: %v", err)
	}
	if err := os.Rename(other, keyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := getWith(t, second, "https://"+d.addrs["federation"]+"/"); err != nil {
		t.Errorf("with the new files: %v", err)
	}
	bad := d.cfg
	bad.Federation = &writdconf.Federation{Listen: "127.0.0.1:0", Profile: writdconf.ProfileWeb, CertFile: filepath.Join(dir, "absent"), KeyFile: keyFile}
	if err := validate(&bad, unplaced); err == nil || !strings.Contains(err.Error(), "federation.cert_file") {
		t.Errorf("--check: %v", err)
	}
}

// An endpoint with a certificate of an authority that the system does not know is
// proven by the file of its relationship, and by no other. The file is read at each
// fetch, and is not passed over when it cannot be.
func TestFederationCAFile(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	webFiles(t, certFile, keyFile)
	b := newDomain(t, "b.test", func(c *writdconf.Config) {
		c.Federation = &writdconf.Federation{Listen: "127.0.0.1:0", Profile: writdconf.ProfileWeb, CertFile: certFile, KeyFile: keyFile}
	})
	authority, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	relating := func(name string, files map[string]string) *domain {
		d := newDomain(t, name, func(c *writdconf.Config) { c.FederationCAFiles = files })
		resp, err := trustdomainv1.NewTrustDomainClient(d.admin).BatchCreateFederationRelationship(t.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{{
				TrustDomain: "b.test", BundleEndpointUrl: "https://" + b.addrs["federation"],
				BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
			}}})
		if err != nil || resp.Results[0].Status.Code != 0 {
			t.Fatal(resp, err)
		}
		return d
	}
	for name, files := range map[string]map[string]string{"system.test": nil, "other.test": {"c.test": certFile}} {
		if err := relating(name, files).refresh(b); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("%s: %v", name, err)
		}
	}
	a := relating("a.test", map[string]string{"b.test": caFile})
	put := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(caFile, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.refresh(b); err == nil || !strings.Contains(err.Error(), "authorities of the endpoint of b.test: open "+caFile) {
		t.Errorf("without the file: %v", err)
	}
	put([]byte("?"))
	if err := a.refresh(b); err == nil || !strings.Contains(err.Error(), "no certificate (PEM) in "+caFile) {
		t.Errorf("with no file of authorities: %v", err)
	}
	if err := validate(&a.cfg, unplaced); err == nil || !strings.Contains(err.Error(), "federation_ca_files.b.test") {
		t.Errorf("--check: %v", err)
	}
	put(authority)
	if err := a.refresh(b); err != nil {
		t.Fatal(err)
	}
	if got, want := a.registry.FederatedBundle(b.td), b.issuer.OwnBundle(); got == nil || len(got.X509Authorities) != len(want.X509Authorities) {
		t.Errorf("knows %+v", got)
	}
	if err := validate(&a.cfg, unplaced); err != nil {
		t.Errorf("--check: %v", err)
	}
}
