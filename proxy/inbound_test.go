package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/mtls"
)

func TestConnectionsRefused(t *testing.T) {
	ca, foreign := testpki.New(t, "example.org"), testpki.New(t, "example.com")
	impostor := testpki.New(t, "example.org")
	for _, tc := range []struct {
		name      string
		svid      *x509svid.SVID
		protocols []string
		reason    string
	}{
		{name: "no certificate", reason: "no certificate"},
		{name: "foreign trust domain", svid: foreign.SVID(t, "/svc/web", time.Hour), reason: "foreign trust domain"},
		{name: "expired", svid: ca.SVID(t, "/svc/web", -time.Minute), reason: "not valid now"},
		{name: "another CA of the same name", svid: impostor.SVID(t, "/svc/web", time.Hour), reason: "not signed by the trust bundle"},
		{name: "no URI", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) { c.URIs = nil }), reason: "not an X509-SVID"},
		{name: "two URIs", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), reason: "not an X509-SVID"},
		{name: "https URI", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "https", Host: "example.org", Path: "/svc/web"}}
		}), reason: "not an X509-SVID"},
		{name: "trust domain itself", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org"}} }), reason: "not an X509-SVID"},
		{name: "CA as leaf", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) { c.IsCA = true }), reason: "does not verify"},
		{name: "signs certificates", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), reason: "does not verify"},
		{name: "key usage", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), reason: "not an X509-SVID"},
		{name: "server only", svid: ca.SVID(t, "/svc/web", time.Hour, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), reason: "not an X509-SVID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var reached atomic.Bool
			s := server(t, ca, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
			c, err := dial(t, s.InboundAddr(), tc.svid, mtls.HTTP1)
			if err == nil {
				// With TLS 1.3 the client has finished before the server has
				// looked: it learns on its first read.
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				_, err = c.Read(make([]byte, 1))
			}
			if err == nil || !strings.Contains(err.Error(), "tls:") {
				t.Errorf("first read: %v, want a TLS alert", err)
			}
			events := s.rec.Events()
			if len(events) != 1 {
				t.Fatalf("%d events, want 1: %+v", len(events), events)
			}
			ev := events[0]
			if ev.Kind != auditv1.Kind_KIND_CONNECTION || ev.Outcome != auditv1.Outcome_OUTCOME_REFUSED || !strings.Contains(ev.Reason, tc.reason) {
				t.Errorf("event %v %v %q, want a refused connection with %q", ev.Kind, ev.Outcome, ev.Reason, tc.reason)
			}
			if ev.Input.Source.ID != "" || ev.Input.Source.Authn != policy.AuthnNone {
				t.Errorf("recorded source %+v: nothing was verified", ev.Input.Source)
			}
			if ev.Input.Connection.PeerIP != "127.0.0.1" || ev.Input.Connection.PeerPort == 0 || ev.Input.Destination.ID != serverID {
				t.Errorf("recorded connection %+v, destination %+v", ev.Input.Connection, ev.Input.Destination)
			}
			if reached.Load() {
				t.Error("the application was reached")
			}
		})
	}
}

func TestHandshakesThatAreNone(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := server(t, ca, echo())
	for _, tc := range []struct {
		name, reason string
		act          func(net.Conn)
	}{
		{"plain HTTP", "first record does not look like a TLS handshake", func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") }},
		{"TLS 1.2", "unsupported versions", func(c net.Conn) {
			_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
		}},
		{"unknown protocol", "application protocol", func(c net.Conn) {
			_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"smtp"}}).Handshake()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.InboundAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tc.act(c)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := s.rec.Wait(ctx, func(ev peptest.Event) bool {
				return ev.Kind == auditv1.Kind_KIND_CONNECTION && strings.Contains(ev.Reason, tc.reason)
			}); err != nil {
				t.Errorf("no event with %q: %+v", tc.reason, s.rec.Events())
			}
		})
	}
}

