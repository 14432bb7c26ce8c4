package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/internal/strictyaml"
	"github.com/writ-dev/writ/proxy"
)

// TestRefusedConnections knocks at a sidecar as those who must stay outside:
// each fails on its first read, since TLS 1.3 tells a client only then, and
// each is on record with the reason.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	p := startPair(t, hello, "1h")
	addr := p.inbound("orders")

	expired := p.mint(10 * time.Second)
	leaf, err := x509.ParseCertificate(expired.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	waitUntil(t, leaf.NotAfter.Add(time.Second))

	for _, c := range []struct {
		name, reason string
		cert         *tls.Certificate
	}{
		{"no certificate", "no certificate", nil},
		{"a foreign trust domain", "trust domain", selfSigned(t, "spiffe://evil.example/svc/web")},
		{"our trust domain, another authority", "not signed by the trust bundle", selfSigned(t, "spiffe://example.org/svc/web")},
		{"an expired SVID", "is not valid now", &expired},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := knock(t, addr, c.cert)
			eventually(t, 20*time.Second, func() error {
				for _, e := range p.export() {
					if e.Kind != "connection" || e.PeerPort != port {
						continue
					}
					if e.Outcome != "refused" || !strings.Contains(e.Reason, c.reason) {
						t.Fatalf("on record as %+v, want refused because of %q", e, c.reason)
					}
					return nil
				}
				return fmt.Errorf("no event for port %d", port)
			})
		})
	}
}

// knock tries to send a request and wants to be refused. It returns the port
// that it came from.
func knock(t *testing.T, addr string, cert *tls.Certificate) int {
	t.Helper()
	config := &tls.Config{
		InsecureSkipVerify: true, // it is the server's check that is under test
		NextProtos:         []string{"http/1.1"},
		MinVersion:         tls.VersionTLS13,
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil {
			return &tls.Certificate{}, nil
		}
		return cert, nil
	}
	raw, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, config)
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Handshake(); err != nil {
		t.Fatalf("the client's side of the handshake: %v", err)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
	n, err := conn.Read(make([]byte, 512))
	if n > 0 || err == nil {
		t.Errorf("the first read gave %d bytes, want a refusal", n)
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("the first read timed out, want a refusal")
	}
	return raw.LocalAddr().(*net.TCPAddr).Port
}

// inbound is where a service's sidecar listens.
func (m *runningMesh) inbound(service string) string {
	m.t.Helper()
	c := proxy.Default()
	if _, err := strictyaml.Load(filepath.Join(m.dataDir, "sidecars", service, "sidecar.yaml"), &c); err != nil {
		m.t.Fatal(err)
	}
	return c.Inbound.Listen
}

// mint has the mesh's issuer sign an SVID of web.
func (m *runningMesh) mint(ttl time.Duration) tls.Certificate {
	m.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	id, _ := url.Parse("spiffe://example.org/svc/web")
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id}}, key)
	if err != nil {
		m.t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix:"+filepath.Join(m.dataDir, "run", "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resp, err := svidv1.NewSVIDClient(conn).MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr, Ttl: int32(ttl.Seconds())})
	if err != nil {
		m.t.Fatal(err)
	}
	return tls.Certificate{Certificate: resp.Svid.CertChain, PrivateKey: key}
}

// selfSigned makes an SVID that no authority of the mesh signed.
func selfSigned(t *testing.T, id string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:         []*url.URL{uri},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestGoSPIFFE runs go-spiffe's client, as any program in Go uses it, against
// the mesh's Workload API, over rotations.
func TestGoSPIFFE(t *testing.T) {
	t.Parallel()
	p := newPair(t, hello, "10s")
	p.runningMesh = up(t, p.file, t.TempDir())
	self, err := filepath.EvalSymlinks("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	p.ctl("entry", "create", "--parent-id", "spiffe://example.org/node/local", "--spiffe-id", "spiffe://example.org/svc/test",
		"--selector", "unix:path:"+self)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(p.agentSocket())))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	serials := map[string]bool{}
	for len(serials) < 3 {
		svid, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if svid.ID.String() != "spiffe://example.org/svc/test" {
			t.Fatalf("got %s", svid.ID)
		}
		serials[svid.Certificates[0].SerialNumber.String()] = true
		select {
		case <-source.Updated():
		case <-ctx.Done():
			t.Fatalf("%d SVIDs seen within the minute", len(serials))
		}
	}
}
