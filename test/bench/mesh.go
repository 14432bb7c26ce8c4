package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-dev/writ/test/programs"
)

// The policy that each request of the writ pair is decided by, and the mesh
// that it runs in.
const (
	benchPolicy = `package services["app"]

allow contains "client-reads" if {
	input.source.id == "spiffe://bench.test/svc/client"
	input.request.method == "GET"
}
`
	benchMesh = `trust_domain: bench.test
policy: policy
services:
  - name: client
    upstreams:
      - service: app
        port: %d
  - name: app
    address: %s
    protocol: http
`
)

// mesh is policyctl up: the whole of Writ around one server, with a decision
// and an event on record for each request.
type mesh struct {
	// addr is where the client finds the server.
	addr string
	up   *programs.Program
}

func (b *bench) mesh(ctx context.Context, app string) (*mesh, error) {
	if err := b.built("policyctl", "writd", "writ-agent", "writ-sidecar"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.work, "mesh")
	if err != nil {
		return nil, err
	}
	ports, err := programs.FreePorts(1)
	if err != nil {
		return nil, err
	}
	m := &mesh{addr: loopback(ports[0])}
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o700); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{
		"policy/app.rego": benchPolicy,
		"mesh.yaml":       fmt.Sprintf(benchMesh, ports[0], app),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	m.up, err = programs.Start(programs.Config{
		Path: filepath.Join(b.bin, "policyctl"),
		Args: []string{"up", "-f", filepath.Join(dir, "mesh.yaml"), "--data-dir", filepath.Join(dir, "data")},
		Log:  filepath.Join(dir, "log"),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := m.up.Until(ctx, func() error { return get(ctx, m.addr) }); err != nil {
		m.up.Kill()
		return nil, err
	}
	return m, nil
}

// get asks once and wants 200.
func get(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", addr, res.Status)
	}
	return nil
}

// processes gives the ids of the processes that run program.
func (m *mesh) processes(program string) ([]int, error) {
	all, err := programs.Descendants(m.up.PID())
	if err != nil {
		return nil, err
	}
	var pids []int
	for pid, exe := range all {
		if filepath.Base(exe) == program {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("no %s runs below policyctl up", program)
	}
	slices.Sort(pids)
	return pids, nil
}

func (m *mesh) stop() error { return m.up.Stop(15 * time.Second) }