// A request is answered with the id of its one event, whatever comes of it.
func TestRequests(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := server(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Writ-Decision-Id", "forged")
		w.Header().Set("writ_source_id", "forged")
		io.WriteString(w, r.RequestURI+" "+r.Host)
	}))
	decider := peptest.Decide(func(in *policy.Input, out *policy.Decision) {
		out.Verdict = policy.Allow
		if strings.HasPrefix(in.Request.Path, "/secret") {
			out.Verdict, out.Reason = policy.Deny, "the reason is not for the caller"
		}
	})
	s.SetSnapshot(peptest.Snapshot(1, "orders", serverID, decider))
	for _, tc := range []struct {
		name, raw string
		status    int
		body      string
		outcome   auditv1.Outcome
	}{
		{"allowed", "GET /a?b=c HTTP/1.1\r\nHost: shop.example:8080\r\n\r\n", 200, "/a?b=c shop.example:8080", auditv1.Outcome_OUTCOME_ALLOW},
		{"raw bytes of path and query", "GET /%2F/%41;v=1/é/a%C3%A9?q=%41+é&r=%3B HTTP/1.1\r\nHost: x\r\n\r\n", 200, "/%2F/%41;v=1/é/a%C3%A9?q=%41+é&r=%3B x", auditv1.Outcome_OUTCOME_ALLOW},
		{"characters that net/url would encode", "GET /\"<>^`{|}[] HTTP/1.1\r\nHost: x\r\n\r\n", 200, "/\"<>^`{|}[] x", auditv1.Outcome_OUTCOME_ALLOW},
		{"empty query", "GET /a? HTTP/1.1\r\nHost: x\r\n\r\n", 200, "/a? x", auditv1.Outcome_OUTCOME_ALLOW},
		{"denied", "GET /secret HTTP/1.1\r\nHost: x\r\n\r\n", 403, `{"error":"denied","decision_id":"ID"}`, auditv1.Outcome_OUTCOME_DENY},
		{"dot segments", "GET /a/%2e%2e/secret HTTP/1.1\r\nHost: x\r\n\r\n", 400, `{"error":"malformed request","decision_id":"ID"}`, auditv1.Outcome_OUTCOME_REFUSED},
		{"double slash", "GET //secret HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"backslash", "GET /a\\b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"invalid UTF-8", "GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"invalid escape", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"NUL", "GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"semicolon in the query", "GET /?a=1;b=2 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"absolute form", "GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"absolute form, other host", "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"CONNECT", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 405, "not allowed", auditv1.Outcome_OUTCOME_REFUSED},
		{"CONNECT with a path", "CONNECT /a HTTP/1.1\r\nHost: x:80\r\n\r\n", 405, "not allowed", auditv1.Outcome_OUTCOME_REFUSED},
		{"TRACE", "TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "not allowed", auditv1.Outcome_OUTCOME_REFUSED},

		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"negative length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"signed length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"unknown transfer coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "", auditv1.Outcome_OUTCOME_REFUSED},
		{"space before colon", "GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"bare CR in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\rX-B: c\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"no such protocol", "GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505, "", auditv1.Outcome_OUTCOME_REFUSED},
		{"no request line", "hello\r\n\r\n", 400, "malformed", auditv1.Outcome_OUTCOME_REFUSED},
		{"unknown expectation", "GET / HTTP/1.1\r\nHost: x\r\nExpect: the-inquisition\r\n\r\n", 417, "", auditv1.Outcome_OUTCOME_REFUSED},
		{"head over the limit", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", 431, "too large", auditv1.Outcome_OUTCOME_REFUSED},
		{"head far over the limit", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 300<<10) + "\r\n\r\n", 431, "too large", auditv1.Outcome_OUTCOME_REFUSED},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(s.rec.Events())
			res, body := exchange(t, ca, s, tc.raw)
			events := s.rec.Events()[before:]
			if len(events) != 1 {
				t.Fatalf("%d events, want 1", len(events))
			}
			ev := events[0]
			if ids := res.Header.Values("writ-decision-id"); !cmp.Equal(ids, []string{ev.DecisionID}) {
				t.Errorf("decision ids %q, want %q", ids, ev.DecisionID)
			}
			if res.Header.Get("writ_source_id") != "" {
				t.Error("the application's own identity header went out")
			}
			if res.StatusCode != tc.status || !strings.Contains(body, strings.ReplaceAll(tc.body, "ID", ev.DecisionID)) {
				t.Errorf("response %d %q, want %d %q", res.StatusCode, body, tc.status, tc.body)
			}
			if strings.Contains(body, "reason") {
				t.Errorf("policy leaks: %q", body)
			}
			if ev.Outcome != tc.outcome || ev.Kind != auditv1.Kind_KIND_DECISION {
				t.Errorf("event %v %v (%s), want %v", ev.Kind, ev.Outcome, ev.Reason, tc.outcome)
			}
			if ev.Input.Source.ID != clientID || len(ev.Input.Source.Serial) == 0 {
				t.Errorf("recorded source %+v", ev.Input.Source)
			}
		})
	}
}

