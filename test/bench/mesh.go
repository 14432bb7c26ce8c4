package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/test/programs"
)

// The policy that each request of the writ pair is decided by, and its
// catalogue.
const (
	meshPolicy = `package services["app"]

allow contains "client-reads" if {
	input.source.id == "spiffe://bench.test/svc/client"
	input.request.method == "GET"
}
`
	meshCatalogue = `{"writ": {"services": {
	"client": {"spiffe_ids": ["spiffe://bench.test/svc/client"], "mode": "enforce"},
	"app": {"spiffe_ids": ["spiffe://bench.test/svc/app"], "mode": "enforce"}
}}}`

	agentConf = `trust_domain: bench.test
server_address: 127.0.0.1:%d
trust_bundle: %s
join_token_file: %s
data_dir: %s
socket: %s
`
	// What both sidecars share; everything else is the default.
	sidecarConf = `trust_domain: bench.test
service: %s
workload_api: unix://%s
control: {address: "127.0.0.1:%d"}
policy: {keys: [%s], dir: %s}
audit: {dir: %s}
`
	inboundConfig  = "inbound: {listen: \"%s\", app: \"%s\", protocol: http}\n"
	outboundConfig = "upstreams: [{name: app, listen: \"%s\", address: \"%s\", spiffe_id: \"spiffe://bench.test/svc/app\", protocol: http}]\n"
)

// mesh is all of Writ around one server, deployed as on a machine of its own:
// a control plane, an agent and two sidecars, with a decision and an event on
// record for each request.
type mesh struct {
	// addr is where the client finds the server.
	addr string

	b        *bench
	dir      string
	conf     programs.ServerConfig
	writd    *programs.Server
	agent    *programs.Program
	sidecars []*programs.Program
}

