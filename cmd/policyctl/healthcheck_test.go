package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/writ-dev/writ/internal/health"
	"github.com/writ-dev/writ/policy/policyv1"
)

// troubled is a control plane that tells why it does not serve.
type troubled struct {
	policyv1.UnimplementedStatusServer
}

func (troubled) Get(context.Context, *policyv1.StatusRequest) (*policyv1.StatusResponse, error) {
	return &policyv1.StatusResponse{Components: []*policyv1.Component{
		{Kind: "sidecar", Problems: []string{"not of this program"}},
		{Kind: "writd", Problems: []string{"audit: full", "registry: gone\x1b[2J"}},
	}}, nil
}

func TestHealthcheck(t *testing.T) {
	healthy := newRegistrar(t)
	if out := healthy.ok("healthcheck"); out != "writd is healthy\n" {
		t.Errorf("said %q", out)
	}
	sick := &registrar{t: t, dir: t.TempDir()}
	serveAdmin(t, sick.dir, func(s *grpc.Server) {
		healthv1.RegisterHealthServer(s, health.New(func() health.State { return health.State{Problem: errors.New("broken")} }))
		policyv1.RegisterStatusServer(s, troubled{})
	})
	mute := &registrar{t: t, dir: t.TempDir()}
	serveAdmin(t, mute.dir, func(s *grpc.Server) {})

	node := filepath.Join(t.TempDir(), "agent.sock")
	ln, err := net.Listen("unix", node)
	if err != nil {
		t.Fatal(err)
	}
	agent, entries := grpc.NewServer(), grpchealth.NewServer()
	healthv1.RegisterHealthServer(agent, entries)
	entries.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	var serving sync.WaitGroup
	serving.Go(func() { _ = agent.Serve(ln) })
	defer serving.Wait()
	defer agent.Stop()
	// One that takes connections and says nothing.
	deaf := filepath.Join(t.TempDir(), "deaf.sock")
	silent, err := net.Listen("unix", deaf)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	for name, tc := range map[string]struct {
		of   *registrar
		args []string
		want healthReport
	}{
		"healthy":      {healthy, nil, healthReport{Program: "writd", Healthy: true, Status: "SERVING", Problems: []string{}}},
		"by its name":  {healthy, []string{"writd"}, healthReport{Program: "writd", Healthy: true, Status: "SERVING", Problems: []string{}}},
		"sick":         {sick, nil, healthReport{Program: "writd", Status: "NOT_SERVING", Problems: []string{"audit: full", "registry: gone\ufffd[2J"}}},
		"no such":      {mute, nil, healthReport{Program: "writd", Problems: []string{"it does not serve grpc.health.v1"}}},
		"agent starts": {healthy, []string{"agent", "--socket", node}, healthReport{Program: "agent", Status: "NOT_SERVING", Problems: []string{"it does not know its entries yet, or its own SVID or all those of workloads have expired: the node is not attested, or the issuer does not answer; its log says which"}}},
		"deaf":         {healthy, []string{"agent", "--socket", deaf, "--timeout", "100ms"}, healthReport{Program: "agent", Problems: []string{"it does not answer in time"}}},
	} {
		code, out, stderr := tc.of.run(append([]string{"healthcheck", "--output", "json"}, tc.args...)...)
		var got healthReport
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Errorf("%s: %v: %q", name, err, out)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" || (code == 0) != tc.want.Healthy || code > 1 || stderr != "" {
			t.Errorf("%s: exit %d, %q (-want +got):\n%s", name, code, stderr, diff)
		}
	}
	entries.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	if out := healthy.ok("healthcheck", "agent", "--socket", node); out != "agent is healthy\n" {
		t.Errorf("said %q", out)
	}
	if code, out, _ := sick.run("healthcheck"); code != 1 || !strings.HasPrefix(out, "writd is not healthy: audit: full; registry: gone") {
		t.Errorf("exit %d, %q", code, out)
	}
	absent := &registrar{t: t, dir: filepath.Join(t.TempDir(), "absent")}
	if code, out, _ := absent.run("healthcheck"); code != 1 || !strings.Contains(out, "writd is not healthy: no control plane at ") {
		t.Errorf("exit %d, %q", code, out)
	}
	if code, out, _ := healthy.run("healthcheck", "agent", "--socket", filepath.Join(os.TempDir(), "no-such.sock")); code != 1 || !strings.Contains(out, "agent is not healthy: it does not answer: ") {
		t.Errorf("exit %d, %q", code, out)
	}
	if code, _, stderr := healthy.run("healthcheck", "--socket", node); code != 1 || !strings.Contains(stderr, "say healthcheck agent") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if code, _, stderr := healthy.run("healthcheck", "sidecar"); code != 1 || !strings.Contains(stderr, "invalid argument") {
		t.Errorf("exit %d, %q", code, stderr)
	}
}

// A token that could never be used is not asked for.
func TestTokenOfNoTime(t *testing.T) {
	var out, errs strings.Builder
	code := run(t.Context(), []string{"token", "create", "--ttl", "0s"}, strings.NewReader(""), &out, &errs)
	if code == 0 || !strings.Contains(errs.String(), "leave it out for 10m") {
		t.Errorf("exit code %d, %s%s", code, out.String(), errs.String())
	}
}
