//go:build interop

package interop

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/test/programs"
)

// envoyMesh is Envoy beside a service, started from the example configuration, and a
// go-spiffe peer at each end.
type envoyMesh struct {
	*node
	in, out int // Envoy's ports
	source  *workloadapi.X509Source
	entries map[string]string // id by path

	seen atomic.Value // who called the payments service last
}

// TestEnvoy runs deploy/envoy/envoy.yaml. Envoy and this process are two
// workloads of one user, told apart by their programs.
func TestEnvoy(t *testing.T) {
	m := &envoyMesh{node: newNode(t, "writ-agent", "writd"), entries: map[string]string{}}
	self, err := os.Executable()
	check(t, err)
	envoy := program(t, "envoy")
	m.enter(t, "/svc/frontend", "unix:path:"+self)
	m.enter(t, "/svc/payments", "unix:path:"+self)
	m.enter(t, "/svc/stranger", "unix:path:"+self)
	m.enter(t, "/svc/orders", "unix:path:"+envoy)
	m.start(t, envoy)

	t.Run("in by mTLS", func(t *testing.T) {
		body, leaf, err := m.call(t.Context(), "/svc/frontend")
		check(t, err)
		if leaf != "/svc/orders" || !strings.Contains(body, "URI=spiffe://"+domain+"/svc/frontend") {
			t.Errorf("Envoy is %s and told the service %q", leaf, body)
		}
	})
	t.Run("a name that is not listed stays out", func(t *testing.T) {
		if body, _, err := m.call(t.Context(), "/svc/stranger"); err == nil {
			t.Errorf("got %q", body)
		}
	})
	t.Run("nobody without a certificate", func(t *testing.T) {
		if _, _, err := m.call(t.Context(), ""); err == nil {
			t.Error("got an answer")
		}
	})
	t.Run("out by mTLS", func(t *testing.T) { check(t, m.through(t)) })
	t.Run("rotation without a failed request", m.rotate)
	t.Run("entry removed", m.remove)
}

func (m *envoyMesh) enter(t *testing.T, path, selector string) {
	t.Helper()
	e, err := m.server.Entry(m.alias, path, selector)
	check(t, err)
	e.X509SvidTtl = int32(ttl.Seconds())
	created, err := m.server.CreateEntries(bounded(t, 30*time.Second), e)
	check(t, err)
	m.entries[path] = created[0]
}

// start brings up the service, its peer and Envoy between them.
func (m *envoyMesh) start(t *testing.T, envoy string, more ...[2]string) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("X-Forwarded-Client-Cert"))
	}))
	t.Cleanup(service.Close)
	source, err := workloadapi.NewX509Source(bounded(t, time.Minute), workloadapi.WithClient(m.workload),
		workloadapi.WithDefaultX509SVIDPicker(pick("/svc/payments")))
	check(t, err)
	t.Cleanup(func() { source.Close() })
	m.source = source

	// Not httptest's TLS, which has a certificate of its own.
	payments, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(m.id("/svc/orders"))))
	check(t, err)
	server := &http.Server{
		Handler:  http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { m.seen.Store(r.TLS.PeerCertificates[0].URIs[0].Path) }),
		ErrorLog: log.New(io.Discard, "", 0),
	}
	// Envoy is asked who it is for each request. What it does with connections
	// that are open is a matter of its max_connection_duration.
	server.SetKeepAlivesEnabled(false)
	go server.Serve(payments)
	t.Cleanup(func() { server.Close() })

	ports, err := programs.FreePorts(2)
	check(t, err)
	m.in, m.out = ports[0], ports[1]
	_, servicePort, _ := net.SplitHostPort(service.Listener.Addr().String())
	_, paymentsPort, _ := net.SplitHostPort(payments.Addr().String())
	config, err := os.ReadFile("../../deploy/envoy/envoy.yaml")
	check(t, err)
	content := string(config)
	for _, change := range append([][2]string{
		{"address: 0.0.0.0, port_value: 8443", fmt.Sprintf("address: 127.0.0.1, port_value: %d", m.in)},
		{"port_value: 9001", fmt.Sprintf("port_value: %d", m.out)},
		{"port_value: 8080", "port_value: " + servicePort},
		{"address: payments.example.org, port_value: 8443", "address: 127.0.0.1, port_value: " + paymentsPort},
		{"/run/writ-agent/agent.sock", m.socket},
		{"spiffe://example.org/", "spiffe://" + domain + "/"},
	}, more...) {
		if !strings.Contains(content, change[0]) {
			t.Fatalf("deploy/envoy/envoy.yaml holds no %q", change[0])
		}
		content = strings.ReplaceAll(content, change[0], change[1])
	}
	dir := shortDir(t)
	file := filepath.Join(dir, "envoy.yaml")
	check(t, os.WriteFile(file, []byte(content), 0o600))
	p, err := programs.Start(programs.Config{
		Path: envoy, Log: filepath.Join(dir, "log"),
		Args: []string{"-c", file, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "info"},
	})
	check(t, err)
	t.Cleanup(func() {
		_ = p.Stop(10 * time.Second)
		if t.Failed() {
			t.Logf("the end of Envoy's log:\n%s", p.Tail())
		}
	})
	// The listener opens when Envoy has its secrets.
	check(t, p.Reachable(bounded(t, time.Minute), "tcp", fmt.Sprintf("127.0.0.1:%d", m.in)))
	check(t, p.Until(bounded(t, time.Minute), func() error { return m.through(t) }))
}

