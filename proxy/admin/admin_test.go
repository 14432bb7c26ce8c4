package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/admin"
)

func TestServer(t *testing.T) {
	m := admin.NewMetrics()
	m.Decided(pep.Result{Recorded: true, Outcome: auditv1.Outcome_OUTCOME_ALLOW, Verdict: policy.Allow, Mode: policy.Enforce, Latency: time.Microsecond})
	m.Decided(pep.Result{Recorded: true, Outcome: auditv1.Outcome_OUTCOME_DENY, Verdict: policy.Deny, Mode: policy.Observe, Allow: true})
	m.Decided(pep.Result{Recorded: true, Outcome: auditv1.Outcome_OUTCOME_REFUSED, Verdict: policy.Deny, Mode: policy.Enforce})
	m.Decided(pep.Result{Recorded: true, Outcome: 99})
	m.Decided(pep.Result{})
	m.HandshakeFailed("expired_svid")
	m.Gauge("writ_test", "A test.", func() float64 { return 42 })
	waiting := []string{"no policy"}
	s, err := admin.Listen(admin.Config{Addr: "127.0.0.1:0", Metrics: m, Waiting: func() []string { return waiting }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	get := func(path, host string) (int, string) {
		req, _ := http.NewRequest("GET", "http://"+s.Addr()+path, nil)
		req.Host = host
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(body)
	}
	_, metrics := get("/metrics", "")
	for _, want := range []string{
		`writ_requests_total{enforced="true",outcome="allow"} 1`, `writ_requests_total{enforced="false",outcome="deny"} 1`,
		`writ_requests_total{enforced="true",outcome="refused"} 1`, "writ_unrecorded_total 1", "writ_decision_seconds_count 2",
		`writ_handshake_failures_total{cause="expired_svid"} 1`, "writ_test 42",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	var doc struct {
		Ready   bool
		Waiting []string
	}
	code, body := get("/readyz", "localhost:1")
	if err := json.Unmarshal([]byte(body), &doc); err != nil || code != 503 || doc.Ready || len(doc.Waiting) != 1 {
		t.Errorf("%d %s %v", code, body, err)
	}
	waiting = nil
	if code, body := get("/readyz", ""); code != 200 || !strings.Contains(body, `"waiting":[]`) {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := get("/healthz", "[::1]:1"); code != 200 {
		t.Errorf("healthz %d", code)
	}
	if code, _ := get("/metrics", "rebound.example"); code != 403 {
		t.Errorf("a request for another host: %d", code)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLoopbackOnly(t *testing.T) {
	for addr, ok := range map[string]bool{"127.0.0.1:0": true, "[::1]:0": true, "127.9.9.9:1": true, "0.0.0.0:1": false, ":1": false, "192.0.2.1:1": false, "localhost:1": false, "": false} {
		if err := admin.Loopback(addr); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
}
