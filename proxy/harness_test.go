package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/mtls"
)

const (
	serverID = "spiffe://example.org/svc/orders"
	clientID = "spiffe://example.org/svc/web"
)

// sidecar is a running Proxy with what it was given.
type sidecar struct {
	*Proxy
	rec    *peptest.Recorder
	source *testpki.Source
	stop   context.CancelFunc
	done   chan error
}

// end stops the sidecar and waits for it.
func (s *sidecar) end() error {
	s.stop()
	err := <-s.done
	s.done <- err
	return err
}

func start(t testing.TB, ca *testpki.CA, path string, cfg Config) *sidecar {
	t.Helper()
	return startWith(t, testpki.NewSource(ca.SVID(t, path, time.Hour), ca.Bundle()), cfg)
}

func startWith(t testing.TB, source *testpki.Source, cfg Config, changes ...func(*Options)) *sidecar {
	t.Helper()
	s := &sidecar{rec: &peptest.Recorder{}, source: source, done: make(chan error, 1)}
	cfg.TrustDomain = "example.org"
	opts := Options{Config: cfg, Source: source, Recorder: s.rec, Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, change := range changes {
		change(&opts)
	}
	var err error
	s.Proxy, err = New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	go func() { s.done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// app serves h over HTTP/1.1 on a Unix socket and returns its address.
func app(t testing.TB, h http.Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = ln
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	srv.Start()
	t.Cleanup(srv.Close)
	return "unix://" + path
}

func serverConfig(app string) Config {
	cfg := Default()
	cfg.Service = "orders"
	cfg.Drain = 2 * time.Second
	cfg.Inbound = &Inbound{Listen: "127.0.0.1:0", App: app, Protocol: "http"}
	return cfg
}

func clientConfig(server *sidecar, protocol string) Config {
	cfg := Default()
	cfg.Service = "web"
	cfg.Upstreams = []Upstream{{
		Name: "orders", Listen: "127.0.0.1:0", Address: server.InboundAddr().String(), SPIFFEID: serverID, Protocol: protocol,
	}}
	return cfg
}

func allowAll(number uint64) *policy.Snapshot {
	return peptest.Snapshot(number, "orders", serverID, peptest.Verdict(policy.Allow))
}

// server starts a sidecar in front of h that allows everything.
func server(t testing.TB, ca *testpki.CA, h http.Handler) *sidecar {
	t.Helper()
	s := start(t, ca, "/svc/orders", serverConfig(app(t, h)))
	s.SetSnapshot(allowAll(1))
	return s
}

// dial makes a TLS connection as svid, or without a certificate, and does not
// look at who answers.
func dial(t testing.TB, addr net.Addr, svid *x509svid.SVID, protocols ...string) (*tls.Conn, error) {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}
	if svid != nil {
		cert := tls.Certificate{PrivateKey: svid.PrivateKey}
		for _, c := range svid.Certificates {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	c, err := tls.Dial("tcp", addr.String(), cfg)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// exchange sends raw bytes as the web service and reads one response.
func exchange(t testing.TB, ca *testpki.CA, s *sidecar, raw string) (*http.Response, string) {
	t.Helper()
	c, err := dial(t, s.InboundAddr(), ca.SVID(t, "/svc/web", time.Hour), mtls.HTTP1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	return readResponse(t, bufio.NewReader(c))
}

func readResponse(t testing.TB, r *bufio.Reader) (*http.Response, string) {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("no response: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func get(t testing.TB, client *http.Client, url string) (int, string, http.Header) {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body), res.Header
}

func newClient(t testing.TB) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func echo() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
	})
}

func mustSVID(s *sidecar) *x509svid.SVID {
	svid, _ := s.source.GetX509SVID()
	return svid
}

func mustBundle(t testing.TB, s *sidecar) *x509bundle.Bundle {
	b, err := s.source.GetX509BundleForTrustDomain(s.ID().TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newH2C is a client that speaks HTTP/2 without TLS.
func newH2C(t testing.TB) *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}
