package containerd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/attest/attesttest"
	"github.com/writ-dev/writ/identity/attest/cgroup"
)

// fakeContainerd keeps containers by namespace, as containerd does, and runs
// none: a runtime needs more of a machine than a test has.
type fakeContainerd struct {
	containers.UnimplementedContainersServer
	known map[string]*containers.Container // by namespace
	err   error
}

func (f *fakeContainerd) Get(ctx context.Context, req *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	namespace := md.Get(namespaceKey)
	if len(namespace) != 1 {
		return nil, status.Error(codes.FailedPrecondition, "namespace is required")
	}
	if f.err != nil {
		return nil, f.err
	}
	if c := f.known[namespace[0]]; c != nil {
		return &containers.GetContainerResponse{Container: c}, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q in namespace %q: not found", req.ID, namespace[0])
}

func attestor(t *testing.T, f *fakeContainerd, proc string, namespaces ...string) *Attestor {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	containers.RegisterContainersServer(server, f)
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(ln) }()
	t.Cleanup(func() { server.Stop(); <-done })
	a, err := New(socket, namespaces, proc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestAttest(t *testing.T) {
	proc, pid := attesttest.Proc(t, attesttest.Containerd)
	f := &fakeContainerd{known: map[string]*containers.Container{"prod": {ID: attesttest.ID, Image: "registry/app:1", Labels: map[string]string{"b": "2", "a": "1:x"}}}}
	got, err := attestor(t, f, proc, "default", "prod").Attest(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"containerd:namespace:prod", "containerd:image:registry/app:1", "containerd:label:a:1:x", "containerd:label:b:2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	proc, pid := attesttest.Proc(t, attesttest.Containerd)
	for name, tc := range map[string]struct {
		fakeContainerd
		want string
	}{
		"unknown":           {fakeContainerd{}, "in none of the namespaces"},
		"another namespace": {fakeContainerd{known: map[string]*containers.Container{"other": {ID: attesttest.ID}}}, "in none of the namespaces"},
		"another container": {fakeContainerd{known: map[string]*containers.Container{"default": {ID: "x"}}}, "answers for container"},
		"error":             {fakeContainerd{err: status.Error(codes.Internal, "disk")}, "disk"},
	} {
		if got, err := attestor(t, &tc.fakeContainerd, proc).Attest(t.Context(), pid); got != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
	proc, pid = attesttest.Proc(t, attesttest.Pod)
	if got, err := attestor(t, &fakeContainerd{}, proc).Attest(t.Context(), pid); got != nil || !errors.Is(err, cgroup.ErrNone) {
		t.Errorf("a pod: %v, %v", got, err)
	}
}
