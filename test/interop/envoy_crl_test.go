//go:build interop

package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"

	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/test/programs"
)

// crlCA signs leaves and CRLs as an issuer does.
type crlCA struct {
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	chain []*x509.Certificate // below the root
}

func newCRLCA(t *testing.T, name string, parent *crlCA) *crlCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, SerialNumber: name}, URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	ca := &crlCA{key: key}
	signer, by := key, template
	if parent != nil {
		signer, by = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, key.Public(), signer)
	check(t, err)
	ca.cert, err = x509.ParseCertificate(der)
	check(t, err)
	if parent != nil {
		ca.chain = []*x509.Certificate{ca.cert}
	}
	return ca
}

func (ca *crlCA) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
}

func (ca *crlCA) leaf(t *testing.T, serial int64) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), URIs: []*url.URL{{Scheme: "spiffe", Host: domain, Path: "/svc/a"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	check(t, err)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, c := range ca.chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// crl is one whose time to be replaced is from now.
func (ca *crlCA) crl(t *testing.T, next time.Duration, revoked ...int64) string {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(next)}
	for _, serial := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	check(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

type conf = map[string]any

// TestEnvoyCRL is what Envoy makes of CRLs, on which the agent's SDS depends.
func TestEnvoyCRL(t *testing.T) {
	a, b := newCRLCA(t, "a", nil), newCRLCA(t, "b", nil)
	nested := newCRLCA(t, "nested", a)
	inline := func(text string) conf { return conf{"inline_string": text} }
	plain := func(cas, crls string, leafOnly bool) conf {
		c := conf{"trusted_ca": inline(cas), "only_verify_leaf_cert_crl": leafOnly}
		if crls != "" {
			c["crl"] = inline(crls)
		}
		return c
	}
	spiffe := plain("", a.crl(t, time.Hour, 5), true)
	delete(spiffe, "trusted_ca")
	spiffe["custom_validator_config"] = conf{"name": "envoy.tls.cert_validator.spiffe", "typed_config": conf{
		"@type":         "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
		"trust_domains": []conf{{"name": domain, "trust_bundle": inline(a.pem())}},
	}}
	cases := []struct {
		name    string
		context conf
		by      *crlCA
		serial  int64
		want    bool // accepted
	}{
		{"revoked", plain(a.pem(), a.crl(t, time.Hour, 5), true), a, 5, false},
		{"not revoked", plain(a.pem(), a.crl(t, time.Hour, 5), true), a, 6, true},
		{"an authority with an empty list", plain(a.pem()+b.pem(), a.crl(t, time.Hour, 5)+b.crl(t, time.Hour), true), b, 5, true},
		{"an authority without a list, all looked at", plain(a.pem()+b.pem(), a.crl(t, time.Hour, 5), false), b, 6, false},
		{"an authority without a list", plain(a.pem()+b.pem(), a.crl(t, time.Hour, 5), true), b, 6, false},
		{"a list of an unknown authority beside", plain(a.pem(), a.crl(t, time.Hour, 5)+b.crl(t, time.Hour), true), a, 6, true},
		{"an old list", plain(a.pem(), a.crl(t, -time.Minute, 5), true), a, 6, false},
		{"an old list and a new one, revoked", plain(a.pem(), a.crl(t, -time.Minute)+a.crl(t, time.Hour, 5), true), a, 5, false},
		{"an old list and a new one", plain(a.pem(), a.crl(t, -time.Minute, 5)+a.crl(t, time.Hour), true), a, 5, true},
		{"below an upstream, revoked", plain(a.pem(), nested.crl(t, time.Hour, 5), true), nested, 5, false},
		{"below an upstream", plain(a.pem(), nested.crl(t, time.Hour, 5), true), nested, 6, true},
		{"below an upstream, all looked at", plain(a.pem(), nested.crl(t, time.Hour, 5), false), nested, 6, false},
		{"no lists at all", plain(a.pem(), "", true), a, 5, true},
		// It looks at no list, and does not say so.
		{"SPIFFE validator, revoked", spiffe, a, 5, true},
		{"SPIFFE validator", spiffe, a, 6, true},
	}
	ports, err := programs.FreePorts(len(cases))
	check(t, err)
	own := a.leaf(t, 99)
	keyDER, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	check(t, err)
	var listeners []conf
	for n, c := range cases {
		listeners = append(listeners, conf{
			"name": fmt.Sprint(n), "address": conf{"socket_address": conf{"address": "127.0.0.1", "port_value": ports[n]}},
			"filter_chains": []conf{{
				"transport_socket": conf{"name": "tls", "typed_config": conf{
					"@type":                      "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
					"require_client_certificate": true,
					"common_tls_context": conf{
						"tls_certificates": []conf{{
							"certificate_chain": inline(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}))),
							"private_key":       inline(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))),
						}},
						"validation_context": c.context,
					},
				}},
				"filters": []conf{{"name": "echo", "typed_config": conf{"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}},
			}},
		})
	}
	config, err := json.Marshal(conf{"static_resources": conf{"listeners": listeners}})
	check(t, err)
	dir := shortDir(t)
	file := filepath.Join(dir, "envoy.json")
	check(t, os.WriteFile(file, config, 0o600))
	p, err := programs.Start(programs.Config{
		Path: program(t, "envoy"), Log: filepath.Join(dir, "log"),
		Args: []string{"-c", file, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"},
	})
	check(t, err)
	t.Cleanup(func() {
		_ = p.Stop(10 * time.Second)
		if t.Failed() {
			t.Logf("the end of Envoy's log:\n%s", p.Tail())
		}
	})
	for n, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			addr := fmt.Sprintf("127.0.0.1:%d", ports[n])
			check(t, p.Reachable(bounded(t, time.Minute), "tcp", addr))
			conn, err := tls.Dial("tcp", addr, &tls.Config{Certificates: []tls.Certificate{c.by.leaf(t, c.serial)}, InsecureSkipVerify: true})
			check(t, err)
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = conn.Write([]byte("x"))
			_, err = io.ReadFull(conn, make([]byte, 1))
			if accepted := err == nil; accepted != c.want {
				t.Errorf("accepted %v (%v), want %v", accepted, err, c.want)
			}
		})
	}
}