// A message with both length and chunking is ambiguous (RFC 9112, section
// 6.3): what follows it must not be read as another request.
func TestSmuggling(t *testing.T) {
	ca := testpki.New(t, "example.org")
	paths := make(chan string, 2)
	s := server(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		paths <- r.RequestURI
		if len(r.TransferEncoding) > 0 && r.Header.Get("Content-Length") != "" {
			t.Error("both length and chunking were forwarded")
		}
	}))
	exchange(t, ca, s, "POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
	for _, ev := range s.rec.Events() {
		if ev.Input.Request.Path == "/smuggled" && ev.Outcome == auditv1.Outcome_OUTCOME_ALLOW {
			return // decided on its own: no smuggling either
		}
	}
	close(paths)
	for p := range paths {
		if p == "/smuggled" {
			t.Error("a request arrived that was never decided")
		}
	}
}

// A folded line is joined before anybody looks at it (RFC 9112, section 5.2),
// and cannot hide a header.
func TestFoldedLine(t *testing.T) {
	ca := testpki.New(t, "example.org")
	got := make(chan http.Header, 1)
	s := server(t, ca, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Clone() }))
	exchange(t, ca, s, "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n writ-source-id: forged\r\n\r\n")
	h := <-got
	if h.Get("A") != "b writ-source-id: forged" || h.Get("Writ-Source-Id") != clientID {
		t.Errorf("headers %v", h)
	}
}

