package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/unixsock"
)

// TestForeignPrograms brings up a mesh of programs that know nothing of Writ,
// unchanged: python's and nginx's web servers, called with curl.
func TestForeignPrograms(t *testing.T) {
	t.Parallel()
	need(t, "python3", "nginx", "curl")
	dir := t.TempDir()
	toPython, toNginx := freePort(t), freePort(t)
	write(t, dir, "files/index.txt", "from python\n")
	write(t, dir, "html/index.html", "from nginx\n")
	write(t, dir, "policy/services.rego", `package services.files

allow contains "curl-reads" if {
	input.source.path == "/svc/curl"
	input.request.method == "GET"
}
`)
	write(t, dir, "policy/site.rego", `package services.site

allow contains "curl-reads-the-front-page" if {
	input.source.path == "/svc/curl"
	input.request.method in {"GET", "HEAD"}
	input.request.path == "/"
}
`)
	nginxPort := freePort(t)
	write(t, dir, "nginx.conf", fmt.Sprintf(`daemon off;
master_process off;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3;
  uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen 127.0.0.1:%[2]d; root %[1]s/html; }
}
`, dir, nginxPort))
	file := write(t, dir, "mesh.yaml", fmt.Sprintf(`trust_domain: example.org
policy: policy
services:
  - name: files
    command: [python3, -m, http.server, "{port}", --bind, 127.0.0.1]
    dir: files
    protocol: http
  - name: site
    command: [nginx, -p, %[1]s, -c, %[1]s/nginx.conf]
    port: %[2]d
    protocol: http
  - name: curl
    upstreams:
      - {service: files, port: %[3]d}
      - {service: site, port: %[4]d}
`, dir, nginxPort, toPython, toNginx))
	m := up(t, file, t.TempDir())

	for _, c := range []struct {
		name         string
		args         []string
		status, body string
	}{
		{"python serves a file", []string{fmt.Sprintf("http://127.0.0.1:%d/index.txt", toPython)}, "200", "from python"},
		{"python, method denied", []string{"-X", "DELETE", fmt.Sprintf("http://127.0.0.1:%d/index.txt", toPython)}, "403", "decision_id"},
		{"nginx serves the front page", []string{fmt.Sprintf("http://127.0.0.1:%d/", toNginx)}, "200", "from nginx"},
		{"nginx, path denied", []string{fmt.Sprintf("http://127.0.0.1:%d/admin", toNginx)}, "403", "decision_id"},
		{"a path that goes up", []string{"--path-as-is", fmt.Sprintf("http://127.0.0.1:%d/a/../index.html", toNginx)}, "400", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, "curl", append([]string{"-sS", "-w", "\n%{http_code}"}, c.args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("curl: %v\n%s", err, out)
			}
			if !strings.HasSuffix(string(out), "\n"+c.status) || !strings.Contains(string(out), c.body) {
				t.Errorf("got %s, want status %s and %q", out, c.status, c.body)
			}
		})
	}
	allow, deny := 0, 0
	eventually(t, 20*time.Second, func() error {
		allow, deny = 0, 0
		for _, e := range m.export() {
			switch {
			case e.Kind == "decision" && e.Outcome == "allow":
				allow++
			case e.Kind == "decision" && e.Outcome == "deny":
				deny++
			}
		}
		if allow != 2 || deny != 2 {
			return fmt.Errorf("%d allowed and %d denied on record, want 2 and 2", allow, deny)
		}
		return nil
	})
}

// TestSidecarIdentity shows that what runs from one sidecar's path gets that
// sidecar's SVID and no other, and that another path gets none.
func TestSidecarIdentity(t *testing.T) {
	t.Parallel()
	p := startPair(t, hello, "1h")
	fetch := func(exe string) string {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		out, _ := exec.CommandContext(ctx, exe, "svid", "fetch", "--socket", p.agentSocket(), "--output", "json").CombinedOutput()
		return string(out)
	}
	// policyctl in place of a sidecar's executable: the same path, so the same
	// name. The running sidecars keep the file they were started from.
	for _, name := range []string{"web", "orders"} {
		path := filepath.Join(p.dataDir, "sidecars", name, "writ-sidecar")
		program, err := os.ReadFile(filepath.Join(bin, "policyctl"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+"~", program, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
		other := map[string]string{"web": "orders", "orders": "web"}[name]
		out := fetch(path)
		if !strings.Contains(out, "spiffe://example.org/svc/"+name) || strings.Contains(out, "/svc/"+other) {
			t.Errorf("from the path of %s: %s", name, out)
		}
	}
	if out := fetch(filepath.Join(bin, "policyctl")); strings.Contains(out, "spiffe://") || !strings.Contains(out, "no identity issued") {
		t.Errorf("from elsewhere: %s", out)
	}
}

// agentSocket is where the mesh's Workload API is.
func (m *runningMesh) agentSocket() string {
	return "unix://" + unixsock.Path(filepath.Join(m.dataDir, "run", "agent", "agent.sock"))
}
