//go:build interop

package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/test/programs"
)

// spireCLI is the spire-server command line at writd's admin socket.
type spireCLI struct{ path, socket string }

func (c spireCLI) run(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	args = append(args, "-socketPath", c.socket)
	return exec.CommandContext(bounded(t, 30*time.Second), c.path, args...).CombinedOutput()
}

// read wants success and a JSON document.
func (c spireCLI) read(t *testing.T, into any, args ...string) {
	t.Helper()
	out, err := c.run(t, append(args, "-output", "json")...)
	if err != nil {
		t.Fatalf("spire-server %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	if err := json.Unmarshal(out, into); err != nil {
		t.Fatalf("spire-server %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

type cliEntry struct {
	ID       string `json:"id"`
	SPIFFEID struct {
		Path string `json:"path"`
	} `json:"spiffe_id"`
	X509SVIDTTL int `json:"x509_svid_ttl"`
}

type cliEntries struct {
	Entries []cliEntry `json:"entries"`
}

// An administrator who knows spire-server administers writd with it.
func TestSPIREServerCLI(t *testing.T) {
	ports, err := programs.FreePorts(2)
	check(t, err)
	conf := programs.ServerConfig{
		Path: program(t, "writd"), Dir: filepath.Join(shortDir(t), "s"), TrustDomain: domain,
		IssuerPort: ports[0], ControlPort: ports[1],
	}
	server, err := programs.StartWritd(bounded(t, time.Minute), conf)
	check(t, err)
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	cli := spireCLI{path: program(t, "spire-server"), socket: conf.AdminSocket()}
	t.Run("healthcheck", func(t *testing.T) {
		if out, err := cli.run(t, "healthcheck"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	t.Run("bundle", func(t *testing.T) {
		out, err := cli.run(t, "bundle", "show", "-format", "pem")
		check(t, err)
		shown, err := x509bundle.Parse(server.TrustDomain, out)
		check(t, err)
		told, err := server.Bundle(bounded(t, 30*time.Second))
		check(t, err)
		if !shown.Equal(told) {
			t.Errorf("bundle show differs from GetBundle:\n%s", out)
		}
	})
	t.Run("entry", func(t *testing.T) { cli.entries(t) })
	t.Run("token and agent", func(t *testing.T) { cli.agents(t, server) })
	t.Run("x509 mint", func(t *testing.T) {
		dir := t.TempDir()
		if out, err := cli.run(t, "x509", "mint", "-spiffeID", "spiffe://"+domain+"/minted", "-write", dir); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		svid, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
		check(t, err)
		bundle, err := x509bundle.Load(server.TrustDomain, filepath.Join(dir, "bundle.pem"))
		check(t, err)
		if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
			t.Error(err)
		}
	})
}

func (c spireCLI) entries(t *testing.T) {
	node, web := "spiffe://"+domain+"/node/one", "spiffe://"+domain+"/svc/web"
	create := []string{"entry", "create", "-parentID", node, "-spiffeID", web, "-selector", "unix:uid:1000", "-selector", "unix:path:/usr/bin/web"}
	if out, err := c.run(t, create...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := c.run(t, create...); err == nil || !bytes.Contains(out, []byte("AlreadyExists")) {
		t.Errorf("a second entry of the same kind: %v\n%s", err, out)
	}
	var shown cliEntries
	c.read(t, &shown, "entry", "show", "-spiffeID", web)
	if len(shown.Entries) != 1 || shown.Entries[0].SPIFFEID.Path != "/svc/web" {
		t.Fatalf("entry show: %+v", shown)
	}
	id := shown.Entries[0].ID
	if out, err := c.run(t, "entry", "update", "-entryID", id, "-parentID", node, "-spiffeID", web, "-selector", "unix:uid:1001", "-x509SVIDTTL", "60"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for selector, want := range map[string][]cliEntry{"unix:uid:1000": {}, "unix:uid:1001": {{ID: id, SPIFFEID: shown.Entries[0].SPIFFEID, X509SVIDTTL: 60}}} {
		found := cliEntries{Entries: []cliEntry{}}
		c.read(t, &found, "entry", "show", "-selector", selector)
		if diff := cmp.Diff(want, found.Entries); diff != "" {
			t.Errorf("%s: %s", selector, diff)
		}
	}
	if out, err := c.run(t, "entry", "delete", "-entryID", id); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var left struct{ Count int }
	c.read(t, &left, "entry", "count")
	if left.Count != 0 {
		t.Errorf("%d entries are left", left.Count)
	}
}

func (c spireCLI) agents(t *testing.T, server *programs.Server) {
	ctx := bounded(t, time.Minute)
	alias := spiffeid.RequireFromPath(server.TrustDomain, "/node/cli")
	var token struct{ Value string }
	c.read(t, &token, "token", "generate", "-spiffeID", alias.String())
	node, err := server.Attest(ctx, token.Value)
	check(t, err)
	if _, err := server.Attest(ctx, token.Value); err == nil {
		t.Error("a join token served twice")
	}
	var list struct {
		Agents []struct {
			ID struct {
				Path string `json:"path"`
			} `json:"id"`
		} `json:"agents"`
	}
	c.read(t, &list, "agent", "list")
	if len(list.Agents) != 1 || list.Agents[0].ID.Path != node.SVID.ID.Path() {
		t.Fatalf("agent list: %+v, want %s", list, node.SVID.ID)
	}
	entry, err := server.Entry(alias, "/svc/cli", fmt.Sprintf("unix:uid:%d", 1))
	check(t, err)
	created, err := server.CreateEntries(ctx, entry)
	check(t, err)
	if _, err := node.Sign(ctx, created[0]); err != nil {
		t.Fatal(err)
	}
	if out, err := c.run(t, "agent", "ban", "-spiffeID", node.SVID.ID.String()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := node.Sign(ctx, created[0]); err == nil {
		t.Error("a banned agent still gets SVIDs")
	}
}
