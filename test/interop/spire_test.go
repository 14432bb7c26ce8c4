//go:build interop

package interop

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/test/programs"
)

const domain = "interop.test"

// ttl of the workload's X509-SVIDs: short, so that a test sees rotations.
const ttl = 20 * time.Second

// Each agent against each server. The last pair is all SPIRE: it shows that
// the test asks for nothing that stock software does not do.
func TestAgents(t *testing.T) {
	for _, pair := range []struct {
		agent, server string
	}{
		{"spire-agent", "writd"},
		{"writ-agent", "spire-server"},
		{"writ-agent", "writd"},
		{"spire-agent", "spire-server"},
	} {
		t.Run(pair.agent+" with "+pair.server, func(t *testing.T) {
			t.Parallel()
			newNode(t, pair.agent, pair.server).test(t)
		})
	}
}

// node is one server, one agent that joined it, and this process as workload.
type node struct {
	start  func(context.Context, programs.ServerConfig) (*programs.Server, error)
	conf   programs.ServerConfig
	server *programs.Server
	agent  *programs.Program
	socket string   // the agent's
	prefix []string // of the agent's command

	alias    spiffeid.ID
	selector string
	workload *workloadapi.Client
	entries  []string
}

// newNode starts a server and an agent; agentConf is added to the agent's file.
func newNode(t *testing.T, agent, server string, agentConf ...string) *node {
	return newNodeWith(t, agent, server, "", agentConf...)
}

// newNodeWith is newNode with more in writd's configuration.
func newNodeWith(t *testing.T, agent, server, serverConf string, agentConf ...string) *node {
	return newNodeBeside(t, nil, agent, server, serverConf, agentConf...)
}

// newNodeBeside is newNodeWith and an agent whose command begins with prefix.
func newNodeBeside(t *testing.T, prefix []string, agent, server, serverConf string, agentConf ...string) *node {
	ctx := bounded(t, time.Minute)
	dir := shortDir(t)
	ports, err := programs.FreePorts(2)
	check(t, err)
	n := &node{
		start: programs.StartWritd,
		conf: programs.ServerConfig{
			Path: program(t, server), Dir: filepath.Join(dir, "s"), TrustDomain: domain,
			IssuerPort: ports[0], ControlPort: ports[1], More: serverConf,
		},
		alias:    spiffeid.RequireFromString("spiffe://" + domain + "/node/one"),
		selector: fmt.Sprintf("unix:uid:%d", os.Getuid()),
		prefix:   prefix,
	}
	if server == "spire-server" {
		n.start = programs.StartSPIRE
	}
	n.server, err = n.start(ctx, n.conf)
	check(t, err)
	t.Cleanup(func() {
		if err := n.server.Stop(); err != nil {
			t.Errorf("stop %s: %v", server, err)
		}
	})
	n.socket = n.join(t, ctx, agent, filepath.Join(dir, "a"), agentConf...)
	n.workload, err = workloadapi.New(ctx, workloadapi.WithAddr("unix://"+n.socket))
	check(t, err)
	t.Cleanup(func() { n.workload.Close() })
	return n
}

