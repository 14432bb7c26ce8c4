package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/internal/health"
	"github.com/writ-dev/writ/internal/writdconf"
)

// Who watches is told that nothing can be put on record any more, when that is
// so, and /readyz says why.
func TestHealthIsPushed(t *testing.T) {
	d := newDomain(t, "a.test", func(c *writdconf.Config) { c.AuditMaxBytes = ledger.MinBytes })
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { d.health.Run(ctx) })
	defer running.Wait()
	defer cancel()
	stream, err := healthv1.NewHealthClient(d.admin).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	told := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for {
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if r.Status == want {
				return
			}
		}
	}
	ready := func() (int, string) {
		rec := httptest.NewRecorder()
		d.healthHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		return rec.Code, rec.Body.String()
	}
	told(healthv1.HealthCheckResponse_SERVING)
	if code, body := ready(); code != http.StatusOK {
		t.Errorf("/readyz: %d %s", code, body)
	}
	events := make([]audit.Event, 500)
	for n := range events {
		events[n] = audit.Event{Kind: auditv1.Kind_KIND_CONNECTION, Reason: strings.Repeat("x", 200)}
	}
	for d.record.ledger.Err() == nil {
		_ = d.record.recorder.(audit.BatchRecorder).RecordAll(events)
	}
	told(healthv1.HealthCheckResponse_NOT_SERVING)
	if code, body := ready(); code != http.StatusServiceUnavailable || !strings.Contains(body, "audit: ") {
		t.Errorf("/readyz: %d %s", code, body)
	}
}

// A control plane without an issuer has a health, too.
func TestHealthWithoutIssuer(t *testing.T) {
	w := &writd{health: health.New(), record: &record{}}
	memory := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	w.registerAdmin(s, localCaller)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(memory) })
	defer serving.Wait()
	defer s.Stop()
	conn, err := grpc.NewClient("passthrough:writd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return memory.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || r.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
}
