package follow_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// TestOutside: a slice that looks outside of the input is in force only where
// that is allowed. Otherwise the last good one stays, and nobody is asked.
func TestOutside(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"ok": true}`)
	}))
	t.Cleanup(server.Close)
	asks := func(s *bundle.Slice) {
		s.Content[0].Content = fmt.Appendf(nil, `{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}},
			"outside": {"http.send": {"hosts": [%q], "timeout": "10s"}}}}`, server.URL)
		s.Content[1].Content = fmt.Appendf(nil, "package services.orders\n\nallow if http.send({\"method\": \"GET\", \"url\": %q}).body.ok\n", server.URL)
	}
	in := &policy.Input{Layer: policy.LayerRequest, Destination: policy.Destination{Service: "orders"}, Request: policy.Request{Protocol: policy.HTTP}, Time: time.Unix(1, 0)}

	x := newFixture(t)
	_, stop := x.run()
	<-x.plane.reports
	x.plane.slices <- x.slice(1, 1)
	<-x.plane.reports
	x.plane.slices <- x.slice(1, 2, asks)
	if r := <-x.plane.reports; r.Revision.GetNumber() != 1 || !strings.Contains(r.Refused, "http.send, which looks outside of the input, and policy.allow_outside is not set here") {
		t.Errorf("not allowed: %v", r)
	}
	// Not even where its data leave out what its rules need.
	x.plane.slices <- x.slice(1, 2, func(s *bundle.Slice) {
		data := s.Content[0]
		asks(s)
		s.Content[0] = data
	})
	if r := <-x.plane.reports; r.Revision.GetNumber() != 1 || !strings.Contains(r.Refused, "undefined function http.send") {
		t.Errorf("not admitted: %v", r)
	}
	stop()
	var out policy.Decision
	if (<-x.activated).Decider.Decide(t.Context(), in, &out); out.Verdict != policy.Allow || out.Revision.Number != 1 || len(x.activated) > 0 {
		t.Errorf("in force is %+v", out)
	}

	x.config.DecisionTimeout = time.Minute
	x.config.Outside = &opa.Outside{}
	_, stop = x.run()
	<-x.activated // As it was kept.
	<-x.plane.reports
	if n := asked.Load(); n != 0 {
		t.Errorf("asked %d times where it is not allowed", n)
	}
	x.plane.slices <- x.slice(1, 2, asks)
	if r := <-x.plane.reports; r.Revision.GetNumber() != 2 || r.Refused != "" {
		t.Errorf("allowed: %v", r)
	}
	stop()
	if (<-x.activated).Decider.Decide(t.Context(), in, &out); out.Verdict != policy.Allow || out.Revision.Number != 2 || asked.Load() != 1 {
		t.Errorf("allowed: asked %d times, %+v", asked.Load(), out)
	}
}
