package opa_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

// risk is a real server that a policy asks, and counts.
type risk struct {
	*httptest.Server
	asked atomic.Int32
}

func newRisk(t *testing.T, handler http.HandlerFunc) *risk {
	r := &risk{}
	r.Server = httptest.NewServer(r.counting(handler))
	t.Cleanup(r.Close)
	return r
}

func (r *risk) counting(handler http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.asked.Add(1)
		handler(w, req)
	})
}

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	}
}

// waits answers when who asks has left.
func waits(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

type object = map[string]any

// outside is data.writ.outside with http.send.
func outside(t *testing.T, send object) string {
	return "-- writ/outside/data.json --\n" + jsonOf(t, object{"http.send": send}) + "\n"
}

// asksRisk allows what the answer to a request says, which stands in data so
// that nothing is known of it when it is checked.
func asksRisk(t *testing.T, request object) string {
	return "-- risk/data.json --\n" + jsonOf(t, object{"request": request}) + `
-- orders.rego --
package services.orders

allow contains "low-risk" if http.send(data.risk.request).body.ok
`
}

func open(t *testing.T, archive string, cfg opa.SnapshotConfig) *policy.Snapshot {
	t.Helper()
	program, problems := opa.Check(content(archive))
	if program == nil {
		t.Fatal(problems)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	s, err := program.Snapshot(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestHTTPSend(t *testing.T) {
	target := newRisk(t, says(`{"ok": true}`))
	server := newRisk(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/wait":
			waits(w, r)
		case "/drip":
			_, _ = io.WriteString(w, "{")
			w.(http.Flusher).Flush()
			waits(w, r)
		case "/large":
			says(`{"ok": true, "fill": "`+strings.Repeat("x", 1000)+`"}`)(w, r)
		case "/header":
			w.Header().Set("X-Fill", strings.Repeat("x", 200<<10))
		case "/yaml":
			w.Header().Set("Content-Type", "application/x-yaml")
			_, _ = io.WriteString(w, "ok: true")
		case "/echo":
			if r.Method == http.MethodPost && r.Header.Get("X-Caller") == "writ" {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.Copy(w, r.Body)
			}
		case "/away":
			http.Redirect(w, r, target.URL+"/?token=secret", http.StatusFound)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/", http.StatusFound)
		default:
			says(`{"ok": true}`)(w, r)
		}
	})
	bounds := func(more object) object {
		send := object{"hosts": []string{server.URL}, "timeout": "10s"}
		for k, v := range more {
			send[k] = v
		}
		return send
	}
	get := func(path string, more object) object {
		request := object{"method": "GET", "url": server.URL + path}
		for k, v := range more {
			request[k] = v
		}
		return request
	}
	for _, tt := range []struct {
		name          string
		send, request object
		want          string // of the error; "" allows
		// How often each was asked; -1 where the time may be over before.
		asked, target int32
	}{
		{"allowed", nil, get("/", nil), "", 1, 0},
		{"small letters", nil, get("/", object{"method": "get"}), "", 1, 0},
		{"post", nil, get("/echo", object{"method": "POST", "body": object{"ok": true}, "headers": object{"x-caller": "writ"}}), "", 1, 0},
		{"what is forced", nil, get("/large", object{"force_json_decode": true, "raise_error": true}), "", 1, 0},
		{"timeout", object{"timeout": "20ms"}, get("/wait?token=secret", nil), "timed out", -1, 0},
		{"timeout of the request", nil, get("/wait", object{"timeout": "20ms"}), "timed out", -1, 0},
		{"timeout as a number", nil, get("/wait", object{"timeout": 20_000_000}), "timed out", -1, 0},
		{"a longer one is not had", object{"timeout": "20ms"}, get("/wait", object{"timeout": "1m"}), "timed out", -1, 0},
		{"timeout within the body", object{"timeout": "50ms"}, get("/drip", nil), "timed out", -1, 0},
		{"no timeout", nil, get("/", object{"timeout": 0}), "timeout: want", 0, 0},
		{"too large", object{"max_bytes": 100}, get("/large", nil), "the answer is larger than 100 bytes", 1, 0},
		{"as large as may be", object{"max_bytes": 12}, get("/", nil), "", 1, 0},
		{"one too large", object{"max_bytes": 11}, get("/", nil), "the answer is larger than 11 bytes", 1, 0},
		{"large header", nil, get("/header", nil), "exceeded", 1, 0},
		{"yaml", nil, get("/yaml", nil), "answers in YAML", 1, 0},
		{"unlisted host", nil, get("/", object{"url": target.URL + "/?token=secret"}), "is not among the hosts of data.writ.outside", 0, 0},
		{"by a name", nil, get("/", object{"url": strings.Replace(server.URL, "127.0.0.1", "localhost", 1)}), "is not among the hosts", 0, 0},
		{"encrypted", nil, get("/", object{"url": strings.Replace(server.URL, "http:", "https:", 1)}), "is not among the hosts", 0, 0},
		{"socket", nil, get("/", object{"url": "unix://127.0.0.1/?socket=%2Ftmp%2Fx"}), "is not among the hosts", 0, 0},
		{"file", nil, get("/", object{"url": "file:///etc/passwd"}), "is not among the hosts", 0, 0},
		{"password", nil, get("/", object{"url": strings.Replace(server.URL, "//", "//ann:secret@", 1)}), "user or password", 0, 0},
		{"no url", nil, object{"method": "GET"}, "missing required", 0, 0},
		{"redirect not followed", nil, get("/here", nil), "no rule allows it", 1, 0},
		{"redirect", nil, get("/here", object{"enable_redirect": true}), "", 2, 0},
		{"redirect to an unlisted host", nil, get("/away", object{"enable_redirect": true}), "is not among the hosts", 1, 0},
		{"redirect to a listed host", object{"hosts": []string{server.URL, target.URL}}, get("/away", object{"enable_redirect": true}), "", 1, 1},
		{"round and round", object{"max_calls": 3}, get("/round", object{"enable_redirect": true}), "more than 3 requests in one decision", 3, 0},
		{"file of authorities", nil, get("/", object{"tls_ca_cert_file": "/etc/passwd"}), `"tls_ca_cert_file": a policy reads no files`, 0, 0},
		{"environment", nil, get("/", object{"tls_ca_cert_env_variable": "HOME"}), "no environment", 0, 0},
		{"file of a key", nil, get("/", object{"tls_client_key_file": "/etc/key"}), "a policy reads no files", 0, 0},
		{"client key", nil, get("/", object{"tls_client_key": "x"}), "a policy has no private keys", 0, 0},
		{"not verified", nil, get("/", object{"tls_insecure_skip_verify": true}), "the host is whom it is listed as", 0, 0},
		{"another server name", nil, get("/", object{"tls_server_name": "x"}), "the host is whom it is listed as", 0, 0},
		{"host header", nil, get("/", object{"headers": object{"HOST": "x"}}), "host is that of the url", 0, 0},
		{"method", nil, get("/", object{"method": "DELETE"}), "want GET, HEAD or POST", 0, 0},
		{"cache", nil, get("/", object{"force_cache": true}), "one decision only", 0, 0},
		{"forced yaml", nil, get("/", object{"force_yaml_decode": true}), "answers in YAML", 0, 0},
		{"silent failure", nil, get("/", object{"raise_error": false}), "a failure is an error", 0, 0},
		{"again and again", nil, get("/", object{"max_retry_attempts": 3}), `"max_retry_attempts": there is`, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server.asked.Store(0)
			target.asked.Store(0)
			s := open(t, catalogue+outside(t, bounds(tt.send))+asksRisk(t, tt.request), opa.SnapshotConfig{Outside: &opa.Outside{}})
			got := decide(t, s, request())
			switch {
			case got.Unasked != "":
				t.Errorf("%s was not asked", got.Unasked)
			case tt.want == "":
				if got.Verdict != policy.Allow {
					t.Errorf("got %v: %s", got.Verdict, got.Reason)
				}
			case got.Verdict == policy.Allow, !strings.Contains(got.Reason, tt.want), strings.Contains(got.Reason, "secret"):
				t.Errorf("got %v: %s, want %s", got.Verdict, got.Reason, tt.want)
			}
			if n, m := server.asked.Load(), target.asked.Load(); tt.asked >= 0 && n != tt.asked || m != tt.target {
				t.Errorf("asked %d and %d times, want %d and %d", n, m, tt.asked, tt.target)
			}
		})
	}
}

// TestHTTPSendCalls: one decision may ask so often, and the same once.
func TestHTTPSendCalls(t *testing.T) {
	server := newRisk(t, says(`{"ok": true}`))
	policyOf := func(paths ...string) string {
		body := ""
		for _, path := range paths {
			body += fmt.Sprintf("\thttp.send({\"method\": \"GET\", \"url\": %q}).body.ok\n", server.URL+path)
		}
		return catalogue + outside(t, object{"hosts": []string{server.URL}, "timeout": "10s", "max_calls": 2}) +
			"-- orders.rego --\npackage services.orders\n\nallow contains \"a\" if {\n" + body + "}\n"
	}
	for _, tt := range []struct {
		name  string
		paths []string
		want  policy.Verdict
		asked int32
	}{
		{"as often as may be", []string{"/1", "/2"}, policy.Allow, 2},
		{"the same", []string{"/1", "/1", "/1", "/2"}, policy.Allow, 2},
		{"too often", []string{"/1", "/2", "/3"}, policy.Error, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, policyOf(tt.paths...), opa.SnapshotConfig{Outside: &opa.Outside{}})
			for range 2 { // The next decision begins anew, and remembers nothing.
				server.asked.Store(0)
				if got := decide(t, s, request()); got.Verdict != tt.want || tt.want == policy.Error && !strings.Contains(got.Reason, "more than 2 requests in one decision") {
					t.Errorf("got %v: %s", got.Verdict, got.Reason)
				}
				if n := server.asked.Load(); n != tt.asked {
					t.Errorf("asked %d times, want %d", n, tt.asked)
				}
			}
		})
	}
}

