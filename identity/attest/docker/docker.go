// Package docker attests workloads in containers of a Docker engine: the kernel
// says in which container a process is, and the engine what that container is.
//
// Selectors are SPIRE's: docker:label:<key>:<value>, docker:env:<name>=<value>,
// docker:image_id:<image as it was asked for>; and docker:image_digest:<digest>,
// the content of the image, which SPIRE does not have.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"

	"github.com/writ-dev/writ/identity/attest/cgroup"
)

// Type is the first part of every selector of this package.
const Type = "docker"

// DefaultSocket is where the engine listens.
const DefaultSocket = "/var/run/docker.sock"

// maxReply bounds what is read of an engine's answer, in bytes.
const maxReply = 4 << 20

// Attestor asks one engine.
type Attestor struct {
	proc   string
	client *http.Client
}

// New returns an Attestor for the engine at the Unix socket. proc is cgroup.Proc
// but in tests.
func New(socket, proc string) *Attestor {
	if socket == "" {
		socket = DefaultSocket
	}
	return &Attestor{proc: proc, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		MaxIdleConns: 2,
	}}}
}

// Type implements attest.Workload.
func (*Attestor) Type() string { return Type }

// Kinds implements attest.Workload.
func (*Attestor) Kinds() []string {
	return []string{Type + ":label", Type + ":env", Type + ":image_id", Type + ":image_digest"}
}

// Attest implements attest.Workload.
func (a *Attestor) Attest(ctx context.Context, pid int) ([]string, error) {
	groups, err := cgroup.Of(a.proc, pid)
	if err != nil {
		return nil, err
	}
	container, err := groups.Container()
	if err != nil {
		return nil, err
	}
	// Kubernetes has selectors of its own, and so has containerd.
	if container.Name != "docker" && container.Name != "libpod" {
		return nil, cgroup.ErrNone
	}
	got, err := a.inspect(ctx, container.ID)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", container.ID[:12], err)
	}
	return got.selectors(), nil
}

// inspected is what is read of the Engine API's answer.
type inspected struct {
	ID     string `json:"Id"`
	Image  string // the content that it runs, by digest
	Config struct {
		Image  string // as it was asked for
		Labels map[string]string
		Env    []string
	}
}

func (a *Attestor) inspect(ctx context.Context, id string) (*inspected, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/"+id+"/json", nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the Docker engine: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, errors.New("the Docker engine does not know it")
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the Docker engine answers %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return nil, fmt.Errorf("ask the Docker engine: %w", err)
	}
	return parse(body, id)
}

func parse(body []byte, id string) (*inspected, error) {
	var got inspected
	if len(body) > maxReply {
		return nil, fmt.Errorf("the Docker engine answers more than %d bytes", maxReply)
	}
	if err := json.Unmarshal(body, &got); err != nil {
		return nil, fmt.Errorf("answer of the Docker engine: %w", err)
	}
	if got.ID != id {
		return nil, fmt.Errorf("the Docker engine answers for container %.64q", got.ID)
	}
	return &got, nil
}

func (c *inspected) selectors() []string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(c.Config.Labels)) {
		all = append(all, Type+":label:"+key+":"+c.Config.Labels[key])
	}
	for _, e := range c.Config.Env {
		all = append(all, Type+":env:"+e)
	}
	if c.Config.Image != "" {
		all = append(all, Type+":image_id:"+c.Config.Image)
	}
	if c.Image != "" {
		all = append(all, Type+":image_digest:"+c.Image)
	}
	return all
}
