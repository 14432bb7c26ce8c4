package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/mtls"
)

// pair starts a sidecar in front of h and another for a client of it, and
// returns the URL under which the client reaches h.
func pair(t testing.TB, ca *testpki.CA, h http.Handler) (srv, cli *sidecar, url string) {
	t.Helper()
	srv = server(t, ca, h)
	cli = start(t, ca, "/svc/web", clientConfig(srv, "http"))
	return srv, cli, "http://" + cli.UpstreamAddr("orders").String()
}

func TestPair(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv, cli, url := pair(t, ca, echo())
	status, body, h := get(t, newClient(t), url+"/a%2Fb;c?d=%41")
	if status != 200 || body != "GET /a%2Fb;c?d=%41 " || h.Get("writ-decision-id") != "d-1" {
		t.Errorf("%d %q %v", status, body, h)
	}
	if ev := srv.rec.Events()[0]; ev.Input.Source.ID != clientID || ev.Input.Request.Path != "/a%2Fb;c" {
		t.Errorf("recorded %+v", ev.Input)
	}
	if n := len(cli.rec.Events()); n != 0 {
		t.Errorf("%d events at the caller's sidecar: the response has its event at the other", n)
	}
}

func TestOutboundCannotForge(t *testing.T) {
	ca := testpki.New(t, "example.org")
	_, _, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Values("Writ-Source-Id"), r.Header.Values("Writ_source_id"))
	}))
	req, _ := http.NewRequest("GET", url, nil)
	req.Header["Writ-Source-Id"] = []string{"spiffe://example.org/svc/admin"}
	req.Header["writ_source_id"] = []string{"spiffe://example.org/svc/admin"}
	res, err := newClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); string(body) != "["+clientID+"] []" {
		t.Errorf("the application saw %s", body)
	}
}

func TestOutboundChecksThePeer(t *testing.T) {
	ca := testpki.New(t, "example.org")
	reached := make(chan struct{}, 1)
	srv := server(t, ca, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached <- struct{}{} }))
	cfg := clientConfig(srv, "http")
	cfg.Upstreams[0].SPIFFEID = "spiffe://example.org/svc/payments"
	cli := start(t, ca, "/svc/web", cfg)
	status, body, h := get(t, newClient(t), "http://"+cli.UpstreamAddr("orders").String()+"/")
	events := cli.rec.Events()
	if status != 502 || len(events) != 1 || h.Get("writ-decision-id") != events[0].DecisionID || !strings.Contains(body, "upstream failed") {
		t.Fatalf("%d %q %v, %d events", status, body, h, len(events))
	}
	if ev := events[0]; ev.Outcome != auditv1.Outcome_OUTCOME_REFUSED || !strings.Contains(ev.Reason, "claims "+serverID) || ev.Input.Direction != policy.Outbound {
		t.Errorf("event %v %q", ev.Outcome, ev.Reason)
	}
	select {
	case <-reached:
		t.Error("the wrong service was called")
	default:
	}
}

func TestUpstreamAway(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv := server(t, ca, echo())
	cli := start(t, ca, "/svc/web", clientConfig(srv, "http"))
	if err := srv.end(); err != nil {
		t.Fatal(err)
	}
	status, _, h := get(t, newClient(t), "http://"+cli.UpstreamAddr("orders").String()+"/")
	events := cli.rec.Events()
	if status != 502 || len(events) != 1 || events[0].Kind != auditv1.Kind_KIND_CONNECTION || events[0].Outcome != auditv1.Outcome_OUTCOME_FAILURE || h.Get("writ-decision-id") != events[0].DecisionID {
		t.Errorf("%d, events %+v", status, events)
	}
}

