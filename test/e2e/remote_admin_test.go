package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"

	"github.com/writ-dev/writ/test/programs"
)

const shopAdmins = `package admin

import data.writ.spiffe

allow contains "own-entries" if {
	input.caller.path == "/team/shop"
	input.service in {"spire.api.server.entry.v1.Entry", "writ.identity.template.v1.Admin"}
	every t in input.targets { spiffe.under(t, "spiffe://example.org/svc/shop") }
}

allow contains "status" if input.service == "writ.policy.v1.Status"
`

// TestRemoteAdmin administers over the network: what the policy allows, and as
// soon as a file is saved, what it allows then.
func TestRemoteAdmin(t *testing.T) {
	t.Parallel()
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "writ-admin") // Sockets want short paths.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	admins := filepath.Join(dir, "admins")
	if err := os.Mkdir(admins, 0o700); err != nil {
		t.Fatal(err)
	}
	rego := filepath.Join(admins, "admin.rego")
	writeFileAtomic(t, rego, shopAdmins)
	ports, err := programs.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	server, err := programs.StartWritd(t.Context(), programs.ServerConfig{
		Path: filepath.Join(bin, "writd"), Dir: filepath.Join(dir, "s"), TrustDomain: "example.org", IssuerPort: ports[0], ControlPort: ports[1],
		More: fmt.Sprintf("admin_listen: 127.0.0.1:%d\nadmin_policy: %s\n", ports[2], admins),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(server.Tail())
		}
	})
	shop := mintTo(t, server, "/team/shop")
	other := mintTo(t, server, "/team/other")
	ctl := func(as string, args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(bin, "policyctl"), args...)
		cmd.Env = append(os.Environ(), fmt.Sprintf("WRIT_SERVER=tcp://127.0.0.1:%d", ports[2]), "WRIT_SVID_DIR="+as)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	create := func(as, path string) (string, error) {
		return ctl(as, "entry", "create", "--spiffe-id", "spiffe://example.org"+path, "--parent-id", "spiffe://example.org/node/one", "--selector", "unix:uid:1")
	}
	denied := func(out string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(out, "does not allow") {
			t.Errorf("want a denial, got %v: %s", err, out)
		}
	}
	for _, args := range [][]string{{"status"}, {"entry", "list", "--spiffe-id", "spiffe://example.org/svc/shop/web"}} {
		if out, err := ctl(shop, args...); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	if out, err := create(shop, "/svc/shop/web"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	denied(create(shop, "/svc/orders"))
	denied(create(other, "/svc/shop/other"))
	// Who holds such an entry can become anybody.
	for _, mark := range []string{"--admin", "--downstream"} {
		denied(ctl(shop, "entry", "create", "--spiffe-id", "spiffe://example.org/svc/shop/root", "--parent-id", "spiffe://example.org/node/one", "--selector", "unix:uid:1", mark))
	}
	denied(ctl(shop, "entry", "list"))
	denied(ctl(shop, "agent", "list"))
	denied(ctl(shop, "policy", "list"))
	template := func(as, id, pattern string) (string, error) {
		return ctl(as, "entry", "template", "create", "--id", id, "--spiffe-id", "spiffe://example.org"+pattern, "--parent-id", "spiffe://example.org/node/one")
	}
	for _, args := range [][]string{{"show", "users"}, {"update", "users", "--hint", "x"}, {"delete", "users"}} {
		if args[0] == "show" {
			if out, err := template(shop, "users", "/svc/shop/{unix:user}"); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			denied(ctl(other, append([]string{"entry", "template"}, args...)...))
		}
		if out, err := ctl(shop, append([]string{"entry", "template"}, args...)...); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	// What could become a name under the prefix is not under it.
	denied(template(shop, "wide", "/svc/{unix:user}"))
	denied(template(shop, "wider", "/svc/shop{unix:user}/a"))
	denied(template(other, "other", "/svc/shop/{unix:user}"))
	denied(ctl(shop, "entry", "template", "list"))
	denied(ctl(shop, "entry", "template", "delete", "no-such"))

	// What is wrong changes nothing; what is right holds for the next call.
	writeFileAtomic(t, rego, "package admin\nallow if input.caler.id == \"x\"\n")
	if out, err := create(shop, "/svc/shop/second"); err != nil {
		t.Errorf("under the last good policy: %v: %s", err, out)
	}
	writeFileAtomic(t, rego, strings.ReplaceAll(shopAdmins, "/team/shop", "/team/other"))
	denied(create(shop, "/svc/shop/third"))
	if out, err := create(other, "/svc/shop/third"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	// The way back for who locked everybody out.
	local := exec.Command(filepath.Join(bin, "policyctl"), "--data-dir", filepath.Join(dir, "s", "data"), "audit", "query", "-o", "json")
	record, err := local.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, record)
	}
	for _, want := range []string{"spiffe://example.org/team/shop", "no rule of the admin policy allows it", "own-entries", "caler", "/spire.api.server.agent.v1.Agent/ListAgents"} {
		if !strings.Contains(string(record), want) {
			t.Errorf("%q is not on record", want)
		}
	}
}

// mintTo writes an SVID and the bundle into a directory.
func mintTo(t *testing.T, server *programs.Server, path string) string {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: path}}}, key)
	fail(err)
	resp, err := svidv1.NewSVIDClient(server.Admin()).MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: csr})
	fail(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	fail(err)
	bundle, err := server.Bundle(t.Context())
	fail(err)
	var chain, roots []byte
	for _, c := range resp.Svid.CertChain {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	for _, c := range bundle.X509Authorities() {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"svid.pem": chain, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "bundle.pem": roots} {
		fail(os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return dir
}
