package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/internal/bufnet"
	"github.com/writ-dev/writ/internal/supervise"
	"github.com/writ-dev/writ/policy/policyv1"
)

// newUpRun is a run of testMesh with no programs yet, and what it shows.
func newUpRun(t *testing.T) (u *upRun, shown func() string) {
	t.Helper()
	var out syncBuffer
	u = &upRun{dir: upDir(t.TempDir()), mesh: parseMesh(t), view: newView(&out), logs: map[string]*supervise.Log{}}
	var err error
	if u.group, err = supervise.NewGroup(filepath.Join(t.TempDir(), "notify")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.stop()
		u.close()
	})
	return u, out.String
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A program that dies is shown with what it said last.
func TestDiedSaysWhy(t *testing.T) {
	u, shown := newUpRun(t)
	p, err := u.supervise(supervise.Config{Name: "web/sidecar", Path: "/bin/sh", Args: []string{"-c", "echo begins; echo 'writ-sidecar: sidecar.yaml:3:5: policy.keys: none' >&2; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	err = u.waitReady(t.Context(), p)
	if err == nil || !strings.Contains(err.Error(), "web/sidecar: exit status 3; it said:\n  begins\n  writ-sidecar: sidecar.yaml:3:5") {
		t.Errorf("in the end: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(shown()), "\n")
	want := regexp.MustCompile(`web/sidecar died \(exit status 3: writ-sidecar: sidecar.yaml:3:5: policy.keys: none\): starting it again`)
	if len(lines) != attempts-1 || !want.MatchString(lines[0]) {
		t.Errorf("shown:\n%s", shown())
	}
}

// statusOf is a control plane that tells of its components.
type statusOf struct {
	policyv1.UnimplementedStatusServer
	components []*policyv1.Component
}

func (s *statusOf) Get(context.Context, *policyv1.StatusRequest) (*policyv1.StatusResponse, error) {
	return &policyv1.StatusResponse{Components: s.components}, nil
}

// A sidecar that refuses its first policy ends the start with its reason, although it
// runs, and would not be given up for half a minute.
func TestFirstPolicyRefusedBySidecar(t *testing.T) {
	u, shown := newUpRun(t)
	const why = "policy refused: rules/web.rego:7:2: compile: unknown builtin"
	control, ln := grpc.NewServer(), bufnet.Listen(1<<16)
	policyv1.RegisterStatusServer(control, &statusOf{components: []*policyv1.Component{
		{Kind: "sidecar", SpiffeId: u.mesh.Services[0].SPIFFEID, Connected: true, Refused: why},
		{Kind: "sidecar", SpiffeId: u.mesh.Services[1].SPIFFEID, Connected: false, Refused: "of another time"},
	}})
	var serving sync.WaitGroup
	serving.Go(func() { _ = control.Serve(ln) })
	t.Cleanup(func() {
		control.Stop()
		serving.Wait()
	})
	var err error
	u.conn, err = grpc.NewClient("passthrough:writd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	u.revision = &policyv1.Revision{Epoch: 1, Number: 1}
	u.mesh.Services = u.mesh.Services[:2]
	p, err := u.supervise(supervise.Config{Name: "web/sidecar", Path: "/bin/sh", Args: []string{"-c", "exec sleep 3600"}})
	if err != nil {
		t.Fatal(err)
	}
	u.sidecars = []*supervise.Process{p}
	subscribed := make(chan struct{})
	close(subscribed)
	if err := u.allReady(t.Context(), subscribed); err == nil || err.Error() != "the sidecar of "+u.mesh.Services[0].Name+" refused the policy: "+why {
		t.Errorf("got %v", err)
	}
	if strings.Contains(shown(), "died") {
		t.Errorf("shown:\n%s", shown())
	}
}