func TestOutboundAdmitsItsOwnUserOnly(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv := server(t, ca, echo())
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "unix://" + t.TempDir() + "/out.sock"} {
		t.Run(listen, func(t *testing.T) {
			if ln, err := net.Listen("tcp", "[::1]:0"); err == nil {
				ln.Close()
			} else if strings.HasPrefix(listen, "[::1]") {
				t.Skip("no IPv6 loopback here")
			}
			for _, tc := range []struct {
				uids  []int
				admit bool
			}{{nil, true}, {[]int{os.Getuid()}, true}, {[]int{os.Getuid() + 1}, false}} {
				cfg := clientConfig(srv, "http")
				cfg.Upstreams[0].Listen, cfg.Upstreams[0].AllowUIDs = listen, tc.uids
				cli := start(t, ca, "/svc/web", cfg)
				addr := cli.UpstreamAddr("orders")
				client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
					return net.Dial(addr.Network(), addr.String())
				}}}
				res, err := client.Get("http://x/")
				if admitted := err == nil && res.StatusCode == 200; admitted != tc.admit {
					t.Errorf("uids %v: %v %v", tc.uids, res, err)
				}
				if err == nil {
					res.Body.Close()
				}
				refused := 0
				for _, ev := range cli.rec.Events() {
					if ev.Kind == auditv1.Kind_KIND_CONNECTION && ev.Outcome == auditv1.Outcome_OUTCOME_REFUSED {
						refused++
					}
				}
				if (refused > 0) == tc.admit {
					t.Errorf("uids %v: %d refusals recorded", tc.uids, refused)
				}
				if err := cli.end(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestLargeBodiesBothWays(t *testing.T) {
	ca := testpki.New(t, "example.org")
	_, _, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	}))
	want := make([]byte, 16<<20)
	rand.Read(want)
	for _, known := range []bool{true, false} {
		var body io.Reader = bytes.NewReader(want)
		if !known {
			body = io.MultiReader(body)
		}
		res, err := newClient(t).Post(url, "application/octet-stream", body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("known length %v: %d bytes, want the %d that were sent: %v", known, len(got), len(want), err)
		}
	}
}

// A response is seen piece by piece while the request is still being sent.
func TestStreaming(t *testing.T) {
	ca := testpki.New(t, "example.org")
	_, _, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		w.WriteHeader(200)
		rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintln(w, "got", lines.Text())
			rc.Flush()
		}
		w.Header().Set(http.TrailerPrefix+"X-Done", "yes")
	}))
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", url, pr)
	res, err := newClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for i := range 5 {
		fmt.Fprintln(pw, i)
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("got %d\n", i) {
			t.Fatalf("line %d: %q %v", i, line, err)
		}
	}
	pw.Close()
	io.Copy(io.Discard, lines)
	if res.Trailer.Get("X-Done") != "yes" {
		t.Errorf("trailers %v", res.Trailer)
	}
}

func TestInformationalResponses(t *testing.T) {
	ca := testpki.New(t, "example.org")
	_, _, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.Copy(w, r.Body)
	}))
	var hints []int
	var link string
	var continued bool
	req, _ := http.NewRequest("POST", url, strings.NewReader("body"))
	req.Header.Set("Expect", "100-continue")
	req = req.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { continued = true },
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, code)
			if v := h.Get("Link"); v != "" {
				link = v
			}
			return nil
		},
	}))
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: 10 * time.Second, DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); string(body) != "body" || res.Header.Get("Link") != "" || len(res.Header.Values("writ-decision-id")) != 1 {
		t.Errorf("%q %v", body, res.Header)
	}
	if !continued || link != "</style.css>" {
		t.Errorf("continued %v, informational %v, link %q", continued, hints, link)
	}
}

func TestUpgrade(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv, cli, _ := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			http.Error(w, "no upgrade", http.StatusBadRequest)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			rw.WriteString("echo " + line)
			rw.Flush()
		}
	}))
	connect := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", cli.UpstreamAddr("orders").String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// The first frame comes with the head.
		io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nearly\n")
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, &http.Request{Method: "GET"})
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "x" || res.Header.Get("writ-decision-id") == "" {
			t.Fatalf("%d %v", res.StatusCode, res.Header)
		}
		return c, r
	}
	c, r := connect()
	if line, err := r.ReadString('\n'); line != "echo early\n" {
		t.Fatalf("%q %v", line, err)
	}
	for i := range 3 {
		fmt.Fprintf(c, "%d\n", i)
		if line, err := r.ReadString('\n'); line != fmt.Sprintf("echo %d\n", i) {
			t.Fatalf("%q %v", line, err)
		}
	}
	// A revision that takes the right away ends the connection.
	srv.SetSnapshot(peptest.Snapshot(2, "orders", serverID, peptest.Verdict(policy.Deny)))
	if line, err := r.ReadString('\n'); err == nil {
		t.Errorf("still open after the right ended: %q", line)
	}
	events := srv.rec.Events()
	if len(events) != 2 || events[1].Outcome != auditv1.Outcome_OUTCOME_DENY {
		t.Errorf("events %+v", events)
	}
	// So does the end of the sidecar.
	srv.SetSnapshot(allowAll(3))
	_, r = connect()
	r.ReadString('\n')
	if err := srv.end(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadString('\n'); err == nil {
		t.Error("still open after the sidecar ended")
	}
}