// TestEnvoyRevoked is revocation by serial number with the example configuration and
// CRLs: what is revoked is refused after the push, and everybody else is served, in
// and out, also under new authorities. So it is where an upstream signs them: Envoy
// asks for a CRL of who signed the leaf, and for none of the root.
func TestEnvoyRevoked(t *testing.T) {
	t.Run("alone", func(t *testing.T) { envoyRevoked(t, "") })
	t.Run("below a CA in files", func(t *testing.T) {
		root := newCRLCA(t, "root", nil)
		key, err := x509.MarshalPKCS8PrivateKey(root.key)
		check(t, err)
		dir := t.TempDir()
		check(t, os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(root.pem()), 0o600))
		check(t, os.WriteFile(filepath.Join(dir, "ca.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
		envoyRevoked(t, fmt.Sprintf("upstream:\n  disk: {cert: %q, key: %q}\n", filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")))
	})
	t.Run("below spire-server", func(t *testing.T) {
		upper := newSide(t, shortDir(t), "spire-server", "spire-agent", domain)
		upper.start(t, programs.StartSPIRE)
		upper.downstream = true
		upper.join(t, upper.td)
		envoyRevoked(t, fmt.Sprintf("upstream:\n  spire:\n    server_address: 127.0.0.1:%d\n    workload_api: unix://%s\n", upper.conf.IssuerPort, upper.socket()))
	})
}

func envoyRevoked(t *testing.T, serverConf string) {
	m := &envoyMesh{node: newNodeWith(t, "writ-agent", "writd", serverConf, "sds: {crl: true}"), entries: map[string]string{}}
	self, err := os.Executable()
	check(t, err)
	envoy := program(t, "envoy")
	m.enter(t, "/svc/frontend", "unix:path:"+self)
	m.enter(t, "/svc/payments", "unix:path:"+self)
	m.enter(t, "/svc/orders", "unix:path:"+envoy)
	m.start(t, envoy,
		[2]string{"  cluster: orders\n", "  cluster: orders\n  metadata: { disable_spiffe_cert_validation: true }\n"},
		[2]string{"name: ALL", "name: ROOTCA"})
	ctx := bounded(t, 2*time.Minute)
	served := func() {
		t.Helper()
		if _, _, err := m.call(ctx, "/svc/frontend"); err != nil {
			t.Fatalf("in: %v", err)
		}
		if err := m.through(t); err != nil {
			t.Fatalf("out: %v", err)
		}
	}
	// as makes a request with an SVID that its owner would not show any more.
	as := func(cert *tls.Certificate) error {
		config := tlsconfig.TLSClientConfig(m.source, tlsconfig.AuthorizeAny())
		config.Certificates = []tls.Certificate{*cert}
		resp, err := get(ctx, &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, fmt.Sprintf("https://127.0.0.1:%d/", m.in))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return err
	}
	revoke := func(cert *tls.Certificate) {
		t.Helper()
		serial := cert.Leaf.SerialNumber.String()
		_, err := revocationv1.NewAdminClient(m.server.Admin()).Revoke(ctx, &revocationv1.RevokeRequest{
			Revocation: &revocationv1.Revocation{Subject: &revocationv1.Revocation_Serial{Serial: serial}, Reason: "stolen"},
		})
		check(t, err)
		began := time.Now()
		until(t, ctx, func() bool { return as(cert) != nil })
		t.Logf("%s was refused %s after the revocation", serial, time.Since(began).Round(time.Millisecond))
	}
	served()
	stolen, other := m.mint(t), m.mint(t)
	check(t, as(stolen))
	revoke(stolen)
	check(t, as(other))
	served()

	// New authorities: what they sign, and what the ones before did, is served, and
	// what is revoked stays so.
	authorities := localauthorityv1.NewLocalAuthorityClient(m.server.Admin())
	prepared, err := authorities.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
	check(t, err)
	served()
	_, err = authorities.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: prepared.PreparedAuthority.AuthorityId})
	check(t, err)
	check(t, as(other))
	fresh := m.mint(t)
	if got := hex.EncodeToString(fresh.Leaf.AuthorityKeyId); got != prepared.PreparedAuthority.AuthorityId {
		t.Fatalf("signed by %s, not by the new authority", got)
	}
	until(t, ctx, func() bool { return as(fresh) == nil })
	if as(stolen) == nil {
		t.Error("a revoked SVID is served after the authorities have changed")
	}
	revoke(fresh)
	served()
}

// mint has the issuer sign an SVID of frontend for an hour, and leaves its key here.
func (m *envoyMesh) mint(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{m.id("/svc/frontend").URL()}}, key)
	check(t, err)
	got, err := svidv1.NewSVIDClient(m.server.Admin()).MintX509SVID(bounded(t, 30*time.Second), &svidv1.MintX509SVIDRequest{Csr: csr, Ttl: 3600})
	check(t, err)
	leaf, err := x509.ParseCertificate(got.Svid.CertChain[0])
	check(t, err)
	return &tls.Certificate{Certificate: got.Svid.CertChain, PrivateKey: key, Leaf: leaf}
}
