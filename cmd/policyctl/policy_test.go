package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/server"
)

// policyCommand runs policyctl and returns what it wrote.
func policyCommand(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs}
	root := newRootCmd(a)
	if !hasCommand(root, "policy") {
		root.AddCommand(newPolicyCmd(a))
	}
	if !hasCommand(root, "decide") {
		root.AddCommand(newDecideCmd(a))
	}
	code = execute(t.Context(), root, args)
	return code, out.String(), errs.String()
}

// policyDir writes a policy directory whose orders service allows a method.
func policyDir(t *testing.T, method string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"data.json":        `{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`,
		"orders.rego":      "package services.orders\n\nallow contains \"method\" if input.request.method == \"" + method + "\"\n",
		"orders_test.rego": "package orders_test\n\ntest_method if data.services.orders.allow.method with input as {\"request\": {\"method\": \"" + method + "\"}}\n",
	} {
		writeTestFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

func writeTestFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startPolicyServer serves policy administration on a socket and returns it,
// with the file of the key that may publish.
func startPolicyServer(t *testing.T, change ...func(*server.Config)) (socket, keyFile string) {
	t.Helper()
	// A socket's path is short, a test's directory may not be.
	dir, err := os.MkdirTemp("", "writ")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	publisher := newKey()
	keys, err := bundle.NewKeys(&publisher.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(publisher)
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(dir, "publisher.pem")
	writeTestFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	db, err := sqldb.OpenSQLite(t.Context(), filepath.Join(dir, "writ.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	config := server.Config{
		DB: db, DecisionKey: newKey(), Publishers: owners.One(owners.Default, keys),
		Emit:   func(context.Context, identity.Act) error { return nil },
		Actor:  func(context.Context) string { return "unix:uid:7" },
		PeerID: func(context.Context) (spiffeid.ID, error) { return spiffeid.ID{}, errors.New("none") },
		Log:    slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&config)
	}
	s, err := server.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "admin.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(server.MaxMessageBytes), grpc.MaxSendMsgSize(server.MaxMessageBytes))
	s.RegisterAdmin(g)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(listener)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-served
		s.Close()
	})
	return socket, keyFile
}

const decideInput = `{"version": 1, "direction": "inbound", "layer": "request",
	"source": {"id": "spiffe://example.org/svc/web", "trust_domain": "example.org", "path": "/svc/web", "authn": "mtls"},
	"destination": {"service": "orders", "id": "", "port": 0},
	"request": {"protocol": "http", "method": "GET", "host": "", "path": "/", "segments": [], "query": {}, "headers": {}, "content_length": -1},
	"tokens": [], "token_status": "absent",
	"connection": {"peer_ip": "", "client_ip": "", "tls_version": "", "sni": "", "alpn": ""}}`

func TestPolicyRoundTrip(t *testing.T) {
	socket, key := startPolicyServer(t)
	get, post := policyDir(t, "GET"), policyDir(t, "POST")
	out := filepath.Join(t.TempDir(), "out")
	steps := []struct {
		args []string
		code int
		want string // in stdout, or in stderr when the code is 1
	}{
		{[]string{"policy", "show"}, 1, "no policy in force"},
		{[]string{"policy", "push", get}, 2, "signature: the bundle is not signed: give the publisher's key with --key"},
		{[]string{"policy", "push", "--key", key, "--dry-run", get}, 0, "no problems, 1 tests passed; nothing activated"},
		{[]string{"policy", "push", "--key", key, "-m", "first", get}, 0, "revision 1.1@"},
		{[]string{"policy", "push", "--key", key, get}, 0, "unchanged: revision 1.1@"},
		{[]string{"policy", "push", "--key", key, post}, 0, "revision 1.2@"},
		{[]string{"decide", "-f", "-"}, 0, "deny by default-deny, revision 1.2@"},
		{[]string{"decide", "-f", "-", "--revision", "1"}, 0, "rule: method  orders.rego:3"},
		{[]string{"policy", "rollback", "1", "-m", "back"}, 0, "revision 1.3@"},
		{[]string{"policy", "rollback", "99"}, 1, "no policy revision 99"},
		{[]string{"policy", "rollback", "x"}, 1, "want a number"},
		{[]string{"policy", "list"}, 0, "(rollback to 1) back"},
		{[]string{"policy", "show", "2"}, 0, "input.request.method == \"POST\""},
		{[]string{"policy", "show", "2", "--dir", out}, 0, "3 files written"},
		{[]string{"policy", "show", "2", "--dir", out}, 1, "is not empty"},
		{[]string{"policy", "check", out}, 0, "3 files, no problems"},
		{[]string{"policy", "push", "--key", filepath.Join(get, "orders.rego"), get}, 1, "not PEM"},
		{[]string{"policy", "push", "--key", key, t.TempDir()}, 2, "is this the policy directory? (--remove"},
		{[]string{"policy", "push", "--key", key, "--remove", get}, 1, "holds 3 files"},
		{[]string{"policy", "push", "--key", key, "--remove", t.TempDir()}, 0, "revision 1.4@"},
	}
	for _, step := range steps {
		code, stdout, stderr := policyCommand(t, decideInput, append(step.args, "--server", socket)...)
		text := stdout
		if step.code == 1 {
			text = stderr
		}
		if code != step.code || !strings.Contains(text, step.want) {
			t.Errorf("%v: code %d\n%s%s\nwant %d with %q", step.args, code, stdout, stderr, step.code, step.want)
		}
	}
}

