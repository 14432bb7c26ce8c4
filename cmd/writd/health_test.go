package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"golang.org/x/sys/unix"
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

// watchHealth begins a watch, and gives what waits until it tells of a status.
func watchHealth(t *testing.T, client healthv1.HealthClient) (told func(want healthv1.HealthCheckResponse_ServingStatus)) {
	t.Helper()
	stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return func(want healthv1.HealthCheckResponse_ServingStatus) {
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
}

// Who watches is told that nothing can be put on record any more, when that is
// so, and /readyz says why.
func TestHealthIsPushed(t *testing.T) {
	d := newDomain(t, "a.test", func(c *writdconf.Config) { c.AuditMaxBytes = ledger.MinBytes })
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { d.health.Run(ctx) })
	defer running.Wait()
	defer cancel()
	told := watchHealth(t, healthv1.NewHealthClient(d.admin))
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
	for err := error(nil); err == nil; _, err = d.record.err() {
		_ = d.record.recorder.(audit.BatchRecorder).RecordAll(events)
	}
	told(healthv1.HealthCheckResponse_NOT_SERVING)
	if code, body := ready(); code != http.StatusServiceUnavailable || !strings.Contains(body, "nothing goes on record, so nothing is issued: audit: no room") {
		t.Errorf("/readyz: %d %s", code, body)
	}
}

// A disk of the ledger without room makes a control plane unhealthy at the first act
// that is refused, to those who watch and to those who ask, with the disk's name;
// room makes it healthy again though nobody calls it meanwhile.
func TestHealthOfAFullDisk(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "audit")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	d := newDomain(t, "a.test", func(c *writdconf.Config) {
		if err := os.Symlink(disk, filepath.Join(c.DataDir, "audit")); err != nil {
			t.Fatal(err)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { d.health.Run(ctx) })
	defer running.Wait()
	defer cancel()
	client := healthv1.NewHealthClient(d.admin)
	told := watchHealth(t, client)
	told(healthv1.HealthCheckResponse_SERVING)
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("the disk is larger than it was made")
	}
	token := func() error {
		_, err := agentv1.NewAgentClient(d.admin).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 600})
		return err
	}
	err := token()
	for ; err == nil; err = token() {
	}
	if !strings.Contains(err.Error(), "this cannot be put on record now, so it was not done: ") || !strings.Contains(err.Error(), "no room on the disk of ") {
		t.Errorf("an administrator is told: %v", err)
	}
	told(healthv1.HealthCheckResponse_NOT_SERVING)
	if r, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || r.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("Check: %v, %v", r, err)
	}
	rec := httptest.NewRecorder()
	d.healthHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), "no room on the disk of "+filepath.Join(d.cfg.DataDir, "audit")) {
		t.Errorf("/readyz: %d %s", rec.Code, rec.Body)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	told(healthv1.HealthCheckResponse_SERVING)
	if err := token(); err != nil {
		t.Error(err)
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