func (b *bench) mesh(ctx context.Context, app string) (_ *mesh, err error) {
	if err := b.built("policyctl", "writd", "writ-agent", "writ-sidecar"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	m := &mesh{b: b}
	if m.dir, err = os.MkdirTemp(b.work, "m"); err != nil {
		return nil, err
	}
	ports, err := programs.FreePorts(4)
	if err != nil {
		return nil, err
	}
	m.conf = programs.ServerConfig{
		Path: filepath.Join(b.bin, "writd"), Dir: filepath.Join(m.dir, "writd"), TrustDomain: "bench.test",
		IssuerPort: ports[0], ControlPort: ports[1],
		// The policy is pushed over the admin socket, in the same run.
		More: "allow_unsigned_policy: true\n",
	}
	m.addr = loopback(ports[2])
	defer func() {
		if err != nil {
			_ = m.stop()
		}
	}()
	if m.writd, err = programs.StartWritd(ctx, m.conf); err != nil {
		return nil, err
	}
	if err := m.push(ctx); err != nil {
		return nil, err
	}
	if err := m.join(ctx); err != nil {
		return nil, err
	}
	inbound := loopback(ports[3])
	for _, s := range []struct{ service, transports string }{
		{"app", fmt.Sprintf(inboundConfig, inbound, app)},
		{"client", fmt.Sprintf(outboundConfig, m.addr, inbound)},
	} {
		if err := m.sidecar(ctx, s.service, s.transports); err != nil {
			return nil, err
		}
	}
	return m, get(ctx, m.addr)
}

// push puts the policy in force.
func (m *mesh) push(ctx context.Context) error {
	dir := filepath.Join(m.dir, "policy")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, content := range map[string]string{"app.rego": meshPolicy, "data.json": meshCatalogue} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	_, err := m.policyctl(ctx, "policy", "push", dir)
	return err
}

func (m *mesh) policyctl(ctx context.Context, args ...string) ([]byte, error) {
	args = append(args, "--server", m.conf.AdminSocket())
	out, err := exec.CommandContext(ctx, filepath.Join(m.b.bin, "policyctl"), args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("policyctl %v: %w\n%s", args, err, out)
	}
	return out, nil
}

// join registers the services, each by the path of its own link to the
// sidecar, and starts the agent.
func (m *mesh) join(ctx context.Context) error {
	node := spiffeid.RequireFromSegments(m.writd.TrustDomain, "node", "bench")
	var entries []*types.Entry
	for _, service := range []string{"client", "app"} {
		if err := os.Mkdir(filepath.Join(m.dir, service), 0o700); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(m.b.bin, "writ-sidecar"), m.program(service)); err != nil {
			return err
		}
		e, err := m.writd.Entry(node, "/svc/"+service, "unix:path:"+m.program(service))
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	if _, err := m.writd.CreateEntries(ctx, entries...); err != nil {
		return err
	}
	token, err := m.writd.JoinToken(ctx, node)
	if err != nil {
		return err
	}
	tokenFile := filepath.Join(m.dir, "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		return err
	}
	m.agent, err = m.start(ctx, "agent", filepath.Join(m.b.bin, "writ-agent"), fmt.Sprintf(agentConf, m.conf.IssuerPort,
		filepath.Join(m.conf.DataDir(), "public", "bundle.pem"), tokenFile, filepath.Join(m.dir, "agent"), m.socket()))
	return err
}

func (m *mesh) program(service string) string {
	return filepath.Join(m.dir, service, "writ-sidecar")
}

func (m *mesh) socket() string { return filepath.Join(m.dir, "run", "agent.sock") }

func (m *mesh) sidecar(ctx context.Context, service, transports string) error {
	dir := filepath.Join(m.dir, service)
	conf := fmt.Sprintf(sidecarConf, service, m.socket(), m.conf.ControlPort,
		filepath.Join(m.conf.DataDir(), "public", "decision.pem"), filepath.Join(dir, "policy"), filepath.Join(dir, "spool"))
	p, err := m.start(ctx, service, m.program(service), conf+transports)
	if p != nil {
		m.sidecars = append(m.sidecars, p)
	}
	return err
}

// start starts one program with its configuration and waits until it is ready.
func (m *mesh) start(ctx context.Context, name, path, conf string) (*programs.Program, error) {
	file := filepath.Join(m.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	p, err := programs.Start(programs.Config{Path: path, Args: []string{"--config", file}, Log: filepath.Join(m.dir, name+".log"), Notify: true})
	if err != nil {
		return nil, err
	}
	return p, p.Ready(ctx)
}

// settle measures how long it takes, from now, until the collector has stored
// the events of so many requests: what the record was behind.
func (m *mesh) settle(ctx context.Context, s *samples, requests uint64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	start := time.Now()
	err := m.writd.Until(ctx, func() error {
		status, err := auditv1.NewAdminClient(m.writd.Admin()).Status(ctx, &auditv1.AuditStatusRequest{})
		if err != nil {
			return err
		}
		for _, stream := range status.GetStreams() {
			if stream.GetStream().GetSpiffeId() == "spiffe://bench.test/svc/app" && stream.GetStored() >= requests {
				return nil
			}
		}
		return fmt.Errorf("the collector has not stored %d events", requests)
	})
	if err == nil {
		s.add("record behind after full load", ours, "ms", time.Since(start).Seconds()*1e3)
	}
	return err
}

// why adds to err what is on record of requests that were not allowed.
func (m *mesh) why(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	out, qerr := m.policyctl(ctx, "audit", "query", "--outcome", "deny,error,undefined,refused", "--limit", "5")
	return fmt.Errorf("%w\non record:\n%s", errors.Join(err, qerr), out)
}

// stop stops what was started, in the order in which each can still hand its
// record on.
func (m *mesh) stop() error {
	var errs []error
	for _, p := range append(slices.Clone(m.sidecars), m.agent) {
		if p != nil {
			errs = append(errs, p.Stop(20*time.Second))
		}
	}
	if m.writd != nil {
		errs = append(errs, m.writd.Stop())
	}
	return errors.Join(errs...)
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

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o700)
}
