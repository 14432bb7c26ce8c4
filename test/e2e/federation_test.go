package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-dev/writ/test/programs"
)

// realm is a trust domain with all of its programs: control plane, agent, one
// sidecar, one application.
type realm struct {
	t                                          *testing.T
	name, dir                                  string
	issuer, control, endpoint, inbound, toPeer int
	app                                        *httptest.Server
}

func newRealm(t *testing.T, name string) *realm {
	t.Helper()
	r := &realm{t: t, name: name, dir: shortDir(t)}
	for _, port := range []*int{&r.issuer, &r.control, &r.endpoint, &r.inbound, &r.toPeer} {
		*port = freePort(t)
	}
	r.app = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(rw, "%s at %s", req.Header.Get("Writ-Source-Id"), name)
	}))
	t.Cleanup(r.app.Close)
	return r
}

// run starts a program and waits until it is ready.
func (r *realm) run(program, config string) {
	r.t.Helper()
	log := filepath.Join(r.dir, program+".log")
	p, err := programs.Start(programs.Config{Path: filepath.Join(bin, program), Args: []string{"--config", write(r.t, r.dir, program+".yaml", config)}, Log: log, Notify: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := p.Stop(10 * time.Second); err != nil && !r.t.Failed() {
			r.t.Errorf("%s of %s: %v", program, r.name, err)
		}
		if r.t.Failed() {
			data, _ := os.ReadFile(log)
			r.t.Logf("%s of %s:\n%s", program, r.name, tail(data, 4000))
		}
	})
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	if err := p.Ready(ctx); err != nil {
		r.t.Fatalf("%s of %s: %v", program, r.name, err)
	}
}

func (r *realm) ctl(args ...string) string {
	r.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "policyctl"), append([]string{"--data-dir", filepath.Join(r.dir, "data")}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("%s: policyctl %s: %v\n%s", r.name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// begin starts control plane and agent.
func (r *realm) begin(other *realm) {
	r.t.Helper()
	r.run("writd", fmt.Sprintf(`trust_domain: %s
data_dir: %s/data
issuer_listen: 127.0.0.1:%d
control_listen: 127.0.0.1:%d
allow_unsigned_policy: true
federation:
  listen: 127.0.0.1:%d
`, r.name, r.dir, r.issuer, r.control, r.endpoint))
	write(r.t, r.dir, "policy/data.json", fmt.Sprintf(`{"writ":{"services":{"app":{"spiffe_ids":["spiffe://%s/svc/app"],"mode":"enforce"}}}}`, r.name))
	write(r.t, r.dir, "policy/app.rego", fmt.Sprintf(`package services.app

allow contains "the-other-reads" if {
	input.source.id == "spiffe://%s/svc/app"
	input.source.trust_domain == "%s"
	input.request.method == "GET"
}
`, other.name, other.name))
	r.ctl("policy", "push", "-m", "first", filepath.Join(r.dir, "policy"))
	r.ctl("token", "create", "--spiffe-id", "spiffe://"+r.name+"/node/n", "--file", filepath.Join(r.dir, "join.token"))
	r.run("writ-agent", fmt.Sprintf(`trust_domain: %[1]s
server_address: 127.0.0.1:%[2]d
trust_bundle: %[3]s/data/public/bundle.pem
join_token_file: %[3]s/join.token
data_dir: %[3]s/agent
socket: %[3]s/w/agent.sock
`, r.name, r.issuer, r.dir))
}

// federate makes a relationship with the other realm's endpoint, and names the
// application, which federates with it.
func (r *realm) federate(other *realm) {
	r.t.Helper()
	file := write(r.t, r.dir, "theirs.json", other.ctl("bundle", "show"))
	r.ctl("federation", "create", other.name, "--url", fmt.Sprintf("https://127.0.0.1:%d/", other.endpoint), "--profile", "https_spiffe",
		"--endpoint-spiffe-id", "spiffe://"+other.name+"/spire/server", "--bundle", file)
	r.ctl("federation", "refresh", other.name)
	r.ctl("entry", "create", "--spiffe-id", "spiffe://"+r.name+"/svc/app", "--parent-id", "spiffe://"+r.name+"/node/n",
		"--selector", fmt.Sprintf("unix:uid:%d", os.Getuid()), "--federates-with", other.name)
}

func (r *realm) sidecar(other *realm) {
	r.t.Helper()
	r.run("writ-sidecar", fmt.Sprintf(`trust_domain: %[1]s
service: app
workload_api: unix://%[2]s/w/agent.sock
inbound:
  listen: 127.0.0.1:%[3]d
  app: %[4]s
  protocol: http
upstreams:
  - name: other
    listen: 127.0.0.1:%[5]d
    address: 127.0.0.1:%[6]d
    spiffe_id: spiffe://%[7]s/svc/app
    protocol: http
control:
  address: 127.0.0.1:%[8]d
policy:
  keys: [%[2]s/data/public/decision.pem]
  dir: %[2]s/sidecar/policy
audit:
  dir: %[2]s/sidecar/spool
`, r.name, r.dir, r.inbound, r.app.Listener.Addr(), r.toPeer, other.inbound, other.name, r.control))
}

// call asks the other realm's application, through both sidecars.
func (r *realm) call(method string) (int, string, error) {
	req, err := http.NewRequestWithContext(r.t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d/", r.toPeer), nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// TestTwoTrustDomains has applications of two trust domains call each other,
// which federate by their bundle endpoints, until one of them ends it.
func TestTwoTrustDomains(t *testing.T) {
	t.Parallel()
	a, b := newRealm(t, "a.test"), newRealm(t, "b.test")
	a.begin(b)
	b.begin(a)
	a.federate(b)
	b.federate(a)
	a.sidecar(b)
	b.sidecar(a)
	for _, pair := range [][2]*realm{{a, b}, {b, a}} {
		from, to := pair[0], pair[1]
		eventually(t, 30*time.Second, func() error {
			status, body, err := from.call(http.MethodGet)
			if want := fmt.Sprintf("spiffe://%s/svc/app at %s", from.name, to.name); err != nil || status != http.StatusOK || body != want {
				return fmt.Errorf("%s calls %s: %d %q, %v", from.name, to.name, status, body, err)
			}
			return nil
		})
		if status, body, err := from.call(http.MethodPost); err != nil || status != http.StatusForbidden {
			t.Errorf("%s may not write to %s: %d %q, %v", from.name, to.name, status, body, err)
		}
	}
	b.ctl("federation", "delete", "a.test")
	b.ctl("bundle", "delete", "a.test", "--mode", "dissociate")
	eventually(t, 30*time.Second, func() error {
		if status, body, err := a.call(http.MethodGet); err != nil || status != http.StatusBadGateway {
			return fmt.Errorf("b ended it, and a's call is %d %q, %v", status, body, err)
		}
		return nil
	})
}
