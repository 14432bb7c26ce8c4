//go:build interop

package interop

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/test/programs"
)

const nginxConf = `daemon off;
pid %[1]s/nginx.pid;
error_log stderr notice;
worker_processes 1;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3;
  uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server {
    listen 127.0.0.1:%[2]d ssl;
    ssl_certificate         %[1]s/svid/svid.pem;
    ssl_certificate_key     %[1]s/svid/key.pem;
    ssl_client_certificate  %[1]s/svid/bundle.pem;
    ssl_verify_client       on;
    ssl_session_tickets     off;
    location / { return 200 ok; }
  }
}
`

// TestNginx has nginx serve what policyctl svid write keeps in files, as
// docs/howto/svid-files.md says. policyctl and this process are two workloads of
// one user, told apart by their programs.
func TestNginx(t *testing.T) {
	n := newNode(t, "writ-agent", "writd")
	nginx, err := exec.LookPath("nginx")
	check(t, err)
	policyctl := program(t, "policyctl")
	self, err := os.Executable()
	check(t, err)
	dir := shortDir(t)
	check(t, os.Chmod(dir, 0o755)) // nginx's workers are another user's
	for path, selector := range map[string]string{"/svc/nginx": "unix:path:" + policyctl, "/svc/client": "unix:path:" + self} {
		e, err := n.server.Entry(n.alias, path, selector)
		check(t, err)
		e.X509SvidTtl = int32(ttl.Seconds())
		_, err = n.server.CreateEntries(bounded(t, 30*time.Second), e)
		check(t, err)
	}
	// The files first, then what reads them, then what tells it: before there is a
	// nginx there is nobody to tell.
	write := []string{"svid", "write", filepath.Join(dir, "svid"), "--socket", n.socket}
	if out, err := exec.CommandContext(bounded(t, time.Minute), policyctl, write...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ports, err := programs.FreePorts(1)
	check(t, err)
	conf := filepath.Join(dir, "nginx.conf")
	check(t, os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, ports[0]), 0o644))
	start := func(path, log string, args ...string) *programs.Program {
		p, err := programs.Start(programs.Config{Path: path, Log: filepath.Join(dir, log), Args: args})
		check(t, err)
		t.Cleanup(func() {
			_ = p.Stop(10 * time.Second)
			if t.Failed() {
				t.Logf("the end of the log of %s:\n%s", path, p.Tail())
			}
		})
		return p
	}
	server := start(nginx, "nginx", "-p", dir, "-c", conf)
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	check(t, server.Reachable(bounded(t, time.Minute), "tcp", addr))
	start(policyctl, "write", append(write, "--watch", "--reload-signal", filepath.Join(dir, "nginx.pid"))...)

	source, err := workloadapi.NewX509Source(bounded(t, time.Minute), workloadapi.WithClient(n.workload))
	check(t, err)
	t.Cleanup(func() { source.Close() })
	id := tlsconfig.AuthorizeID(spiffeid.RequireFromPath(n.server.TrustDomain, "/svc/nginx"))
	// call makes a request on a connection of its own and gives the serial number of
	// who answered.
	call := func(ctx context.Context, config *tls.Config) (string, error) {
		resp, err := get(ctx, &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, "https://"+addr+"/")
		if err != nil {
			return "", err
		}
		if resp.StatusCode != http.StatusOK {
			return "", fmt.Errorf("status %s", resp.Status)
		}
		return resp.TLS.PeerCertificates[0].SerialNumber.String(), nil
	}
	t.Run("rotation without a failed request", func(t *testing.T) {
		ctx := bounded(t, 90*time.Second)
		shown, requests := map[string]bool{}, 0
		for ; len(shown) < 3; requests++ {
			serial, err := call(ctx, tlsconfig.MTLSClientConfig(source, source, id))
			if err != nil {
				t.Fatalf("request %d: %v", requests, err)
			}
			shown[serial] = true
		}
		t.Logf("%d requests during two rotations", requests)
	})
	t.Run("nobody without a certificate", func(t *testing.T) {
		if _, err := call(bounded(t, 30*time.Second), tlsconfig.TLSClientConfig(source, id)); err == nil {
			t.Error("got an answer")
		}
	})
	t.Run("the agent is away", func(t *testing.T) {
		check(t, n.agent.Stop(20*time.Second))
		svid, err := source.GetX509SVID()
		check(t, err)
		if _, err := call(bounded(t, 30*time.Second), tlsconfig.MTLSClientConfig(svid, source, id)); err != nil {
			t.Errorf("the files are good, and: %v", err)
		}
	})
}