func TestPolicyJSON(t *testing.T) {
	socket, key := startPolicyServer(t)
	dir := policyDir(t, "GET")
	var pushed struct {
		Revision string
		Number   int
		Problems []any
		Tests    struct{ Passed int }
	}
	jsonCommand(t, 0, &pushed, "policy", "push", "--key", key, dir, "--server", socket)
	if pushed.Number != 1 || pushed.Problems == nil || pushed.Tests.Passed != 1 {
		t.Errorf("push: %+v", pushed)
	}
	var list struct {
		Revisions []struct {
			Number int
			Active bool
			Author string
		}
	}
	jsonCommand(t, 0, &list, "policy", "list", "--server", socket)
	if len(list.Revisions) != 1 || !list.Revisions[0].Active || list.Revisions[0].Author != "unix:uid:7" {
		t.Errorf("list: %+v", list)
	}
	var decided struct {
		Verdict, Tier string
		Rules         []struct {
			ID, File string
			Line     int
		}
	}
	jsonCommand(t, 0, &decided, "decide", "-f", "-", "--server", socket)
	if decided.Verdict != "allow" || len(decided.Rules) != 1 || decided.Rules[0].Line != 3 {
		t.Errorf("decide: %+v", decided)
	}
	writeTestFile(t, filepath.Join(dir, "orders.rego"), "package services.orders\n\nallow if input.reqest.method == \"GET\"\n")
	var checked struct {
		OK       bool
		Problems []struct {
			File, Code, Message string
			Line, Column        int
		}
	}
	jsonCommand(t, 2, &checked, "policy", "check", dir)
	if checked.OK || len(checked.Problems) != 1 || checked.Problems[0].File != "orders.rego" || checked.Problems[0].Line != 3 {
		t.Errorf("check: %+v", checked)
	}
}

func jsonCommand(t *testing.T, want int, into any, args ...string) {
	t.Helper()
	code, stdout, stderr := policyCommand(t, decideInput, append(args, "--output", "json")...)
	if code != want {
		t.Errorf("%v: code %d: %s", args, code, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), into); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, stdout)
	}
}

func TestPolicyCheckAndTest(t *testing.T) {
	dir := policyDir(t, "GET")
	code, stdout, _ := policyCommand(t, "", "policy", "test", "--coverage", dir)
	if code != 0 || !strings.Contains(stdout, "1 passed, 0 failed, 0 skipped") || !strings.Contains(stdout, "coverage") {
		t.Errorf("test: %d\n%s", code, stdout)
	}
	writeTestFile(t, filepath.Join(dir, "more_test.rego"), "package more_test\n\ntest_no if {\n\tprint(\"here\")\n\tdata.services.orders.allow.method with input as {\"request\": {\"method\": \"PUT\"}}\n}\n\ntodo_test_later if true\n")
	code, stdout, _ = policyCommand(t, "", "policy", "test", dir)
	for _, want := range []string{"1 passed, 1 failed, 1 skipped", "more_test.rego:3:1: test: test_no failed", "here"} {
		if code != 2 || !strings.Contains(stdout, want) {
			t.Errorf("failing test: %d, want %q in\n%s", code, want, stdout)
		}
	}
	if code, _, stderr := policyCommand(t, "", "policy", "check", filepath.Join(dir, "none")); code != 1 || !strings.Contains(stderr, "no such file") {
		t.Errorf("no directory: %d %s", code, stderr)
	}
	writeTestFile(t, filepath.Join(dir, "data.json"), `{"writ": {"services": {"orders": {"spifee_ids": []}}}}`)
	code, stdout, _ = policyCommand(t, "", "policy", "check", dir)
	if want := `data.json:1:35: catalogue: services.orders.spifee_ids: unknown key: did you mean "spiffe_ids"?`; code != 2 || !strings.Contains(stdout, want) {
		t.Errorf("check: %d, want %q in\n%s", code, want, stdout)
	}
}

func TestDecideRefusesBadInput(t *testing.T) {
	code, _, stderr := policyCommand(t, `{"versio": 1}`, "decide", "-f", "-")
	if want := `-: input: unknown field "versio": did you mean "version"?`; code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("got %d %q, want %q", code, stderr, want)
	}
}
