package compile_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

// TestOutside: rules that look outside stay with topdown, whether the rest of
// them is known or not, and the report says why. Other rules are compiled, and
// what they decide asks nobody.
func TestOutside(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"ok": true}`)
	}))
	t.Cleanup(server.Close)
	archive := catalogue + fmt.Sprintf(`-- writ/outside/data.json --
{"http.send": {"hosts": [%[1]q], "timeout": "10s"}, "net.lookup_ip_addr": {"hosts": ["db.example.org"]}, "opa.runtime": {}}
-- orders.rego --
package services.orders

allow contains "reads" if input.request.method == "GET"

allow contains "asks" if {
	input.request.method == "POST"
	http.send({"method": "GET", "url": %[1]q}).body.ok
}

allow contains "looks" if {
	input.request.method == "PUT"
	ok(net.lookup_ip_addr("db.example.org"))
}

allow contains "runs" if {
	input.request.method == "HEAD"
	version == "1"
}

ok(x) if count(x) > 0

version := opa.runtime().version
`, server.URL)
	p, prog, report := compiled(t, archive)
	why := map[string]string{}
	for _, r := range report.Services[0].Rules {
		why[r.ID] = r.Result + ": " + r.Why
	}
	for id, want := range map[string]string{
		"reads": "compiled: ",
		"asks":  "guarded: line 7: http.send looks outside of the input",
		"looks": "guarded: line 12: net.lookup_ip_addr looks outside of the input",
		"runs":  "guarded: line 22: opa.runtime looks outside of the input",
	} {
		if why[id] != want {
			t.Errorf("%s: got %q, want %q", id, why[id], want)
		}
	}
	s, err := compile.Snapshot(func() (*opa.Program, error) { return p, nil }, prog, p.Catalogue().Services,
		opa.SnapshotConfig{Timeout: time.Minute, Outside: &opa.Outside{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method  string
		verdict policy.Verdict
		asked   int32
		topdown uint64
	}{
		{"GET", policy.Allow, 0, 0},
		{"DELETE", policy.Deny, 0, 0},
		{"POST", policy.Allow, 1, 1},
	} {
		in := &policy.Input{Layer: policy.LayerRequest, Destination: policy.Destination{Service: "orders"},
			Request: policy.Request{Protocol: policy.HTTP, Method: tt.method}, Time: time.Unix(1, 0)}
		var out policy.Decision
		if s.Decider.Decide(t.Context(), in, &out); out.Verdict != tt.verdict || asked.Load() != tt.asked {
			t.Errorf("%s: %+v, asked %d times", tt.method, out, asked.Load())
		}
		if asked := s.Decider.(compile.Engine).Asked(); asked != tt.topdown {
			t.Errorf("%s: topdown was asked %d times", tt.method, asked)
		}
	}
}
