package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/unixsock"
)

// startNode runs an agent whose workloads all have the selectors, and returns
// its Workload API socket.
func startNode(t *testing.T, issuer *agenttest.Issuer, selectors ...string) string {
	t.Helper()
	cfg := agent.Default()
	cfg.TrustDomain, cfg.ServerAddress, cfg.TrustBundle = agenttest.TrustDomain.Name(), issuer.Address, issuer.Bundle
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	socket := filepath.Join(t.TempDir(), "w", "api.sock")
	log := slog.New(slog.DiscardHandler)
	token := issuer.Token("/node/n1")
	node, err := agent.New(cfg, agent.Options{Log: log, Token: func() (string, error) { return token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	api, err := workload.NewServer(workload.Config{
		Source: node, MaxConnectionsPerUID: 10, MaxStreamsPerUID: 10, Log: log,
		Attest: func(context.Context, peercred.Peer) ([]string, error) { return selectors, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := unixsock.Listen(socket, unixsock.Public())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = api.Serve(ln) })
	running.Go(func() { _ = node.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		api.Stop(ctx)
		running.Wait()
	})
	<-node.Ready()
	return socket
}

// svidCommand runs `policyctl svid …` and returns what it wrote.
func svidCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
	root := newRootCmd(a)
	if !hasCommand(root, "svid") {
		root.AddCommand(newSVIDCmd(a))
	}
	code = execute(t.Context(), root, append([]string{"svid"}, args...))
	return code, out.String(), errs.String()
}

func hasCommand(root *cobra.Command, name string) bool {
	for _, c := range root.Commands() {
		if c.Name() == name {
			return true
		}
	}
	return false
}

func TestSVIDFetch(t *testing.T) {
	issuer := agenttest.Start(t, time.Hour)
	issuer.Create("/svc/web", "/node/n1", "uid:7")
	issuer.Create("/svc/api", "/node/n1", "uid:7")
	socket := startNode(t, issuer, "unix:uid:7")
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+unixsock.Path(socket))
	const web, api = "spiffe://example.org/svc/web", "spiffe://example.org/svc/api"

	t.Run("x509 text", func(t *testing.T) {
		code, out, errs := svidCommand(t, "fetch", "--socket", socket)
		if code != 0 || !strings.Contains(out, web) || !strings.Contains(out, api) || strings.Contains(out, "PRIVATE KEY") {
			t.Errorf("exit %d: %s%s", code, out, errs)
		}
	})
	t.Run("x509 json", func(t *testing.T) {
		code, out, errs := svidCommand(t, "fetch", "-o", "json", "--spiffe-id", api)
		var got x509Result
		if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
			t.Fatalf("exit %d, %v: %s", code, err, errs)
		}
		if len(got.SVIDs) != 1 || got.SVIDs[0].SPIFFEID != api || got.Bundles["example.org"] == "" || strings.Contains(out, "PRIVATE KEY") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("jwt text", func(t *testing.T) {
		code, out, errs := svidCommand(t, "fetch", "--audience", "a,b", "--spiffe-id", web)
		if code != 0 {
			t.Fatal(errs)
		}
		svid, err := jwtsvid.ParseInsecure(strings.TrimSuffix(out, "\n"), []string{"b"})
		if err != nil || svid.ID.String() != web {
			t.Errorf("%v, %v", svid, err)
		}
	})
	t.Run("jwt json", func(t *testing.T) {
		code, out, errs := svidCommand(t, "fetch", "--audience", "a", "--output", "json")
		var got jwtResult
		if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || len(got.SVIDs) != 2 {
			t.Errorf("exit %d, %v: %s%s", code, err, out, errs)
		}
	})
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"another's identity": {[]string{"--spiffe-id", "spiffe://example.org/svc/other"}, "not spiffe://example.org/svc/other"},
		"bad id":             {[]string{"--spiffe-id", "web"}, "--spiffe-id"},
		"files":              {[]string{"--write", "d"}, "unknown flag: --write: policyctl svid write DIR"},
		"bad address":        {[]string{"--socket", "tcp://name:1"}, "IP:port"},
		"no agent":           {[]string{"--socket", filepath.Join(t.TempDir(), "none")}, "no answer from an agent"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := svidCommand(t, append([]string{"fetch"}, tc.args...)...)
			if code == 0 || out != "" || !strings.Contains(errs, tc.want) {
				t.Errorf("exit %d, stdout %q, stderr %q lacks %q", code, out, errs, tc.want)
			}
		})
	}
}

func TestSVIDFetchWithoutIdentity(t *testing.T) {
	socket := startNode(t, agenttest.Start(t, time.Hour), "unix:uid:7")
	code, _, errs := svidCommand(t, "fetch", "--socket", socket)
	if code == 0 || !strings.Contains(errs, fmt.Sprintf("no identity for this process (uid %d", os.Getuid())) {
		t.Errorf("exit %d: %s", code, errs)
	}
}
