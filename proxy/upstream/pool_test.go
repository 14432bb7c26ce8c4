package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/proxy/mtls"
)

func TestRenewalOf(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(80 * time.Minute)}
	for _, tt := range []struct{ at, want time.Duration }{
		{0, 70 * time.Minute},
		{69 * time.Minute, 70 * time.Minute},
		{72 * time.Minute, 76 * time.Minute},                            // nothing better was shown
		{80*time.Minute - time.Second, 80 * time.Minute},                // not all the time
		{80*time.Minute - time.Millisecond, 80*time.Minute + 999999999}, // nor at the end
	} {
		got := renewalOf(leaf, begin.Add(tt.at)).Sub(begin)
		if got.Round(time.Second) != tt.want.Round(time.Second) {
			t.Errorf("at %v: %v, want %v", tt.at, got, tt.want)
		}
	}
}

// Requests leave a connection before the SVID at its other end expires, so that
// none is under way when the connection has to end.
func TestRequestsLeaveBeforeExpiry(t *testing.T) {
	ca := testpki.New(t, "example.org")
	life := 8 * time.Hour
	server := testpki.NewSource(ca.SVID(t, "/svc/orders", life), ca.Bundle())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = web.Serve(tls.NewListener(l, mtls.Server(mtls.ServerConfig{Source: server, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Protocols: []string{mtls.HTTP1}, Now: time.Now})))
	}()
	t.Cleanup(func() { web.Close(); <-served })
	var offset atomic.Int64
	p := NewPool(PoolConfig{
		Address: l.Addr().String(), Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"),
		Source: testpki.NewSource(ca.SVID(t, "/svc/web", life), ca.Bundle()),
		Now:    func() time.Time { return time.Now().Add(time.Duration(offset.Load())) },
	})
	t.Cleanup(p.CloseIdle)
	ask := func() string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://orders/", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		from, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(from)
	}
	first := ask()
	if again := ask(); again != first {
		t.Fatalf("from %s and then from %s, with one SVID", first, again)
	}
	offset.Store(int64(life * 15 / 16))
	second := ask()
	if second == first {
		t.Error("a request used a connection whose SVID is about to expire")
	}
	if again := ask(); again != second {
		t.Error("where there is no better one, each request opens a connection")
	}
	p.Reverify()
	if again := ask(); again != second {
		t.Error("a connection that is good was closed")
	}
}
