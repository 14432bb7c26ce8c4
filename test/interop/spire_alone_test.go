//go:build interop

package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
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

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/test/programs"
)

// All identities are SPIRE's: writd runs without the issuer role, a pair of
// sidecars takes names from the stock agent, policy and record work. It is what
// docs/howto/without-writ-issuer.md tells.
func TestWithoutIssuer(t *testing.T) {
	ctx := bounded(t, 3*time.Minute)
	w := &alone{dir: shortDir(t)}
	ports, err := programs.FreePorts(5)
	check(t, err)
	issuer, control, inbound, upstream := ports[0], ports[1], ports[2], ports[3]
	w.spire(t, issuer)
	app := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "order "+r.URL.Path) }))
	defer app.Close()

	key, public := publisherKey(t, w.dir)
	w.write(t, "writd.yaml", fmt.Sprintf(`trust_domain: example.org
data_dir: %s/writ
roles: [decision, audit]
workload_api: unix://%s
control_listen: 127.0.0.1:%d
publisher_keys: [%s]
`, w.dir, w.socket(), control, public))
	w.entry(t, "/writ/server", w.program(t, "writd"))
	w.entry(t, "/svc/orders", w.sidecar(t, "orders"))
	w.entry(t, "/svc/web", w.sidecar(t, "web"))
	w.run(t, program(t, "writd"), "writd.yaml")
	w.policyctl(t, "policy", "push", "--key", key, "../../rego/examples/01-web-calls-orders")

	rest := fmt.Sprintf("control: {address: \"127.0.0.1:%d\"}\npolicy: {keys: [%s/writ/public/decision.pem], dir: %s/%%[1]s/policy}\naudit: {dir: %s/%%[1]s/spool}\n", control, w.dir, w.dir, w.dir)
	head := "trust_domain: example.org\nservice: %[1]s\nworkload_api: unix://" + w.socket() + "\n"
	w.write(t, "orders.yaml", fmt.Sprintf(head+rest, "orders")+
		fmt.Sprintf("inbound: {listen: \"127.0.0.1:%d\", app: %q}\n", inbound, strings.TrimPrefix(app.URL, "http://")))
	w.write(t, "web.yaml", fmt.Sprintf(head+rest, "web")+
		fmt.Sprintf("upstreams:\n  - {name: orders, listen: \"127.0.0.1:%d\", address: \"127.0.0.1:%d\", spiffe_id: \"spiffe://example.org/svc/orders\"}\n", upstream, inbound))
	w.run(t, w.sidecar(t, "orders"), "orders.yaml")
	web := w.run(t, w.sidecar(t, "web"), "web.yaml")

	url := fmt.Sprintf("http://127.0.0.1:%d", upstream)
	check(t, web.Until(ctx, func() error { return answers(url+"/orders/1", http.StatusOK, "order /orders/1") }))
	if err := answers(url+"/secret", http.StatusForbidden, ""); err != nil {
		t.Error(err)
	}
	check(t, web.Until(ctx, func() error {
		out := w.policyctl(t, "audit", "query", "--destination", "orders", "--output", "json")
		for _, want := range []string{"spiffe://example.org/svc/web", "order-is-read", "deny"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("the record does not say %q yet", want)
			}
		}
		return nil
	}))
}

func answers(url string, code int, body string) error {
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != code || body != "" && string(got) != body) {
		err = fmt.Errorf("%s: %s, %q", url, resp.Status, got)
	}
	return err
}

// alone is a directory with SPIRE and programs of ours that have no issuer.
type alone struct {
	dir    string
	server *programs.Server
}

func (w *alone) socket() string { return filepath.Join(w.dir, "a", "run", "api.sock") }

var aloneNode = spiffeid.RequireFromString("spiffe://example.org/node/here")

// spire starts a stock server, and a stock agent that knows programs by path.
func (w *alone) spire(t *testing.T, port int) {
	ctx := bounded(t, time.Minute)
	conf := programs.ServerConfig{Path: program(t, "spire-server"), Dir: filepath.Join(w.dir, "s"), TrustDomain: "example.org", IssuerPort: port}
	var err error
	w.server, err = programs.StartSPIRE(ctx, conf)
	check(t, err)
	t.Cleanup(func() { _ = w.server.Stop() })
	token, err := w.server.JoinToken(ctx, aloneNode)
	check(t, err)
	dir := filepath.Join(w.dir, "a")
	check(t, os.Mkdir(dir, 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "bundle.pem"), bundlePEM(t, w.server), 0o600))
	text := fmt.Sprintf(spireAgentConf, dir, port, w.socket(), "example.org", token)
	text = strings.Replace(text, `WorkloadAttestor "unix" { plugin_data {} }`, `WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }`, 1)
	check(t, os.WriteFile(filepath.Join(dir, "agent.conf"), []byte(text), 0o600))
	agent, err := programs.Start(programs.Config{Path: program(t, "spire-agent"), Args: []string{"run", "-config", filepath.Join(dir, "agent.conf")}, Log: filepath.Join(dir, "log")})
	check(t, err)
	t.Cleanup(func() { _ = agent.Stop(20 * time.Second) })
	check(t, agent.Reachable(ctx, "unix", w.socket()))
}

func (w *alone) entry(t *testing.T, path, program string) {
	t.Helper()
	e, err := w.server.Entry(aloneNode, path, fmt.Sprintf("unix:uid:%d", os.Getuid()), "unix:path:"+program)
	check(t, err)
	_, err = w.server.CreateEntries(bounded(t, 30*time.Second), e)
	check(t, err)
}

// program is the path that the agent sees.
func (w *alone) program(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(program(t, name))
	check(t, err)
	path, err = filepath.EvalSymlinks(path)
	check(t, err)
	return path
}

// sidecar is a service's own copy of writ-sidecar, told apart by its path.
func (w *alone) sidecar(t *testing.T, service string) string {
	t.Helper()
	path := filepath.Join(w.dir, service, "writ-sidecar")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	check(t, os.MkdirAll(filepath.Dir(path), 0o700))
	content, err := os.ReadFile(program(t, "writ-sidecar"))
	check(t, err)
	check(t, os.WriteFile(path, content, 0o700))
	return path
}

func (w *alone) write(t *testing.T, name, content string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600))
}

func (w *alone) run(t *testing.T, path, conf string) *programs.Program {
	t.Helper()
	p, err := programs.Start(programs.Config{
		Path: path, Args: []string{"--config", filepath.Join(w.dir, conf)}, Log: filepath.Join(w.dir, conf+".log"), Notify: true,
	})
	check(t, err)
	t.Cleanup(func() {
		_ = p.Stop(20 * time.Second)
		if t.Failed() {
			t.Logf("the end of the log with %s:\n%s", conf, p.Tail())
		}
	})
	check(t, p.Ready(bounded(t, time.Minute)))
	return p
}

func (w *alone) policyctl(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(bounded(t, time.Minute), program(t, "policyctl"), append(args, "--data-dir", filepath.Join(w.dir, "writ"))...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("policyctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// publisherKey makes the key pair that signs policy.
func publisherKey(t *testing.T, dir string) (private, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	check(t, err)
	private, public = filepath.Join(dir, "publisher.pem"), filepath.Join(dir, "publisher.pub.pem")
	check(t, os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	check(t, os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o600))
	return private, public
}
