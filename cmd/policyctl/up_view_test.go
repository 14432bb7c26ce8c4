package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/mesh"
)

func TestCurl(t *testing.T) {
	r := mesh.Request{Method: "POST", Path: "/a?b=it's", Headers: map[string]string{"x-team": "red"}}
	want := `curl -i -X POST -H 'x-team: red' 'http://127.0.0.1:81/a?b=it'\''s'`
	if got := curl(r, 81); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := curl(mesh.Request{Method: "GET", Path: "/a/%2e%2e/b"}, 81); got != "curl -i --path-as-is http://127.0.0.1:81/a/%2e%2e/b" {
		t.Errorf("got %s", got)
	}
}

func TestPlainText(t *testing.T) {
	if got := plainText("a\x1b[31m\nb\u009bc→\u202e"); got != "a�[31m�b�c→�" {
		t.Errorf("got %q", got)
	}
}

func TestViewOfRequests(t *testing.T) {
	m, err := mesh.Parse("m", []byte(testMesh+`
requests:
  - {caller: web, target: shop, path: /a, expected: deny}
  - {caller: web, target: pay, path: /p.P/Do, expected: allow}
`))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	v := newView(&out)
	v.begin(m, "/data")
	out.Reset()
	r := unanswered(m.Requests[0])
	r.Verdict, r.Rule, r.Status, r.latency, r.observed = "deny", "no", 200, 1234*time.Microsecond, true
	v.request(m, r)
	r = unanswered(m.Requests[1])
	r.Verdict, r.Rule, r.Status, r.latency = "deny", "default-deny", 7, time.Millisecond
	v.request(m, r)
	want := `  ✓ deny     web → shop  GET /a   no                            200       1.2 ms  observed, so it passed
  ✗ deny     web → pay   /p.P/Do  default-deny                  DENIED    1.0 ms  expected allow
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("view (-want +got):\n%s", diff)
	}
}

func TestViewOfObserving(t *testing.T) {
	tests := []struct{ name, until, begin, service, request string }{
		{
			"going on", "2999-01-31", "writ example.org in /data\n\n",
			"  web         spiffe://example.org/svc/web  http, observe until 2999-01-31\n", "  observed\n",
		},
		{
			"ended", "2020-01-01", "writ example.org in /data\n\n! observing web ended on 2020-01-01: it is enforced\n",
			"  web         spiffe://example.org/svc/web  http, enforce\n", "0.0 ms\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := mesh.Parse("m", []byte(`{trust_domain: example.org, policy: p,
services: [{name: web, address: "127.0.0.1:1", mode: observe, observe_until: `+tt.until+`}],
requests: [{caller: none, target: web, path: /, expected: allow}]}`))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			v := newView(&out)
			v.begin(m, "/data")
			if diff := cmp.Diff(tt.begin, out.String()); diff != "" {
				t.Errorf("begin (-want +got):\n%s", diff)
			}
			out.Reset()
			v.service(&m.Services[0])
			if diff := cmp.Diff(tt.service, out.String()); diff != "" {
				t.Errorf("service (-want +got):\n%s", diff)
			}
			out.Reset()
			r := unanswered(m.Requests[0])
			r.Verdict, r.observed = "allow", m.Services[0].ModeAt(time.Now()) == mesh.Observe
			v.request(m, r)
			if !strings.HasSuffix(out.String(), tt.request) {
				t.Errorf("request %q, want the end %q", out.String(), tt.request)
			}
		})
	}
}

func TestLookForAService(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	var out bytes.Buffer
	u := &upRun{view: newView(&out)}
	s := &mesh.Service{Name: "shop", Address: ln.Addr().String()}
	u.lookFor(t.Context(), s)
	u.lookFor(t.Context(), &mesh.Service{Name: "me"})
	if out.Len() > 0 {
		t.Errorf("it listens, yet: %s", out.String())
	}
	ln.Close()
	u.lookFor(t.Context(), s)
	want := "! shop: nothing listens at " + s.Address + " yet\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("view (-want +got):\n%s", diff)
	}
	out.Reset()
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	u.lookFor(stopped, s)
	if out.Len() > 0 {
		t.Errorf("stopped while it looked, yet: %s", out.String())
	}
}

func TestViewOfTheRecord(t *testing.T) {
	var out bytes.Buffer
	v := newView(&out)
	now := time.Now()
	v.live(&recorded{id: "abc", event: &auditv1.Event{
		Kind: auditv1.Kind_KIND_DECISION, Outcome: auditv1.Outcome_OUTCOME_DENY, Time: now.UnixNano(), Latency: 1_500_000,
		Source: &auditv1.Source{Id: "spiffe://example.org/svc/web"}, Destination: &auditv1.Destination{Service: "shop"},
		Request: &auditv1.Request{Protocol: "http", Method: "GET", Path: "/\x1b[2J"}, Tier: auditv1.Tier_TIER_DEFAULT_DENY,
	}})
	want := "  " + now.Format(time.TimeOnly) + " deny     web → shop  GET /�[2J  default-deny                  decided in 1.5 ms  abc  observed, so it passed\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("view (-want +got):\n%s", diff)
	}
}
