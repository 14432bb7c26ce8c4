//go:build interop

package interop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"

	"github.com/writ-dev/writ/test/programs"
)

// A team moves from SPIRE to Writ: the server first, then the agents one by
// one, and one of them back. Two workloads on different agents speak mTLS all
// the time, a new connection for each request, and none fails.
func TestMigration(t *testing.T) {
	m := newMigration(t)
	m.oldAgent(t, 0)
	m.oldAgent(t, 1)
	calls := m.workloads(t)
	calls.more(t)

	t.Run("dry run, import, trust", func(t *testing.T) {
		var plan struct {
			Changes []struct{ Do, Kind, Name string }
		}
		m.policyctl(t, &plan, "spire", "import", "--from", "unix://"+m.socket, "--dry-run")
		if len(plan.Changes) != 2 || plan.Changes[0].Do != "create" {
			t.Fatalf("plan: %+v", plan)
		}
		var done struct{ Equal, Failed int }
		m.policyctl(t, &done, "spire", "import", "--from", "unix://"+m.socket)
		m.policyctl(t, &done, "spire", "import", "--from", "unix://"+m.socket)
		if done.Equal != 2 || done.Failed != 0 {
			t.Fatalf("imported twice: %+v, want 2 equal", done)
		}
		var trust struct{ Here, There map[string]int }
		m.policyctl(t, &trust, "spire", "trust", "--with", "unix://"+m.socket)
		if trust.Here["x509_authorities"] != 1 || trust.There["x509_authorities"] != 1 {
			t.Fatalf("trust: %+v", trust)
		}
		m.policyctl(t, &trust, "spire", "trust", "--with", "unix://"+m.socket)
		if trust.Here["x509_authorities"]+trust.There["jwt_authorities"] != 0 {
			t.Fatalf("trust, again: %+v", trust)
		}
		// Workloads know the new authority before anything signs with it.
		for _, s := range calls.sources {
			untilUpdated(t, s, func() error { return m.knows(s, m.new) })
		}
		calls.more(t)
	})
	for _, step := range []struct {
		name  string
		agent int
		move  func(*testing.T, int)
		to    *programs.Server
	}{
		{"first agent", 0, m.newAgent, m.new},
		{"second agent", 1, m.newAgent, m.new},
		{"second agent back", 1, m.oldAgent, m.old},
		{"and again", 1, m.newAgent, m.new},
	} {
		t.Run(step.name, func(t *testing.T) {
			calls.more(t)
			step.move(t, step.agent)
			s := calls.sources[step.agent]
			untilUpdated(t, s, func() error { return m.issuedBy(s, step.to) })
			calls.more(t)
		})
	}
	t.Run("without spire-server", func(t *testing.T) {
		check(t, m.old.Stop())
		m.oldStopped = true
		calls.more(t)
	})
	calls.stop()
	if calls.failed != nil || calls.done < 100 {
		t.Errorf("%d requests, then: %v", calls.done, calls.failed)
	}
	t.Logf("%d requests, none failed", calls.done)
}

// migration is a spire-server and a writd of one trust domain, and two nodes.
type migration struct {
	dir, socket string // of spire-server
	old, new    *programs.Server
	oldStopped  bool
	conf        [2]programs.ServerConfig
	agents      [2]*programs.Program
	count       int
}

