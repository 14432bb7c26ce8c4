//go:build interop

package interop

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/test/programs"
)

// Each agent against each server, by a certificate of the machine. The last pair
// is all SPIRE, as in TestAgents.
func TestX509PoP(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	for _, tc := range []struct {
		agent, server string
		key           crypto.Signer
	}{
		{"spire-agent", "writd", rs},
		{"writ-agent", "spire-server", ec},
		{"writ-agent", "spire-server", rs},
		{"spire-agent", "writd", ec},
		{"writ-agent", "writd", rs},
		{"spire-agent", "spire-server", ec},
	} {
		t.Run(fmt.Sprintf("%s with %s, %T", tc.agent, tc.server, tc.key), func(t *testing.T) {
			t.Parallel()
			newMachine(t, tc.agent, tc.server, tc.key).test(t)
		})
	}
}

// machine is one server and one agent with a certificate.
type machine struct {
	server   *programs.Server
	conf     programs.Config // of the agent
	agent    *programs.Program
	agentID  string // path
	workload *workloadapi.Client
}

func newMachine(t *testing.T, agent, server string, key crypto.Signer) *machine {
	ctx := bounded(t, time.Minute)
	dir := shortDir(t)
	ports, err := programs.FreePorts(2)
	check(t, err)
	pki := testpki.NewMachines(t)
	leaf := pki.Machine(t, "node-one", key.Public())
	ca, cert := testpki.WritePEM(t, dir, "ca.pem", nil, pki.Cert), testpki.WritePEM(t, dir, "node.pem", nil, leaf)
	keyFile := testpki.WritePEM(t, dir, "node.key", key)
	conf := programs.ServerConfig{
		Path: program(t, server), Dir: filepath.Join(dir, "s"), TrustDomain: domain, IssuerPort: ports[0], ControlPort: ports[1],
		// Agents' SVIDs are short, so that a test sees them attest again.
		More:        fmt.Sprintf("svid_ttl: 20s\nattestors: {x509pop: {ca_bundle: %q}}\n", ca),
		MoreServer:  `agent_ttl = "20s"`,
		MorePlugins: fmt.Sprintf(`NodeAttestor "x509pop" { plugin_data { ca_bundle_path = %q } }`, ca),
	}
	m := &machine{agentID: fmt.Sprintf("/spire/agent/x509pop/%x", sha1.Sum(leaf.Raw))}
	start := programs.StartWritd
	if server == "spire-server" {
		start = programs.StartSPIRE
	}
	m.server, err = start(ctx, conf)
	check(t, err)
	t.Cleanup(func() {
		_ = m.server.Stop()
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", m.server.Tail())
		}
	})
	bundle, err := m.server.Bundle(ctx)
	check(t, err)
	trust := testpki.WritePEM(t, dir, "bundle.pem", nil, bundle.X509Authorities()...)
	socket, file := filepath.Join(dir, "run", "api.sock"), filepath.Join(dir, "agent.conf")
	m.conf = programs.Config{Path: program(t, agent), Log: filepath.Join(dir, "log"), Args: []string{"--config", file}}
	content := fmt.Sprintf("trust_domain: %s\nserver_address: %s\ntrust_bundle: %s\ndata_dir: %s/data\nsocket: %s\nsync_interval: 1s\nattestor: {x509pop: {cert: %s, key: %s}}\n",
		domain, m.server.Addr, trust, dir, socket, cert, keyFile)
	if agent == "spire-agent" {
		m.conf.Args = []string{"run", "-config", file}
		content = fmt.Sprintf(spireAgentPoPConf, dir, ports[0], socket, domain, trust, keyFile, cert)
	}
	check(t, os.WriteFile(file, []byte(content), 0o600))
	m.run(t, ctx, socket)
	t.Cleanup(func() {
		_ = m.agent.Stop(20 * time.Second)
		if t.Failed() {
			t.Logf("the end of the agent's log:\n%s", m.agent.Tail())
		}
	})
	m.workload, err = workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
	check(t, err)
	t.Cleanup(func() { m.workload.Close() })
	return m
}