func (m *envoyMesh) id(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(m.server.TrustDomain, path)
}

// call makes a request on a connection of its own, as one of this process's
// identities or without any, and says who answered.
func (m *envoyMesh) call(ctx context.Context, as string) (body, server string, err error) {
	config := tlsconfig.TLSClientConfig(m.source, tlsconfig.AuthorizeAny())
	if as != "" {
		got, err := m.workload.FetchX509Context(ctx)
		if err != nil {
			return "", "", err
		}
		svid := pick(as)(got.SVIDs)
		if svid == nil {
			return "", "", fmt.Errorf("this process is not %s", as)
		}
		config = tlsconfig.MTLSClientConfig(svid, m.source, tlsconfig.AuthorizeAny())
	}
	resp, err := get(ctx, &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, fmt.Sprintf("https://127.0.0.1:%d/", m.in))
	if err != nil {
		return "", "", err
	}
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(text), resp.TLS.PeerCertificates[0].URIs[0].Path, err
}

// through makes a request to Envoy that it sends on by mTLS.
func (m *envoyMesh) through(t *testing.T) error {
	resp, err := get(t.Context(), &http.Transport{DisableKeepAlives: true}, fmt.Sprintf("http://127.0.0.1:%d/", m.out))
	if err != nil {
		return err
	}
	if who := m.seen.Swap(""); resp.StatusCode != http.StatusOK || who != "/svc/orders" {
		return fmt.Errorf("%s; the peer saw %v", resp.Status, who)
	}
	return nil
}

func get(ctx context.Context, transport *http.Transport, url string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	// Read here: the context ends with this function.
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	return resp, err
}

// rotate makes requests both ways until Envoy has shown three certificates.
func (m *envoyMesh) rotate(t *testing.T) {
	ctx := bounded(t, 90*time.Second)
	shown := map[string]bool{}
	requests := 0
	for ; len(shown) < 3; requests++ {
		if _, _, err := m.call(ctx, "/svc/frontend"); err != nil {
			t.Fatalf("request %d in: %v", requests, err)
		}
		if err := m.through(t); err != nil {
			t.Fatalf("request %d out: %v", requests, err)
		}
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.in), tlsconfig.MTLSClientConfig(m.source, m.source, tlsconfig.AuthorizeID(m.id("/svc/orders"))))
		check(t, err)
		shown[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		conn.Close()
	}
	t.Logf("%d requests each way during two rotations", requests)
}

// remove takes Envoy's entry away: it has nothing to show from then on, long
// before its last certificate expires. With the entry back it works again.
func (m *envoyMesh) remove(t *testing.T) {
	ctx := bounded(t, 90*time.Second)
	check(t, m.server.DeleteEntry(ctx, m.entries["/svc/orders"]))
	removed := time.Now()
	until(t, ctx, func() bool {
		_, _, err := m.call(ctx, "/svc/frontend")
		return err != nil
	})
	took := time.Since(removed)
	if took > ttl/4 {
		t.Errorf("Envoy served for %s after its entry was removed", took)
	}
	t.Logf("Envoy was out %s after its entry was removed", took.Round(time.Millisecond))
	if err := m.through(t); err == nil {
		t.Error("Envoy still reaches its peer")
	}
	m.enter(t, "/svc/orders", "unix:path:"+program(t, "envoy"))
	until(t, ctx, func() bool {
		_, _, err := m.call(ctx, "/svc/frontend")
		return err == nil && m.through(t) == nil
	})
}

// until asks again until ok. Each try is a connection, which paces it.
func until(t *testing.T, ctx context.Context, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("waited in vain")
		}
	}
}

func pick(path string) func([]*x509svid.SVID) *x509svid.SVID {
	return func(svids []*x509svid.SVID) *x509svid.SVID {
		for _, s := range svids {
			if s.ID.Path() == path {
				return s
			}
		}
		return nil
	}
}