// join starts the agent with a join token and gives its Workload API socket.
func (n *node) join(t *testing.T, ctx context.Context, agent, dir string, agentConf ...string) string {
	check(t, os.Mkdir(dir, 0o700))
	bundle, err := n.server.Bundle(ctx)
	check(t, err)
	var trust []byte
	for _, a := range bundle.X509Authorities() {
		trust = append(trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw})...)
	}
	check(t, os.WriteFile(filepath.Join(dir, "bundle.pem"), trust, 0o600))
	token, err := n.server.JoinToken(ctx, n.alias)
	check(t, err)

	c := programs.Config{Path: program(t, agent), Log: filepath.Join(dir, "log")}
	socket := filepath.Join(dir, "run", "api.sock")
	conf := filepath.Join(dir, "agent.conf")
	content := ""
	switch agent {
	case "spire-agent":
		c.Args = []string{"run", "-config", conf}
		content = fmt.Sprintf(spireAgentConf, dir, n.conf.IssuerPort, socket, domain, token)
	case "writ-agent":
		c.Args = []string{"--config", conf}
		c.Notify = true
		content = fmt.Sprintf(writAgentConf, dir, n.conf.IssuerPort, socket, domain)
		check(t, os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o600))
	}
	content += strings.Join(agentConf, "\n")
	check(t, os.WriteFile(conf, []byte(content), 0o600))
	if len(n.prefix) > 0 {
		c.Path, c.Args = n.prefix[0], slices.Concat(n.prefix[1:], []string{c.Path}, c.Args)
	}
	n.agent, err = programs.Start(c)
	check(t, err)
	t.Cleanup(func() {
		_ = n.agent.Stop(20 * time.Second)
		if t.Failed() {
			t.Logf("the end of the agent's log:\n%s", n.agent.Tail())
			t.Logf("the end of the server's log:\n%s", n.server.Tail())
		}
	})
	if c.Notify {
		check(t, n.agent.Ready(ctx))
	}
	check(t, n.agent.Reachable(ctx, "unix", socket))
	return socket
}

const spireAgentConf = `agent {
	data_dir = "%[1]s"
	log_level = "INFO"
	server_address = "127.0.0.1"
	server_port = "%[2]d"
	socket_path = "%[3]s"
	trust_bundle_path = "%[1]s/bundle.pem"
	trust_domain = "%[4]s"
	join_token = "%[5]s"
}
plugins {
	NodeAttestor "join_token" { plugin_data {} }
	KeyManager "memory" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`

const writAgentConf = `trust_domain: %[4]s
server_address: 127.0.0.1:%[2]d
trust_bundle: %[1]s/bundle.pem
join_token_file: %[1]s/token
data_dir: %[1]s/data
socket: %[3]s
sync_interval: 1s
`

// test follows one workload through the life of its entry.
func (n *node) test(t *testing.T) {
	t.Run("no entry, no identity", func(t *testing.T) {
		_, err := n.workload.FetchX509SVID(bounded(t, 30*time.Second))
		if got := status.Code(unwrapAll(err)); got != codes.PermissionDenied {
			t.Fatalf("got %v, want PermissionDenied", err)
		}
	})
	web := n.entry(t, "/svc/web")
	watch := n.watch(t)
	t.Run("X.509-SVID", func(t *testing.T) {
		got := watch.until(t, func(u *workloadapi.X509Context) bool { return slices.Equal(ids(u), []string{"/svc/web"}) })
		bundle, err := got.Bundles.GetX509BundleForTrustDomain(n.server.TrustDomain)
		check(t, err)
		if _, _, err := x509svid.Verify(got.DefaultSVID().Certificates, bundle); err != nil {
			t.Error(err)
		}
		if left := time.Until(got.DefaultSVID().Certificates[0].NotAfter); left > ttl {
			t.Errorf("the SVID lives %s longer, want at most %s", left, ttl)
		}
	})
	t.Run("JWT-SVID", func(t *testing.T) { n.jwt(t, "/svc/web") })
	t.Run("rotation", func(t *testing.T) {
		serials := map[string]bool{}
		watch.until(t, func(u *workloadapi.X509Context) bool {
			serials[serial(u)] = true
			return len(serials) == 3
		})
	})
	t.Run("restart of the server", func(t *testing.T) {
		ctx := bounded(t, time.Minute)
		check(t, n.server.Stop())
		var err error
		n.server, err = n.start(ctx, n.conf)
		check(t, err)
		late := n.entry(t, "/svc/late")
		u := watch.until(t, func(u *workloadapi.X509Context) bool { return slices.Equal(ids(u), []string{"/svc/late", "/svc/web"}) })
		before := serials(u)
		watch.until(t, func(u *workloadapi.X509Context) bool {
			return len(serials(u)) == 2 && !slices.ContainsFunc(serials(u), func(s string) bool { return slices.Contains(before, s) })
		})
		check(t, n.server.DeleteEntry(ctx, late))
		watch.until(t, func(u *workloadapi.X509Context) bool { return slices.Equal(ids(u), []string{"/svc/web"}) })
		n.jwt(t, "/svc/web")
	})
	t.Run("entry removed", func(t *testing.T) {
		check(t, n.server.DeleteEntry(bounded(t, 30*time.Second), web))
		watch.untilDenied(t)
	})
}