// TestHTTPSendEndsWithTheDecision: neither the time of the decision nor who
// waits for it is outstayed.
func TestHTTPSendEndsWithTheDecision(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := newRisk(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cancel" {
			cancel()
		}
		waits(w, r)
	})
	of := func(path string) string {
		return catalogue + outside(t, object{"hosts": []string{server.URL}, "timeout": "10s"}) +
			asksRisk(t, object{"method": "GET", "url": server.URL + path})
	}
	s := open(t, of("/"), opa.SnapshotConfig{Outside: &opa.Outside{}, Timeout: 100 * time.Millisecond})
	if got := decide(t, s, request()); got.Verdict != policy.Error || got.Reason != "no decision within 100ms" {
		t.Errorf("got %v: %s", got.Verdict, got.Reason)
	}
	s = open(t, of("/cancel"), opa.SnapshotConfig{Outside: &opa.Outside{}})
	var got policy.Decision
	if s.Decider.Decide(ctx, request(), &got); got.Verdict != policy.Error || !strings.Contains(got.Reason, "cancel") {
		t.Errorf("got %v: %s", got.Verdict, got.Reason)
	}
}

// TestHTTPSendTLS: authorities may stand in the policy, and nothing leaves https.
func TestHTTPSendTLS(t *testing.T) {
	plain := newRisk(t, says(`{"ok": true}`))
	server := &risk{}
	server.Server = httptest.NewUnstartedServer(server.counting(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/plain" {
			http.Redirect(w, r, plain.URL, http.StatusFound)
			return
		}
		says(`{"ok": true}`)(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // Of clients that do not trust it.
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	for _, tt := range []struct {
		name    string
		request object
		want    string
	}{
		{"known", object{"url": server.URL, "tls_ca_cert": ca}, ""},
		{"unknown", object{"url": server.URL}, "certificate"},
		{"system", object{"url": server.URL, "tls_use_system_certs": true}, "certificate"},
		{"redirect", object{"url": server.URL + "/plain", "tls_ca_cert": ca, "enable_redirect": true}, "a redirect leaves https"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.request["method"] = "GET"
			archive := catalogue + outside(t, object{"hosts": []string{server.URL, plain.URL}, "timeout": "10s"}) + asksRisk(t, tt.request)
			got := decide(t, open(t, archive, opa.SnapshotConfig{Outside: &opa.Outside{}}), request())
			if tt.want == "" && got.Verdict != policy.Allow || tt.want != "" && (got.Verdict != policy.Error || !strings.Contains(got.Reason, tt.want)) {
				t.Errorf("got %v: %s", got.Verdict, got.Reason)
			}
		})
	}
	if n := plain.asked.Load(); n != 0 {
		t.Errorf("asked %d times without TLS", n)
	}
}

// names is a resolver that asks a name server of our own, for which every name
// has the address.
func names(t *testing.T, address string) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	ip := net.ParseIP(address)
	go func() {
		defer close(done)
		for buf := make([]byte, 4096); ; {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Header.Response, m.Additionals = true, nil
			header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
			switch v4 := ip.To4(); {
			case q.Type == dnsmessage.TypeA && v4 != nil:
				m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte(v4)}}}
			case q.Type == dnsmessage.TypeAAAA && v4 == nil:
				m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: [16]byte(ip)}}}
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = server.WriteTo(answer, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// TestNamesLeadNowhereElse: a name server cannot make a listed name one of the
// machine, or of where a cloud tells its secrets.
func TestNamesLeadNowhereElse(t *testing.T) {
	server := newRisk(t, says(`{"ok": true}`))
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"127.0.0.1":          "the machine itself",
		"0.0.0.0":            "the machine itself",
		"::1":                "the machine itself",
		"64:ff9b::7f00:1":    "the machine itself",
		"169.254.169.254":    "link-local",
		"fe80::1":            "link-local",
		"64:ff9b::a9fe:a9fe": "link-local",
		"224.0.0.1":          "multicast",
		"100.100.100.200":    "clouds tell secrets",
		"168.63.129.16":      "clouds tell secrets",
		"fd00:ec2::254":      "clouds tell secrets",
		"::7f00:1":           "clouds tell secrets",
		"2002:7f00:1::":      "clouds tell secrets",
	} {
		t.Run(address, func(t *testing.T) {
			// A wildcard, in whose place any name can be asked for.
			archive := catalogue + outside(t, object{"hosts": []string{"http://*.example.org:" + at.Port()}, "timeout": "10s"}) +
				asksRisk(t, object{"method": "GET", "url": "http://metadata.example.org:" + at.Port()})
			s := open(t, archive, opa.SnapshotConfig{Outside: &opa.Outside{Resolver: names(t, address)}})
			if got := decide(t, s, request()); got.Verdict != policy.Error || !strings.Contains(got.Reason, want) {
				t.Errorf("got %v: %s", got.Verdict, got.Reason)
			}
		})
	}
	if n := server.asked.Load(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

func TestLookup(t *testing.T) {
	of := func(body string) string {
		return catalogue + `-- writ/outside/data.json --
{"net.lookup_ip_addr": {"hosts": ["*.example.org"], "timeout": "10s", "max_calls": 2}}
-- orders.rego --
package services.orders

prefix := "db."

allow contains "a" if {
	` + body + `
}
`
	}
	resolver := names(t, "192.0.2.7")
	for _, tt := range []struct {
		name, body string
		want       policy.Verdict
		reason     string
	}{
		{"listed", `"192.0.2.7" in net.lookup_ip_addr("db.example.org")`, policy.Allow, ""},
		{"another answer", `"192.0.2.8" in net.lookup_ip_addr("db.example.org")`, policy.Deny, "no rule allows it"},
		{"not listed", `net.lookup_ip_addr("db.example.com")`, policy.Error, `"db.example.com" is not among the hosts`},
		{"the domain itself", `net.lookup_ip_addr("example.org")`, policy.Error, "is not among the hosts"},
		{"the same", `every x in [1, 2, 3] { x > 0; net.lookup_ip_addr("db.example.org") }`, policy.Allow, ""},
		{"too many", `every x in ["a", "b", "c"] { net.lookup_ip_addr(concat("", [x, ".example.org"])) }`, policy.Error, "more than 2 in one decision"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, of(tt.body), opa.SnapshotConfig{Outside: &opa.Outside{Resolver: resolver}})
			if got := decide(t, s, request()); got.Verdict != tt.want || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("got %v: %s", got.Verdict, got.Reason)
			}
		})
	}
	s := open(t, of(`net.lookup_ip_addr("db.example.org")`), opa.SnapshotConfig{})
	if got := decide(t, s, request()); got.Verdict != policy.Error || got.Unasked != "net.lookup_ip_addr" {
		t.Errorf("without a way out: %v, %q: %s", got.Verdict, got.Unasked, got.Reason)
	}
}

