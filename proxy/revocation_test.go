package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/proxy/mtls"
)

// revoked is Revocations over a real list.
type revoked struct{ revocation.Set }

func (r *revoked) Check(leaf *x509.Certificate, id spiffeid.ID) error {
	list, _ := r.Now()
	if found := list.X509(leaf, id); found != nil {
		return fmt.Errorf("the X509-SVID of %s is revoked: %s", id, found)
	}
	return nil
}

func (r *revoked) Changed() <-chan struct{} {
	_, changed := r.Now()
	return changed
}

func (r *revoked) add(t *testing.T, one revocation.Revocation) {
	t.Helper()
	one.Expires, one.Number = time.Now().Add(time.Hour), 1
	if _, err := r.Merge([]*revocation.Revocation{&one}, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// waitRefused waits until n connections were refused or ended for a reason.
func waitRefused(t *testing.T, s *sidecar, n int, reason string) {
	t.Helper()
	if _, err := s.rec.Wait(t.Context(), func(ev peptest.Event) bool {
		if ev.Kind == auditv1.Kind_KIND_CONNECTION && ev.Outcome == auditv1.Outcome_OUTCOME_REFUSED && strings.Contains(ev.Reason, reason) {
			n--
		}
		return n == 0
	}); err != nil {
		t.Fatalf("nothing on record that says %q: %v", reason, err)
	}
}

// A revoked peer loses its connections, idle or not, and gets no other; one with
// another SVID of the same name goes on.
func TestRevokedSVIDInbound(t *testing.T) {
	ca := testpki.New(t, "example.org")
	entered := make(chan struct{}, 1)
	var list revoked
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open" {
			entered <- struct{}{}
			<-r.Context().Done()
		}
	})
	s := startWith(t, testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle()), serverConfig(app(t, handler)), func(o *Options) { o.Revocations = &list })
	s.SetSnapshot(allowAll(1))
	stolen, fresh := ca.SVID(t, "/svc/web", time.Hour), ca.SVID(t, "/svc/web", time.Hour)
	connect := func(protocol string, by *testpki.CA) (*tls.Conn, *bufio.Reader) {
		c, err := dial(t, s.InboundAddr(), stolen, protocol)
		if err != nil {
			t.Fatal(err)
		}
		return c, bufio.NewReader(c)
	}
	idle, idleReader := connect(mtls.HTTP1, ca)
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _ := readResponse(t, idleReader); res.StatusCode != 200 {
		t.Fatalf("status %d", res.StatusCode)
	}
	open, openReader := connect(mtls.HTTP1, ca)
	io.WriteString(open, "GET /open HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	kept, err := dial(t, s.InboundAddr(), fresh, mtls.HTTP1)
	if err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	list.add(t, revocation.Revocation{Kind: revocation.Serial, Subject: stolen.Certificates[0].SerialNumber.String()})
	for _, r := range []*bufio.Reader{idleReader, openReader} {
		if _, err := r.ReadByte(); err == nil {
			t.Error("a connection outlived its SVID")
		}
	}
	t.Logf("closed after %v", time.Since(began))
	waitRefused(t, s, 2, "open connection ended: the X509-SVID of "+clientID+" is revoked: serial number")
	again, err := dial(t, s.InboundAddr(), stolen, mtls.HTTP1)
	if err == nil {
		// With TLS 1.3 the refusal comes after the client's part.
		_, err = again.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("a revoked SVID was accepted again")
	}
	waitRefused(t, s, 3, "is revoked: serial number")
	io.WriteString(kept, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _ := readResponse(t, bufio.NewReader(kept)); res.StatusCode != 200 {
		t.Fatalf("another SVID of that name: status %d", res.StatusCode)
	}
}

// Requests out to a revoked service end, and no others are sent.
func TestRevokedSVIDOutbound(t *testing.T) {
	ca := testpki.New(t, "example.org")
	entered := make(chan struct{}, 1)
	s := server(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open" {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			entered <- struct{}{}
			<-r.Context().Done()
		}
	}))
	var list revoked
	c := startWith(t, testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle()), clientConfig(s, "http"), func(o *Options) { o.Revocations = &list })
	url := "http://" + c.UpstreamAddr("orders").String()
	client := newClient(t)
	if status, _, _ := get(t, client, url+"/"); status != 200 {
		t.Fatalf("status %d", status)
	}
	res, err := client.Get(url + "/open")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	<-entered

	list.add(t, revocation.Revocation{Kind: revocation.SPIFFEID, Subject: serverID, Before: time.Now().Add(time.Minute).Truncate(time.Second)})
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("a stream from a revoked service came to a good end")
	}
	waitRefused(t, c, 1, "open connection ended: the X509-SVID of "+serverID+" is revoked")
	if status, _, _ := get(t, client, url+"/"); status != http.StatusBadGateway {
		t.Errorf("afterwards: %d", status)
	}
	if _, err := c.rec.Wait(t.Context(), func(ev peptest.Event) bool {
		return ev.Kind != auditv1.Kind_KIND_CONNECTION && strings.Contains(ev.Reason, "is revoked")
	}); err != nil {
		t.Error("the refused request is not on record with its reason")
	}
}
