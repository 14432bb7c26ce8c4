// Package containerd attests workloads in containers of containerd (nerdctl,
// ctr): the kernel says in which container a process is, and containerd what
// that container is. Pods of Kubernetes have the method k8s.
//
// Selectors: containerd:namespace:<name>, containerd:image:<reference>,
// containerd:label:<key>:<value>. SPIRE has no such method.
package containerd

import (
	"context"
	"fmt"
	"maps"
	"slices"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/attest/cgroup"
)

// Type is the first part of every selector of this package.
const Type = "containerd"

// DefaultSocket is where containerd listens.
const DefaultSocket = "/run/containerd/containerd.sock"

// namespaceKey tells containerd which of its namespaces a call is about.
const namespaceKey = "containerd-namespace"

// moby is the namespace in which Docker keeps what it runs by containerd.
const moby = "moby"

// Attestor asks one containerd.
type Attestor struct {
	proc, socket string
	namespaces   []string
}

// New returns an Attestor for the Unix socket. It looks into the namespaces; where
// systemd manages the control groups, which then do not tell, the first that knows
// a container counts. proc is cgroup.Proc but in tests.
func New(socket string, namespaces []string, proc string) *Attestor {
	if socket == "" {
		socket = DefaultSocket
	}
	if len(namespaces) == 0 {
		namespaces = []string{"default"}
	}
	return &Attestor{proc: proc, socket: socket, namespaces: namespaces}
}

// Type implements attest.Workload.
func (*Attestor) Type() string { return Type }

// Kinds implements attest.Workload.
func (*Attestor) Kinds() []string {
	return []string{Type + ":namespace", Type + ":image", Type + ":label"}
}

// Attest implements attest.Workload.
func (a *Attestor) Attest(ctx context.Context, pid int) ([]string, error) {
	groups, err := cgroup.Of(a.proc, pid)
	if err != nil {
		return nil, err
	}
	container, err := groups.Container(a.namespaces...)
	if err != nil {
		return nil, err
	}
	namespaces := a.namespacesOf(container)
	if len(namespaces) == 0 {
		return nil, cgroup.ErrNone
	}
	// Each time a new connection: one that is kept waits, after containerd was away,
	// for up to two minutes before it tries again.
	conn, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(),
		grpc.WithReadBufferSize(0), grpc.WithWriteBufferSize(0))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := containers.NewContainersClient(conn)
	for _, namespace := range namespaces {
		got, err := client.Get(metadata.AppendToOutgoingContext(ctx, namespaceKey, namespace), &containers.GetContainerRequest{ID: container.ID})
		switch {
		case status.Code(err) == codes.NotFound:
			continue
		case err != nil:
			return nil, fmt.Errorf("ask containerd for %s: %w", container.ID[:12], err)
		case got.GetContainer().GetID() != container.ID:
			return nil, fmt.Errorf("containerd answers for container %.64q, asked for %s", got.GetContainer().GetID(), container.ID[:12])
		}
		return selectors(namespace, got.GetContainer()), nil
	}
	return nil, fmt.Errorf("containerd knows container %s in none of the namespaces %q", container.ID[:12], namespaces)
}

// namespacesOf are those that a container may be in. Without systemd its control
// group is named after the one, and no other may answer for it.
func (a *Attestor) namespacesOf(c cgroup.Container) []string {
	switch {
	case c.Name == "nerdctl":
		return a.namespaces
	case slices.Contains(a.namespaces, c.Name):
		return []string{c.Name}
	case c.Name == "docker" && slices.Contains(a.namespaces, moby):
		return []string{moby}
	}
	return nil
}

func selectors(namespace string, c *containers.Container) []string {
	all := []string{Type + ":namespace:" + namespace}
	if c.GetImage() != "" {
		all = append(all, Type+":image:"+c.GetImage())
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetLabels())) {
		all = append(all, Type+":label:"+key+":"+c.GetLabels()[key])
	}
	return all
}