// TestRuntime: what is named is shown, and nothing else.
func TestRuntime(t *testing.T) {
	archive := catalogue + `-- writ/outside/data.json --
{"opa.runtime": {"env": ["REGION", "UNSET"]}}
-- orders.rego --
package services.orders

allow contains "a" if {
	opa.runtime().env == {"REGION": "eu"}
	object.keys(opa.runtime()) == {"env", "version"}
}
`
	env := func(name string) (string, bool) {
		value, ok := map[string]string{"REGION": "eu", "SECRET": "x"}[name]
		return value, ok
	}
	if got := decide(t, open(t, archive, opa.SnapshotConfig{Outside: &opa.Outside{Env: env}}), request()); got.Verdict != policy.Allow {
		t.Errorf("got %v: %s", got.Verdict, got.Reason)
	}
	if got := decide(t, open(t, archive, opa.SnapshotConfig{}), request()); got.Verdict != policy.Error || got.Unasked != "opa.runtime" {
		t.Errorf("without a way out: %v, %q", got.Verdict, got.Unasked)
	}
}

// TestNoWayOut: what admits a builtin gives nobody but an enforcement point a
// way out.
func TestNoWayOut(t *testing.T) {
	server := newRisk(t, says(`{"ok": true}`))
	archive := catalogue + outside(t, object{"hosts": []string{server.URL}}) + asksRisk(t, object{"method": "GET", "url": server.URL}) + `
-- orders_test.rego --
package orders_test

allowed if "low-risk" in data.services.orders.allow

test_mocked if allowed with http.send as {"body": {"ok": true}}

test_asks if allowed
`
	program, problems := opa.Check(content(archive))
	if program == nil {
		t.Fatal(problems)
	}
	const want = "it looks outside of the input"
	s, err := program.Snapshot(opa.SnapshotConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if got := decide(t, s, request()); got.Verdict != policy.Error || got.Unasked != "http.send" || !strings.Contains(got.Reason, want) {
		t.Errorf("decision: %v, %q: %s", got.Verdict, got.Unasked, got.Reason)
	}
	// What would not have been asked is decided.
	if got := decide(t, s, request(func(in *policy.Input) { in.Destination.Service = "payments" })); got.Verdict != policy.Deny || got.Unasked != "" {
		t.Errorf("another service: %v, %q", got.Verdict, got.Unasked)
	}
	report, err := program.Test(t.Context(), opa.TestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Passed != 1 || report.Failed != 1 || !strings.Contains(report.Problems()[0].Message, "`with … as` stands in for it") {
		t.Errorf("tests: %d passed, %v", report.Passed, report.Problems())
	}
	if _, err := program.Query(t.Context(), "data.services.orders.allow", request(), time.Minute); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("query: %v", err)
	}
	explanation, err := program.Explain(t.Context(), request(), opa.ExplainOptions{})
	if err != nil || len(explanation.Failed) != 1 {
		t.Errorf("explanation: %+v, %v", explanation, err)
	}
	if n := server.asked.Load(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}
