package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTrustPublisher runs a second sidecar of orders that trusts the publisher
// and compiles the policy itself, and one that trusts somebody else.
func TestTrustPublisher(t *testing.T) {
	t.Parallel()
	p := startPair(t, hello, "1h")
	config, err := os.ReadFile(filepath.Join(p.dataDir, "sidecars", "orders", "sidecar.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	first := p.ownSidecar(string(config), "own", filepath.Join(p.dataDir, "publisher", "public.pem"))
	eventually(t, 30*time.Second, func() error { return p.ordersRun(2, "") })
	// It follows a change as the other does.
	write(t, p.policy, "orders.rego", "package services.orders\n\nallow contains \"second\" if input.source.path == \"/svc/web\"\n")
	eventually(t, 30*time.Second, func() error { return p.ordersRun(2, "1.2@") })
	if _, err := os.Stat(filepath.Join(first, "policy", "sources.tar")); err != nil {
		t.Error(err)
	}
	// The decision key is a key like any other, and nobody's that publishes.
	p.ownSidecar(string(config), "foreign", filepath.Join(p.dataDir, "public", "decision.pem"))
	eventually(t, 30*time.Second, func() error {
		var status struct {
			Components []struct{ Name, Refused, Revision string }
		}
		if err := json.Unmarshal(p.ctl("status", "-o", "json"), &status); err != nil {
			t.Fatal(err)
		}
		for _, c := range status.Components {
			if c.Name == "orders" && c.Revision == "none" && strings.Contains(c.Refused, "not trusted here") {
				return nil
			}
		}
		return fmt.Errorf("nobody refuses: %+v", status.Components)
	})
}

// ownSidecar runs a sidecar of orders, of the executable by which the agent
// knows it, that trusts the key. It returns its directory.
func (p *pair) ownSidecar(config, name, key string) string {
	t := p.t
	t.Helper()
	dir := t.TempDir()
	lines := strings.Split(config, "\n")
	for i, line := range lines {
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		switch {
		case strings.HasPrefix(line, "  listen: "):
			lines[i] = fmt.Sprintf("  listen: 127.0.0.1:%d", freePort(t))
		case strings.HasPrefix(line, "admin: "):
			lines[i] = "admin: 127.0.0.1:0"
		case strings.HasSuffix(line, "/policy"):
			lines[i] = indent + "dir: " + filepath.Join(dir, "policy")
		case strings.HasSuffix(line, "/spool"):
			lines[i] = indent + "dir: " + filepath.Join(dir, "spool")
		case strings.HasPrefix(line, "  trust: "):
			lines[i] = fmt.Sprintf("  trust: publisher\n  publishers:\n    - name: %s\n      keys: [%s]\n      packages: [\"*\"]", name, key)
		}
	}
	file := write(t, dir, "sidecar.yaml", strings.Join(lines, "\n"))
	cmd := exec.Command(filepath.Join(p.dataDir, "sidecars", "orders", "writ-sidecar"), "--config", file)
	log := &logBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("sidecar %s said:\n%s", name, log.String())
		}
	})
	return dir
}

// ordersRun is nil when n sidecars of orders run the same revision, which
// begins as given.
func (p *pair) ordersRun(n int, prefix string) error {
	p.t.Helper()
	var status struct {
		Revision   string
		Components []struct {
			Name, Revision string
			Connected      bool
		}
	}
	if err := json.Unmarshal(p.ctl("status", "-o", "json"), &status); err != nil {
		p.t.Fatal(err)
	}
	if !strings.HasPrefix(status.Revision, prefix) {
		return fmt.Errorf("%s is in force", status.Revision)
	}
	have := 0
	for _, c := range status.Components {
		if c.Name == "orders" && c.Connected && c.Revision == status.Revision {
			have++
		}
	}
	if have != n {
		return fmt.Errorf("%d of %d sidecars run %s: %+v", have, n, status.Revision, status.Components)
	}
	return nil
}