func (n *node) entry(t *testing.T, path string) string {
	t.Helper()
	e, err := n.server.Entry(n.alias, path, n.selector)
	check(t, err)
	e.X509SvidTtl = int32(ttl.Seconds())
	created, err := n.server.CreateEntries(bounded(t, 30*time.Second), e)
	check(t, err)
	n.entries = append(n.entries, created[0])
	return created[0]
}

func (n *node) jwt(t *testing.T, path string) {
	t.Helper()
	ctx := bounded(t, 30*time.Second)
	svid, err := n.workload.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"})
	check(t, err)
	bundles, err := n.workload.FetchJWTBundles(ctx)
	check(t, err)
	parsed, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"db"})
	check(t, err)
	if parsed.ID.Path() != path {
		t.Errorf("the token names %s, want %s", parsed.ID, path)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"cache"}); err == nil {
		t.Error("the token serves another audience")
	}
	again, err := n.workload.ValidateJWTSVID(ctx, svid.Marshal(), "db")
	check(t, err)
	if diff := cmp.Diff(parsed.ID.String(), again.ID.String()); diff != "" {
		t.Error(diff)
	}
}

// watcher is a workload that holds its stream open, as go-spiffe's X509Source
// does.
type watcher struct {
	updates chan *workloadapi.X509Context
	errs    chan error
}

func (n *node) watch(t *testing.T) *watcher {
	w := &watcher{updates: make(chan *workloadapi.X509Context), errs: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.workload.WatchX509Context(ctx, &forward{ctx: ctx, watcher: w})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

type forward struct {
	*watcher
	ctx context.Context
}

func (f *forward) OnX509ContextUpdate(u *workloadapi.X509Context) {
	select {
	case f.updates <- u:
	case <-f.ctx.Done():
	}
}

// OnX509ContextWatchError keeps the last error; go-spiffe tries again.
func (f *forward) OnX509ContextWatchError(err error) {
	select {
	case <-f.errs:
	default:
	}
	f.errs <- err
}

// until waits for the update that ok accepts.
func (w *watcher) until(t *testing.T, ok func(*workloadapi.X509Context) bool) *workloadapi.X509Context {
	t.Helper()
	ctx := bounded(t, 90*time.Second)
	var last any = "nothing"
	for {
		select {
		case u := <-w.updates:
			if ok(u) {
				return u
			}
			last = ids(u)
		case err := <-w.errs:
			last = err
		case <-ctx.Done():
			t.Fatalf("waited in vain; the agent last said: %v", last)
		}
	}
}

func (w *watcher) untilDenied(t *testing.T) {
	t.Helper()
	ctx := bounded(t, 90*time.Second)
	for {
		select {
		case <-w.updates:
		case err := <-w.errs:
			if status.Code(unwrapAll(err)) == codes.PermissionDenied {
				return
			}
		case <-ctx.Done():
			t.Fatal("the SVID was never taken away")
		}
	}
}

func ids(u *workloadapi.X509Context) []string {
	var paths []string
	for _, s := range u.SVIDs {
		paths = append(paths, s.ID.Path())
	}
	slices.Sort(paths)
	return paths
}

func serial(u *workloadapi.X509Context) string {
	return u.DefaultSVID().Certificates[0].SerialNumber.String()
}

func serials(u *workloadapi.X509Context) []string {
	var all []string
	for _, s := range u.SVIDs {
		all = append(all, s.Certificates[0].SerialNumber.String())
	}
	return all
}

// unwrapAll finds the error of gRPC inside.
func unwrapAll(err error) error {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Err()
	}
	return err
}
