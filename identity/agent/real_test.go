package agent_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/attest/unix"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/identity/workload/sds"
	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/tracing"
	"github.com/writ-dev/writ/internal/unixsock"
)

var td = agenttest.TrustDomain

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node is an agent with its Workload API.
type node struct {
	agent  *agent.Agent
	socket string
	stop   func() error
	done   chan error    // gets what Run returned
	ended  *atomic.Int64 // calls of the Workload API
}

func startNode(t testing.TB, cfg agent.Config, token string) *node {
	t.Helper()
	n := startNodeUnready(t, cfg, token)
	select {
	case <-n.agent.Ready():
	case err := <-n.done:
		n.done <- err
		t.Fatalf("agent ended: %v", err)
	}
	return n
}

// startNodeUnready starts an agent that may have no issuer.
func startNodeUnready(t testing.TB, cfg agent.Config, token string) *node {
	t.Helper()
	return startTracedNode(t, cfg, token, nil)
}

func startTracedNode(t testing.TB, cfg agent.Config, token string, tracer *tracing.Tracer) *node {
	t.Helper()
	a, err := agent.New(cfg, agent.Options{
		Token:    func() (string, error) { return token, nil },
		Attestor: cfg.Attestor.New(),
		Log:      slog.New(slog.DiscardHandler), Tracer: tracer,
	})
	must(t, err)
	attestor := unix.New(unix.Config{Log: slog.New(slog.DiscardHandler)})
	ended := new(atomic.Int64)
	s, err := workload.NewServer(workload.Config{
		Observe:    func(string, codes.Code) { ended.Add(1) },
		RevokedJWT: a.RevokedJWT, Source: a, MaxConnectionsPerUID: 100, MaxStreamsPerUID: 100, Log: slog.New(slog.DiscardHandler), Tracer: tracer,
		Attest: func(ctx context.Context, p peercred.Peer) ([]string, error) { return attestor.Attest(ctx, p, a.Asked) },
	})
	must(t, err)
	must(t, sds.Register(s, sds.Config{Names: cfg.SDS, Log: slog.New(slog.DiscardHandler)}))
	revocation.Register(s.Registrar(), a.Revocations(), s.Stopping())
	ln, err := unixsock.Listen(cfg.Socket, unixsock.Public())
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(ln) })
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	n := &node{agent: a, socket: "unix://" + unixsock.Path(cfg.Socket), done: done, ended: ended}
	n.stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		s.Stop(ctx)
		serving.Wait()
		return err
	})
	t.Cleanup(func() { n.stop() })
	return n
}

func config(t testing.TB, r *agenttest.Issuer) agent.Config {
	cfg := agent.Default()
	cfg.TrustDomain, cfg.ServerAddress, cfg.TrustBundle = td.Name(), r.Address, r.Bundle
	cfg.DataDir, cfg.Socket = filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "w", "api.sock")
	return cfg
}

func myUID() string { return "uid:" + strconv.Itoa(os.Getuid()) }

func TestTokenToWorkload(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	r.Create("/svc/web", "/node/n1", myUID())
	exe, err := os.Executable()
	must(t, err)
	api := r.Create("/svc/api", "/node/n1", myUID(), "path:"+exe)
	r.Create("/svc/other", "/node/n1", "uid:54321")
	r.Create("/svc/elsewhere", "/node/n2", myUID())
	n := startNode(t, config(t, r), r.Token("/node/n1"))

	ctx := t.Context()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(n.socket))
	must(t, err)
	defer client.Close()
	svids, err := client.FetchX509SVIDs(ctx)
	must(t, err)
	got := map[string]bool{}
	for _, s := range svids {
		got[s.ID.Path()] = true
	}
	if len(got) != 2 || !got["/svc/web"] || !got["/svc/api"] {
		t.Fatalf("got %v, want /svc/web and /svc/api", got)
	}
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", Subject: spiffeid.RequireFromPath(td, "/svc/web")})
	must(t, err)
	if _, err := client.ValidateJWTSVID(ctx, token.Marshal(), "a"); err != nil {
		t.Error(err)
	}

	// What is taken away and added is pushed.
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(client), workloadapi.WithDefaultX509SVIDPicker(newest))
	must(t, err)
	defer source.Close()
	r.Delete(api)
	for pathOf(t, source) != "/svc/web" {
		<-source.Updated()
	}
	r.Create("/svc/zeta", "/node/n1", myUID())
	for pathOf(t, source) != "/svc/zeta" {
		<-source.Updated()
	}
}

