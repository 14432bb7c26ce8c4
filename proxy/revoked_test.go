package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/proxy/mtls"
)

// An authority that leaves the bundle ends the connections of those for whom
// only it vouched, idle or not.
func TestRevokedAuthorityEndsConnections(t *testing.T) {
	ca, gone := testpki.New(t, "example.org"), testpki.New(t, "example.org")
	entered := make(chan struct{}, 1)
	s := server(t, ca, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open" {
			entered <- struct{}{}
			<-r.Context().Done()
		}
	}))
	bundle := mustBundle(t, s)
	revoked := gone.Bundle().X509Authorities()[0]
	bundle.AddX509Authority(revoked)
	connect := func(by *testpki.CA, protocol string) (*tls.Conn, *bufio.Reader) {
		c, err := dial(t, s.InboundAddr(), by.SVID(t, "/svc/web", time.Hour), protocol)
		if err != nil {
			t.Fatal(err)
		}
		return c, bufio.NewReader(c)
	}
	get := func(c *tls.Conn, r *bufio.Reader) {
		t.Helper()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if res, _ := readResponse(t, r); res.StatusCode != 200 {
			t.Fatalf("status %d", res.StatusCode)
		}
	}
	kept, keptReader := connect(ca, mtls.HTTP1)
	get(kept, keptReader)
	idle, idleReader := connect(gone, mtls.HTTP1)
	get(idle, idleReader)
	open, openReader := connect(gone, mtls.HTTP1)
	io.WriteString(open, "GET /open HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered

	bundle.RemoveX509Authority(revoked)
	s.source.Rotate(mustSVID(s))
	for _, r := range []*bufio.Reader{idleReader, openReader} {
		if _, err := r.ReadByte(); err == nil {
			t.Error("a connection outlived its authority")
		}
	}
	ended := 0
	if _, err := s.rec.Wait(t.Context(), func(ev peptest.Event) bool {
		if ev.Kind == auditv1.Kind_KIND_CONNECTION && ev.Outcome == auditv1.Outcome_OUTCOME_REFUSED &&
			ev.Input.Source.ID == clientID && strings.Contains(ev.Reason, "not signed by the trust bundle") {
			ended++
		}
		return ended == 2
	}); err != nil {
		t.Fatal(err)
	}
	get(kept, keptReader)
}