func newMigration(t *testing.T) *migration {
	ctx := bounded(t, time.Minute)
	m := &migration{dir: shortDir(t)}
	ports, err := programs.FreePorts(4)
	check(t, err)
	for i, name := range []string{"spire-server", "writd"} {
		m.conf[i] = programs.ServerConfig{
			Path: program(t, name), Dir: filepath.Join(m.dir, name), TrustDomain: domain, IssuerPort: ports[2*i], ControlPort: ports[2*i+1],
		}
	}
	m.socket = filepath.Join(m.conf[0].Dir, "api.sock")
	m.old, err = programs.StartSPIRE(ctx, m.conf[0])
	check(t, err)
	t.Cleanup(func() {
		if !m.oldStopped {
			_ = m.old.Stop()
		}
	})
	m.new, err = programs.StartWritd(ctx, m.conf[1])
	check(t, err)
	t.Cleanup(func() { _ = m.new.Stop() })
	for i := range m.agents {
		e, err := m.old.Entry(alias(i), fmt.Sprintf("/svc/%d", i), fmt.Sprintf("unix:uid:%d", os.Getuid()))
		check(t, err)
		_, err = m.old.CreateEntries(ctx, e)
		check(t, err)
		t.Cleanup(func() {
			_ = m.agents[i].Stop(20 * time.Second)
			if t.Failed() {
				t.Logf("the end of the log of agent %d:\n%s", i, m.agents[i].Tail())
			}
		})
	}
	return m
}

func alias(node int) spiffeid.ID { return idOf(fmt.Sprintf("spiffe://%s/node/%d", domain, node)) }

func (m *migration) agentSocket(i int) string {
	return filepath.Join(m.dir, fmt.Sprintf("n%d", i), "api.sock")
}

// oldAgent has a node served by spire-agent and spire-server, newAgent by
// writ-agent and writd. The node's name and socket stay.
func (m *migration) oldAgent(t *testing.T, i int) {
	m.agent(t, i, "spire-agent", m.old, m.conf[0].IssuerPort)
}
func (m *migration) newAgent(t *testing.T, i int) {
	m.agent(t, i, "writ-agent", m.new, m.conf[1].IssuerPort)
}

func (m *migration) agent(t *testing.T, i int, name string, server *programs.Server, port int) {
	ctx := bounded(t, 2*time.Minute)
	m.count++
	dir := filepath.Join(m.dir, fmt.Sprintf("a%d", m.count))
	check(t, os.Mkdir(dir, 0o700))
	token, err := server.JoinToken(ctx, alias(i))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "bundle.pem"), bundlePEM(t, server), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o600))
	c := programs.Config{Path: program(t, name), Log: filepath.Join(dir, "log")}
	conf, content := filepath.Join(dir, "agent.conf"), ""
	if name == "spire-agent" {
		c.Args, content = []string{"run", "-config", conf}, fmt.Sprintf(spireAgentConf, dir, port, m.agentSocket(i), domain, token)
	} else {
		c.Args, c.Notify, content = []string{"--config", conf}, true, fmt.Sprintf(writAgentConf, dir, port, m.agentSocket(i), domain)
	}
	check(t, os.WriteFile(conf, []byte(content), 0o600))
	if m.agents[i] != nil {
		check(t, m.agents[i].Stop(20*time.Second))
	}
	m.agents[i], err = programs.Start(c)
	check(t, err)
	check(t, m.agents[i].Reachable(ctx, "unix", m.agentSocket(i)))
}

func bundlePEM(t *testing.T, server *programs.Server) []byte {
	t.Helper()
	bundle, err := server.Bundle(bounded(t, 30*time.Second))
	check(t, err)
	var all []byte
	for _, a := range bundle.X509Authorities() {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw})...)
	}
	return all
}

func (m *migration) policyctl(t *testing.T, into any, args ...string) {
	t.Helper()
	args = append(args, "--server", m.conf[1].AdminSocket(), "--output", "json")
	out, err := exec.CommandContext(bounded(t, time.Minute), program(t, "policyctl"), args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("policyctl %s: %v\n%s%s", strings.Join(args, " "), err, exit.Stderr, out)
	}
	check(t, err)
	check(t, json.Unmarshal(out, into))
}