// A process that streams already gets what the first entry with a kind of
// selector gives it, without connecting again.
func TestNewKindOfSelector(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	r.Create("/svc/a", "/node/n1", myUID())
	n := startNode(t, config(t, r), r.Token("/node/n1"))
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(n.socket)), workloadapi.WithDefaultX509SVIDPicker(newest))
	must(t, err)
	defer source.Close()
	if got := pathOf(t, source); got != "/svc/a" {
		t.Fatalf("begins as %s", got)
	}
	exe, err := os.Executable()
	must(t, err)
	program, err := os.ReadFile(exe)
	must(t, err)
	r.Create("/svc/b", "/node/n1", "path:"+exe)
	for pathOf(t, source) != "/svc/b" {
		<-source.Updated()
	}
	r.Create("/svc/c", "/node/n1", fmt.Sprintf("sha256:%x", sha256.Sum256(program)), "path:"+exe)
	for pathOf(t, source) != "/svc/c" {
		<-source.Updated()
	}
	if ended := n.ended.Load(); ended != 0 {
		t.Errorf("%d calls ended, want the one stream to go on", ended)
	}
}

// A restart needs no token, and a token that was used is not tried again.
func TestRestart(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	r.Create("/svc/web", "/node/n1", myUID())
	cfg := config(t, r)
	token := r.Token("/node/n1")
	n := startNode(t, cfg, token)
	first := n.agent.Status().ID
	must(t, n.stop())
	n = startNode(t, cfg, "")
	if id := n.agent.Status().ID; id != first {
		t.Errorf("after the restart the agent is %s, was %s", id, first)
	}
	must(t, n.stop())
	must(t, os.Remove(filepath.Join(cfg.DataDir, "agent.pem")))
	a, err := agent.New(cfg, agent.Options{Token: func() (string, error) { return token, nil }, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	if err := a.Run(t.Context()); !errors.Is(err, agent.ErrNoToken) {
		t.Errorf("with the used token: %v, want ErrNoToken", err)
	}
	// A new token makes it another agent of the same node.
	n = startNode(t, cfg, r.Token("/node/n1"))
	if id := n.agent.Status().ID; id == first {
		t.Error("a new token made the same agent")
	}
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(n.socket)))
	must(t, err)
	defer source.Close()
	if got := pathOf(t, source); got != "/svc/web" {
		t.Errorf("the workload is %s", got)
	}
}

func TestBanned(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	n := startNode(t, config(t, r), r.Token("/node/n1"))
	id := n.agent.Status().ID
	_, err := agentv1.NewAgentClient(r.Admin).BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}})
	must(t, err)
	// Nothing else ends the run.
	if err := <-n.done; !errors.Is(err, agent.ErrBanned) {
		t.Errorf("run ended with %v, want ErrBanned", err)
	}
	n.done <- nil
}

// Ten-second SVIDs of the real issuer, for a minute of the bubble's time: never a
// moment without a valid one, and the agent's own is renewed meanwhile. What an
// SVID is replaced by goes out on open streams; the tests above show that.
func TestShortLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := agenttest.StartInMemory(t, 10*time.Second)
		r.Create("/svc/web", "/node/n1", "uid:1")
		a := startAgent(t, r, "/node/n1")
		if n := svidsInAMinute(t, a.Lookup, "unix:uid:1"); n < 10 || n > 16 {
			t.Errorf("%d SVIDs in a minute, want one each five seconds or so", n)
		}
		if n := a.Status().Renewals; n < 9 {
			t.Errorf("the agent's own SVID was renewed %d times in a minute", n)
		}
	})
}

// svidsInAMinute looks for a minute, in which there is never a moment without a valid
// SVID of ten seconds, and returns how many there were.
func svidsInAMinute(t *testing.T, lookup func(context.Context, []string) (workload.Grant, <-chan struct{}, error), selector string) int {
	t.Helper()
	serials := map[string]bool{}
	for start := time.Now(); time.Since(start) < time.Minute; {
		g, changed, err := lookup(t.Context(), []string{selector})
		must(t, err)
		if g.Pending || len(g.Identities) != 1 || g.Identities[0].Chain == nil {
			t.Fatalf("nothing to serve after %v", time.Since(start))
		}
		cert, err := x509.ParseCertificate(g.Identities[0].Chain)
		must(t, err)
		if left := time.Until(cert.NotAfter); left <= 0 || left > 10*time.Second {
			t.Fatalf("an SVID with %v left after %v", left, time.Since(start))
		}
		serials[cert.SerialNumber.String()] = true
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		}
	}
	return len(serials)
}