const spireAgentPoPConf = `agent {
	data_dir = "%[1]s/data"
	log_level = "INFO"
	server_address = "127.0.0.1"
	server_port = "%[2]d"
	socket_path = "%[3]s"
	trust_bundle_path = "%[5]s"
	trust_domain = "%[4]s"
}
plugins {
	NodeAttestor "x509pop" { plugin_data { private_key_path = "%[6]s" certificate_path = "%[7]s" } }
	KeyManager "memory" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`

// run starts the agent, which lives or ends by itself.
func (m *machine) run(t *testing.T, ctx context.Context, socket string) {
	t.Helper()
	var err error
	m.agent, err = programs.Start(m.conf)
	check(t, err)
	if socket != "" {
		check(t, m.agent.Reachable(ctx, "unix", socket))
	}
}

// onFile is the agent as the server knows it, or nil.
func (m *machine) onFile(ctx context.Context) (*types.Agent, error) {
	got, err := agentv1.NewAgentClient(m.server.Admin()).GetAgent(ctx, &agentv1.GetAgentRequest{Id: m.id()})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	return got, err
}

func (m *machine) id() *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: domain, Path: m.agentID} }

// until waits for what the server knows of the agent. An agent that ended is
// started again, as a service manager does.
func (m *machine) until(t *testing.T, what string, ok func(*types.Agent) bool) *types.Agent {
	t.Helper()
	ctx := bounded(t, 90*time.Second)
	var got *types.Agent
	err := m.server.Until(ctx, func() error {
		select {
		case <-m.agent.Exited():
			m.run(t, ctx, "")
		default:
		}
		var err error
		if got, err = m.onFile(ctx); err == nil && !ok(got) {
			err = fmt.Errorf("not yet: %v", got)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return got
}

func (m *machine) test(t *testing.T) {
	ctx := bounded(t, 5*time.Minute)
	agents := agentv1.NewAgentClient(m.server.Admin())
	first := m.until(t, "attested", func(a *types.Agent) bool { return a != nil })
	var selectors []string
	for _, s := range first.Selectors {
		selectors = append(selectors, s.Type+":"+s.Value)
	}
	if !first.CanReattest || first.AttestationType != "x509pop" || !slices.Contains(selectors, "x509pop:subject:cn:node-one") || !slices.Contains(selectors, "x509pop:serialnumber:0abc") {
		t.Errorf("the server knows %v", first)
	}
	// The node by its selectors, the workload below it.
	alias := spiffeid.RequireFromPath(m.server.TrustDomain, "/node/one")
	nodes, err := m.server.Entry(spiffeid.RequireFromPath(m.server.TrustDomain, "/spire/server"), "/node/one", "x509pop:subject:cn:node-one")
	check(t, err)
	web, err := m.server.Entry(alias, "/svc/web", fmt.Sprintf("unix:uid:%d", os.Getuid()))
	check(t, err)
	_, err = m.server.CreateEntries(ctx, nodes, web)
	check(t, err)
	fetched := func() error {
		svid, err := m.workload.FetchX509SVID(ctx)
		if err == nil && svid.ID.Path() != "/svc/web" {
			err = fmt.Errorf("it is %s", svid.ID)
		}
		return err
	}
	check(t, m.agent.Until(ctx, fetched))
	m.until(t, "attests again where it would have renewed", func(a *types.Agent) bool {
		return a != nil && a.X509SvidSerialNumber != first.X509SvidSerialNumber
	})
	check(t, fetched())

	_, err = agents.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: m.id()})
	check(t, err)
	m.until(t, "evicted, it attests again", func(a *types.Agent) bool { return a != nil })
	check(t, m.server.Until(ctx, fetched))

	_, err = agents.BanAgent(ctx, &agentv1.BanAgentRequest{Id: m.id()})
	check(t, err)
	select {
	case <-m.agent.Exited():
	case <-ctx.Done():
		t.Fatal("a banned agent goes on")
	}
	m.run(t, ctx, "")
	select {
	case <-m.agent.Exited():
	case <-ctx.Done():
		t.Fatal("a banned agent comes back")
	}
	if got, err := m.onFile(ctx); err != nil || got == nil || !got.Banned {
		t.Errorf("after it tried, the server knows %v, %v", got, err)
	}
}