// Clients that send nothing, or a head that never ends, are cut off.
func TestSlowHead(t *testing.T) {
	ca := testpki.New(t, "example.org")
	source := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	s := startWith(t, source, serverConfig(app(t, echo())), func(o *Options) { o.HeadTimeout = 500 * time.Millisecond })
	var wg sync.WaitGroup
	for _, protocol := range []string{mtls.HTTP1, mtls.HTTP2} {
		c, err := dial(t, s.InboundAddr(), ca.SVID(t, "/svc/web", time.Hour), protocol)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost:")
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 || os.IsTimeout(err) {
				t.Errorf("%s: a slow head was not cut off: %v", protocol, err)
			}
		})
	}
	raw, err := net.Dial("tcp", s.InboundAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.Write([]byte{22, 3, 1})
	raw.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, raw); os.IsTimeout(err) {
		t.Errorf("a slow handshake was not cut off")
	}
	wg.Wait()
}

func TestDrain(t *testing.T) {
	ca := testpki.New(t, "example.org")
	entered, release := make(chan struct{}), make(chan struct{})
	srv, _, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		io.WriteString(w, "whole")
	}))
	answer := make(chan string, 1)
	go func() {
		res, err := http.Get(url)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		answer <- string(body)
	}()
	<-entered
	ended := make(chan error, 1)
	go func() { ended <- srv.end() }()
	// Not accepting any more, which a refused connection tells.
	for {
		c, err := net.Dial("tcp", srv.InboundAddr().String())
		if err != nil {
			break
		}
		c.Close()
	}
	if waiting := strings.Join(srv.Waiting(), " "); !strings.Contains(waiting, "draining") {
		t.Errorf("ready while draining: %q", waiting)
	}
	close(release)
	if got := <-answer; got != "whole" {
		t.Errorf("a request open at the beginning of the drain: %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestNotEnforced(t *testing.T) {
	for _, tc := range []struct {
		app, listen string
		want        []string
	}{
		{"unix:///run/app.sock", "unix:///run/out.sock", nil},
		{"127.0.0.1:80", "unix:///run/out.sock", []string{"loopback TCP"}},
		{"[::1]:80", "unix:///run/out.sock", []string{"loopback TCP"}},
		{"localhost:80", "unix:///run/out.sock", []string{"loopback TCP"}},
		{"192.0.2.1:80", "unix:///run/out.sock", []string{"beyond loopback"}},
		{"unix:///run/app.sock", "127.0.0.1:81", []string{"uid 7"}},
	} {
		p := &Proxy{opts: Options{Config: Config{
			Inbound: &Inbound{App: tc.app}, Upstreams: []Upstream{{Name: "u", Listen: tc.listen, AllowUIDs: []int{7}}},
		}}}
		got := p.NotEnforced()
		if len(got) != len(tc.want) || len(got) == 1 && !strings.Contains(got[0], tc.want[0]) {
			t.Errorf("%s %s: %q, want %q", tc.app, tc.listen, got, tc.want)
		}
	}
}

// An answer that does not wait for the request's body arrives whole, and what
// is left of the body is never taken for another request.
func TestEarlyResponse(t *testing.T) {
	ca := testpki.New(t, "example.org")
	srv, cli, _ := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(w, "too large")
	}))
	c, err := net.Dial("tcp", cli.UpstreamAddr("orders").String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\npart")
	r := bufio.NewReader(c)
	res, body := readResponse(t, r)
	if res.StatusCode != 413 || body != "too large" || !res.Close {
		t.Errorf("%d %q, close %v", res.StatusCode, body, res.Close)
	}
	io.WriteString(c, "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
	if more, _ := io.ReadAll(r); len(more) > 0 {
		t.Errorf("another response: %q", more)
	}
	for _, ev := range srv.rec.Events() {
		if ev.Input.Request.Path == "/smuggled" {
			t.Error("the rest of a body was decided as a request")
		}
	}
}

func TestRightEndsWhileABodyIsSent(t *testing.T) {
	ca := testpki.New(t, "example.org")
	entered := make(chan struct{})
	srv, _, url := pair(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		io.Copy(io.Discard, r.Body)
	}))
	pr, pw := io.Pipe()
	defer pw.Close()
	failed := make(chan error, 1)
	go func() {
		res, err := newClient(t).Post(url, "text/plain", pr)
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusBadGateway {
				err = nil
			} else {
				err = fmt.Errorf("%s", res.Status)
			}
		}
		failed <- err
	}()
	<-entered
	srv.SetSnapshot(peptest.Snapshot(2, "orders", serverID, peptest.Verdict(policy.Deny)))
	// net/http looks at a connection that its other end has closed when it has
	// more of the body to send.
	for {
		if _, err := pw.Write([]byte("more")); err != nil {
			break
		}
	}
	if err := <-failed; err == nil {
		t.Error("the request outlived the right to it")
	}
}