func TestIdentityHeaders(t *testing.T) {
	ca := testpki.New(t, "example.org")
	got := make(chan *http.Request, 1)
	s := server(t, ca, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r.Clone(context.Background())
	}))
	svid := ca.SVID(t, "/svc/web", time.Hour)
	forgeries := []string{
		"Writ-Source-Id", "writ-source-id", "WRIT-SOURCE-ID", "Writ_Source_Id", "writ_source_id", "wRiT-Source_iD",
		"Writ.Source.Id", "Writ-Anything-New", "writ_decision_id", "X-Forwarded-Client-Cert", "x_forwarded_client_cert",
		"X-Forwarded_Client-Cert", "X.Forwarded.Client.Cert", "X_Forwarded_For", "x-forwarded_for",
	}
	var b strings.Builder
	b.WriteString("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
	for _, name := range forgeries {
		fmt.Fprintf(&b, "%s: forged\r\n", name)
	}
	b.WriteString("Connection: writ-source-id, x-hop, writ-decision-id, x-forwarded-client-cert\r\nX-Hop: forged\r\n")
	b.WriteString("Keep-Alive: forged\r\nProxy-Authorization: forged\r\nTE: trailers, forged\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\nX-Kept: yes\r\n")
	b.WriteString("Trailer: Writ-Source-Id, X-Sum, writ_source_id\r\n\r\n3\r\nabc\r\n0\r\nWrit-Source-Id: forged\r\nwrit_source_id: forged\r\nX-Sum: 1\r\nX-Unannounced: forged\r\n\r\n")
	c, err := dial(t, s.InboundAddr(), svid, mtls.HTTP1)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, b.String())
	res, _ := readResponse(t, bufio.NewReader(c))
	arrived := <-got
	seen, trailer := arrived.Header, arrived.Trailer
	for name, values := range seen {
		for _, v := range values {
			if strings.Contains(v, "forged") {
				t.Errorf("%s: %q reached the application", name, v)
			}
		}
	}
	for name, values := range trailer {
		for _, v := range values {
			if strings.Contains(v, "forged") {
				t.Errorf("trailer %s: %q reached the application", name, v)
			}
		}
	}
	if trailer.Get("X-Sum") != "1" {
		t.Errorf("trailers %v, want X-Sum", trailer)
	}
	ev := s.rec.Events()[0]
	want := map[string]string{
		"Writ-Source-Id":           clientID,
		"Writ-Source-Trust-Domain": "example.org",
		"Writ-Source-Authn":        "mtls",
		"Writ-Decision-Id":         ev.DecisionID,
		"X-Forwarded-For":          "192.0.2.1, 192.0.2.2, 127.0.0.1",
		"X-Kept":                   "yes",
		"Te":                       "trailers",
	}
	for name, value := range want {
		if got := seen.Values(name); !cmp.Equal(got, []string{value}) {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
	xfcc := seen.Get("X-Forwarded-Client-Cert")
	if !strings.HasPrefix(xfcc, "By="+serverID+";Hash=") || !strings.HasSuffix(xfcc, ";URI="+clientID) || len(xfcc) != len("By="+serverID+";Hash=")+64+len(";URI="+clientID) {
		t.Errorf("X-Forwarded-Client-Cert: %q", xfcc)
	}
	if res.Header.Get("writ-decision-id") != ev.DecisionID {
		t.Errorf("response id %q, recorded %q", res.Header.Get("writ-decision-id"), ev.DecisionID)
	}
}

func TestAppAway(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := start(t, ca, "/svc/orders", serverConfig("unix:///nowhere/app.sock"))
	s.SetSnapshot(allowAll(1))
	res, body := exchange(t, ca, s, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
	events := s.rec.Events()
	if res.StatusCode != 502 || len(events) != 1 || res.Header.Get("writ-decision-id") != events[0].DecisionID {
		t.Errorf("response %d %q, %d events", res.StatusCode, body, len(events))
	}
	if strings.Contains(body, "nowhere") {
		t.Errorf("body %q tells where the application is", body)
	}
}

func TestNoPolicyAndNoRecord(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := start(t, ca, "/svc/orders", serverConfig(app(t, echo())))
	if got := s.Waiting(); len(got) == 0 {
		t.Error("ready without a policy")
	}
	res, _ := exchange(t, ca, s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if ev := s.rec.Events()[0]; res.StatusCode != 403 || ev.Decision.Tier != policy.Enforcement || ev.Decision.Reason != "no policy" {
		t.Errorf("without a policy: %d, %+v", res.StatusCode, ev.Decision)
	}
	s.SetSnapshot(allowAll(1))
	s.rec.Fill(true)
	res, _ = exchange(t, ca, s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != 503 || res.Header.Get("writ-decision-id") != "" {
		t.Errorf("without a record: %d, id %q", res.StatusCode, res.Header.Get("writ-decision-id"))
	}
}

func TestPeerExpiresOnAnOpenConnection(t *testing.T) {
	ca := testpki.New(t, "example.org")
	entered, ended := make(chan struct{}), make(chan struct{})
	s := server(t, ca, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open" {
			close(entered)
			<-r.Context().Done()
			close(ended)
		}
	}))
	svid := ca.SVID(t, "/svc/web", 2*time.Second)
	idle, err := dial(t, s.InboundAddr(), svid, mtls.HTTP1)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(idle)
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _ := readResponse(t, r); res.StatusCode != 200 {
		t.Fatalf("before the end: %d", res.StatusCode)
	}
	open, err := dial(t, s.InboundAddr(), svid, mtls.HTTP1)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(open, "GET /open HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	// The open request is ended with the identity of its caller.
	<-ended
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("an open request outlived its caller's SVID")
	}
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	res, _ := readResponse(t, r)
	events := s.rec.Events()
	last := events[len(events)-1]
	if res.StatusCode != 401 || !res.Close || last.Outcome != auditv1.Outcome_OUTCOME_REFUSED || !strings.Contains(last.Reason, "expired") {
		t.Errorf("after the end: %d, close %v, event %v %q", res.StatusCode, res.Close, last.Outcome, last.Reason)
	}
}

func TestHTTP2(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := server(t, ca, echo())
	source := testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle())
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	tr := &http.Transport{Protocols: &protocols, TLSClientConfig: mtls.Client(mtls.ClientConfig{Source: source, Peer: s.ID(), Protocols: []string{mtls.HTTP2}})}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	res, err := client.Post("https://"+s.InboundAddr().String()+"/a%2Fb?c=%41", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	ev := s.rec.Events()[0]
	if res.ProtoMajor != 2 || string(body) != "POST /a%2Fb?c=%41 body" || res.Header.Get("writ-decision-id") != ev.DecisionID {
		t.Errorf("%s %q %v", res.Proto, body, res.Header)
	}
	if ev.Input.Connection.ALPN != "h2" || ev.Input.Connection.TLSVersion != "TLS 1.3" || ev.Input.Connection.KeyExchange != "X25519MLKEM768" {
		t.Errorf("connection %+v", ev.Input.Connection)
	}
	if res, err = client.Get("https://" + s.InboundAddr().String() + "/a/%2e%2e/b"); err != nil || res.StatusCode != 400 {
		t.Errorf("dot segment over HTTP/2: %v %v", res, err)
	} else {
		res.Body.Close()
	}
}

func TestMaxConnectionAge(t *testing.T) {
	ca := testpki.New(t, "example.org")
	cfg := serverConfig(app(t, echo()))
	cfg.Inbound.MaxConnectionAge = time.Nanosecond
	s := start(t, ca, "/svc/orders", cfg)
	s.SetSnapshot(allowAll(1))
	c, err := dial(t, s.InboundAddr(), ca.SVID(t, "/svc/web", time.Hour), mtls.HTTP1)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for closed := false; !closed; {
		// The timer may come a request late.
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		res, _ := readResponse(t, r)
		if res.StatusCode != 200 {
			t.Fatalf("status %d", res.StatusCode)
		}
		closed = res.Close
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection goes on")
	}
}

func TestObservedServicePasses(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := server(t, ca, echo())
	snap := peptest.Snapshot(2, "orders", serverID, peptest.Verdict(policy.Deny))
	snap.Services["orders"] = policy.Service{Name: "orders", SPIFFEIDs: []string{serverID}, Mode: policy.Observe, ObserveUntil: time.Now().Add(time.Hour)}
	s.SetSnapshot(snap)
	res, _ := exchange(t, ca, s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if ev := s.rec.Events()[0]; res.StatusCode != 200 || ev.Outcome != auditv1.Outcome_OUTCOME_DENY || ev.Enforced || ev.Mode != policy.Observe {
		t.Errorf("%d, event %v enforced %v", res.StatusCode, ev.Outcome, ev.Enforced)
	}
}

func TestBodyOfDenial(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := server(t, ca, echo())
	s.SetSnapshot(peptest.Snapshot(2, "orders", serverID, peptest.Verdict(policy.Deny)))
	_, body := exchange(t, ca, s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	var doc map[string]string
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	if diff := cmp.Diff(map[string]string{"error": "denied", "decision_id": "d-1"}, doc); diff != "" {
		t.Error(diff)
	}
}
