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

// fakeContainerd answers what a real containerd does not when it is asked to: with
// errors, and of other containers. test/interop has the real one.
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
	return New(socket, namespaces, proc)
}

func TestSelectors(t *testing.T) {
	got := selectors("prod", &containers.Container{ID: attesttest.ID, Image: "registry/app:1", Labels: map[string]string{"b": "2", "a": "1:x"}})
	want := []string{"containerd:namespace:prod", "containerd:image:registry/app:1", "containerd:label:a:1:x", "containerd:label:b:2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
}

func TestNamespacesOf(t *testing.T) {
	a := New("", []string{"default", "prod", "moby"}, cgroup.Proc)
	for name, want := range map[string][]string{
		"default": {"default"}, "prod": {"prod"}, "nerdctl": {"default", "prod", "moby"}, "docker": {"moby"}, "libpod": nil, "": nil,
	} {
		if diff := cmp.Diff(want, a.namespacesOf(cgroup.Container{ID: attesttest.ID, Name: name})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got := New("", nil, cgroup.Proc).namespacesOf(cgroup.Container{Name: "docker"}); got != nil {
		t.Errorf("a container of Docker's is looked for in %q", got)
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
	for _, group := range []string{attesttest.Pod, attesttest.Docker} {
		proc, pid = attesttest.Proc(t, group)
		if got, err := attestor(t, &fakeContainerd{}, proc).Attest(t.Context(), pid); got != nil || !errors.Is(err, cgroup.ErrNone) {
			t.Errorf("%s: %v, %v", group, got, err)
		}
	}
}