// signing is the authority with which a server signs now, by what it mints.
func signing(server *programs.Server) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	probe := &url.URL{Scheme: "spiffe", Host: domain, Path: "/probe"}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{probe}}, key)
	if err != nil {
		return nil, err
	}
	minted, err := svidv1.NewSVIDClient(server.Admin()).MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr})
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(minted.GetSvid().GetCertChain()[0])
	if err != nil {
		return nil, err
	}
	bundle, err := server.Bundle(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range bundle.X509Authorities() {
		if leaf.CheckSignatureFrom(a) == nil {
			return a, nil
		}
	}
	return nil, errors.New("no authority of the bundle signed it")
}

// issuedBy tells whether a workload's SVID is signed by a server.
func (m *migration) issuedBy(s *workloadapi.X509Source, server *programs.Server) error {
	svid, err := s.GetX509SVID()
	if err != nil {
		return err
	}
	authority, err := signing(server)
	if err != nil {
		return err
	}
	return svid.Certificates[0].CheckSignatureFrom(authority)
}

// knows tells whether a workload's bundle holds a server's authority.
func (m *migration) knows(s *workloadapi.X509Source, server *programs.Server) error {
	authority, err := signing(server)
	if err != nil {
		return err
	}
	bundle, err := s.GetX509BundleForTrustDomain(server.TrustDomain)
	if err != nil {
		return err
	}
	if !bundle.HasX509Authority(authority) {
		return errors.New("the workload does not know the authority yet")
	}
	return nil
}

// untilUpdated waits for a condition that updates of a workload's source bring about.
func untilUpdated(t *testing.T, s *workloadapi.X509Source, holds func() error) {
	t.Helper()
	ctx := bounded(t, 90*time.Second)
	for {
		err := holds()
		if err == nil {
			return
		}
		if werr := s.WaitUntilUpdated(ctx); werr != nil {
			t.Fatalf("waited in vain: %v", err)
		}
	}
}

// callLoop is the loop of requests between the two workloads.
type callLoop struct {
	sources [2]*workloadapi.X509Source
	stop    func()

	mu     sync.Mutex
	done   int
	failed error
	moved  chan struct{}
}

func (m *migration) workloads(t *testing.T) *callLoop {
	l := &callLoop{moved: make(chan struct{})}
	for i := range l.sources {
		var err error
		l.sources[i], err = workloadapi.NewX509Source(bounded(t, time.Minute), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+m.agentSocket(i))))
		check(t, err)
		t.Cleanup(func() { l.sources[i].Close() })
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }), ReadHeaderTimeout: 10 * time.Second}
	config := tlsconfig.MTLSServerConfig(l.sources[1], l.sources[1], tlsconfig.AuthorizeID(idOf("spiffe://"+domain+"/svc/0")))
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(tls.NewListener(listener, config)) })
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   tlsconfig.MTLSClientConfig(l.sources[0], l.sources[0], tlsconfig.AuthorizeID(idOf("spiffe://"+domain+"/svc/1"))),
	}}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			l.count(call(client, "https://"+listener.Addr().String()))
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	l.stop = sync.OnceFunc(func() { cancel(); _ = server.Close(); wg.Wait() })
	t.Cleanup(func() { l.stop() })
	return l
}

func call(client *http.Client, url string) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello" {
		err = fmt.Errorf("%s: %q", resp.Status, body)
	}
	return err
}

func (l *callLoop) count(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done++
	if err != nil && l.failed == nil {
		l.failed = fmt.Errorf("request %d: %w", l.done, err)
	}
	close(l.moved)
	l.moved = make(chan struct{})
}

// more waits for twenty more requests, and says at once if one failed.
func (l *callLoop) more(t *testing.T) {
	t.Helper()
	ctx := bounded(t, time.Minute)
	l.mu.Lock()
	target := l.done + 20
	for l.done < target && l.failed == nil {
		moved := l.moved
		l.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			t.Fatal("the request loop stands still")
		}
		l.mu.Lock()
	}
	failed := l.failed
	l.mu.Unlock()
	if failed != nil {
		t.Fatal(failed)
	}
}
