package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-dev/writ/internal/pgtest"
	"github.com/writ-dev/writ/test/programs"
)

// TestAllRolesOnPostgres runs a whole control plane on PostgreSQL: policy is
// pushed and in force after a restart, and a second one with the decision role
// is refused.
func TestAllRolesOnPostgres(t *testing.T) {
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	dsn := pgtest.New(t).Database(t)
	dir, err := os.MkdirTemp("", "writ-pg") // Sockets want short paths.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ports, err := programs.FreePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	config := func(n int) programs.ServerConfig {
		return programs.ServerConfig{
			Path: filepath.Join(bin, "writd"), Dir: filepath.Join(dir, fmt.Sprint(n)), TrustDomain: "example.org",
			IssuerPort: ports[2*n], ControlPort: ports[2*n+1],
			More: fmt.Sprintf("replica: r%d\nallow_unsigned_policy: true\nca_ttl: 36s\nsvid_ttl: 15s\ndatabase:\n  postgres: %q\n  registry_key_file: %s\n", n, dsn, filepath.Join(dir, "registry.key")),
		}
	}
	first := config(0)
	s, err := programs.StartWritd(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	policyctl := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(filepath.Join(bin, "policyctl"), append(args, "--server", first.AdminSocket())...).CombinedOutput()
		if err != nil {
			t.Fatalf("policyctl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	policy := filepath.Join(dir, "policy")
	if err := os.MkdirAll(policy, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"orders.rego": "package services.orders\n\nallow contains \"all\" if true\n",
		"data.json":   `{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"], "mode": "enforce"}}}}`,
	} {
		if err := os.WriteFile(filepath.Join(policy, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	policyctl("policy", "push", policy)
	before := policyctl("policy", "list")
	second := config(1)
	if other, err := programs.StartWritd(t.Context(), second); err == nil {
		_ = other.Stop()
		t.Error("a second control plane runs the decision role")
	} else if log, _ := os.ReadFile(filepath.Join(second.Dir, "log")); !strings.Contains(string(log), "only one may: leave decision out") {
		t.Errorf("%v\n%s", err, log)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if s, err = programs.StartWritd(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if after := policyctl("policy", "list"); after != before || !strings.Contains(after, "1") {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}
