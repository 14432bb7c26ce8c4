package agent

import (
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/writ-dev/writ/identity/attest"
	"github.com/writ-dev/writ/identity/attest/cgroup"
	"github.com/writ-dev/writ/identity/attest/containerd"
	"github.com/writ-dev/writ/identity/attest/docker"
	"github.com/writ-dev/writ/identity/attest/k8s"
	"github.com/writ-dev/writ/identity/attest/systemd"
)

// WorkloadAttestors are the methods that are on.
type WorkloadAttestors struct {
	// Units of systemd.
	Systemd *Systemd `yaml:"systemd"`
	// Containers of a Docker engine.
	Docker *Docker `yaml:"docker"`
	// Containers of containerd outside of Kubernetes.
	Containerd *Containerd `yaml:"containerd"`
	// Pods of Kubernetes.
	K8s *K8s `yaml:"k8s"`
}

// Systemd attests by units.
type Systemd struct {
	// Address of the D-Bus that systemd is on; the system bus when left out.
	Bus string `yaml:"bus"`
}

// Docker attests by containers.
type Docker struct {
	// Unix socket of the engine; /var/run/docker.sock when left out.
	Socket string `yaml:"socket"`
}

// Containerd attests by containers.
type Containerd struct {
	// Unix socket; /run/containerd/containerd.sock when left out.
	Socket string `yaml:"socket"`
	// Namespaces of containerd whose containers count; where systemd manages the
	// control groups the first that knows a container. default when left out.
	Namespaces []string `yaml:"namespaces"`
}

// K8s attests by pods.
type K8s struct {
	// The kubelet, or with node_name the API server, https://host:port;
	// https://127.0.0.1:10250 when left out.
	URL string `yaml:"url"`
	// Name of this node. With it the API server is asked.
	NodeName string `yaml:"node_name"`
	// File with the authorities (PEM) of the server; those of the pod's service
	// account when left out.
	CAFile string `yaml:"ca_file"`
	// Do not verify a kubelet on a loopback address.
	InsecureKubelet bool `yaml:"insecure_kubelet"`
	// File with the bearer token; that of the pod's service account when left
	// out.
	TokenFile string `yaml:"token_file"`
}

// New makes the methods that are on.
func (c *WorkloadAttestors) New() ([]attest.Workload, error) {
	var methods []attest.Workload
	if c.Systemd != nil {
		methods = append(methods, systemd.New(c.Systemd.Bus, cgroup.Proc))
	}
	if c.Docker != nil {
		methods = append(methods, docker.New(c.Docker.Socket, cgroup.Proc))
	}
	if c.Containerd != nil {
		methods = append(methods, containerd.New(c.Containerd.Socket, c.Containerd.Namespaces, cgroup.Proc))
	}
	if c.K8s != nil {
		m, err := k8s.New(k8s.Config(*c.K8s), cgroup.Proc)
		if err != nil {
			return nil, fmt.Errorf("workload_attestors.k8s: %w", err)
		}
		methods = append(methods, m)
	}
	return methods, nil
}

func (c *WorkloadAttestors) validate(fail func(key, format string, args ...any)) {
	absolute := func(key, path string) {
		if path != "" && !filepath.IsAbs(path) {
			fail("workload_attestors."+key, "want an absolute path, got %q", path)
		}
	}
	if c.Docker != nil {
		absolute("docker.socket", c.Docker.Socket)
	}
	if c.Containerd != nil {
		absolute("containerd.socket", c.Containerd.Socket)
	}
	if c.K8s != nil && c.K8s.URL != "" {
		if u, err := url.Parse(c.K8s.URL); err != nil || u.Scheme != "https" || u.Host == "" {
			fail("workload_attestors.k8s.url", "want https://host:port, got %q", c.K8s.URL)
		}
	}
	if c.K8s != nil && c.K8s.InsecureKubelet && c.K8s.NodeName != "" {
		fail("workload_attestors.k8s.insecure_kubelet", "contradicts node_name, with which the API server is asked: leave one out")
	}
}
