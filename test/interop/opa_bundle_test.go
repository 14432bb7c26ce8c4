//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	writopa "github.com/writ-dev/writ/policy/opa"
)

// now is the time of requests that do not name another.
var now = time.Now().UTC().Truncate(time.Second)

func at(minutes int) string {
	return now.Add(time.Duration(minutes) * time.Minute).Format(time.RFC3339)
}

// tiers is a policy in which each tier speaks for some request.
var tiers = map[string]string{
	"data.json": `{"writ": {
		"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}, "silent": {"spiffe_ids": ["spiffe://example.org/svc/silent"]}},
		"break_glass": {
			"incident-7": {"service": "orders", "source_ids": ["spiffe://example.org/svc/me"],
				"granted": "` + at(-30) + `", "expires": "` + at(29) + `", "approvers": ["ann", "bob"], "ticket": "INC-7"},
			"incident-6": {"service": "orders", "source_ids": ["spiffe://example.org/svc/late"],
				"granted": "` + at(-300) + `", "expires": "` + at(-270) + `", "approvers": ["ann", "bob"], "ticket": "INC-6"}}}}`,
	"limits/data.yaml": "paths: [/a, /b]\nclosed: false\n",
	"absolute.rego": `package guardrails.absolute

deny contains "internal" if {
	input.layer == "request"
	input.request.segments[0] == "internal"
}
`,
	"overridable.rego": `package guardrails.overridable

deny_overridable if {
	input.layer == "request"
	input.request.segments[0] == "frozen"
}
`,
	"orders.rego": `package services.orders

allow contains "reads" if {
	input.request.method in {"GET", "HEAD"}
	input.request.path in data.limits.paths
}

allow contains "web" if {
	input.source.path == "/svc/web"
	to_number(input.request.headers["x-amount"][0]) < 10
}

deny contains "blocked" if input.source.path == "/svc/blocked"
`,
	"silent.rules.yaml": `service: silent
rules:
  - id: web-reads
    action: allow
    from:
      - names: [web]
    to:
      - methods: [GET, HEAD]
        paths: ["/orders/{*}", "/files/*"]
    expires: ` + at(1000) + `
  - id: old
    action: allow
    from: any
    to:
      - paths: [/old]
    expires: ` + at(-270) + `
  - id: writes-need-a-key
    action: deny
    from: any
    to:
      - methods: [POST]
        not_headers: {x-amount: ["*"]}
`,
	"orders_test.rego": "package orders_test\n\ntest_nothing if true\n",
}

// ask is a request to the policy above.
type ask struct {
	name, service, source, method, path, amount string
	layer                                       string
	// minutes after now.
	minutes int
}

var asks = []ask{
	{name: "absolute guardrail", service: "orders", source: "web", method: "GET", path: "/internal"},
	{name: "absolute guardrail over a broken glass", service: "orders", source: "me", method: "GET", path: "/internal"},
	{name: "broken glass", service: "orders", source: "me", method: "DELETE", path: "/frozen"},
	{name: "glass that is whole again", service: "orders", source: "late", method: "DELETE", path: "/frozen"},
	{name: "overridable guardrail", service: "orders", source: "web", method: "GET", path: "/frozen"},
	{name: "service deny", service: "orders", source: "blocked", method: "GET", path: "/a"},
	{name: "service allow", service: "orders", source: "other", method: "GET", path: "/a"},
	{name: "service allow by two rules", service: "orders", source: "web", method: "GET", path: "/a", amount: "9"},
	{name: "default deny", service: "orders", source: "other", method: "PUT", path: "/a"},
	{name: "error", service: "orders", source: "web", method: "PUT", path: "/a", amount: "many"},
	{name: "no rule", service: "silent", source: "web", method: "GET", path: "/a"},
	{name: "YAML rule allows", service: "silent", source: "web", method: "GET", path: "/orders/7"},
	{name: "YAML rule denies", service: "silent", source: "web", method: "POST", path: "/orders/7"},
	{name: "YAML rules are silent", service: "silent", source: "web", method: "POST", path: "/orders/7", amount: "1"},
	{name: "YAML rule before it expired", service: "silent", source: "web", method: "GET", path: "/old", minutes: -280},
	{name: "YAML rule that expired", service: "silent", source: "web", method: "GET", path: "/old"},
	{name: "YAML rule that will expire", service: "silent", source: "web", method: "GET", path: "/orders/7", minutes: 1e6},
	{name: "glass that was broken then", service: "orders", source: "late", method: "DELETE", path: "/frozen", minutes: -280},
	{name: "glass that was not yet broken", service: "orders", source: "me", method: "DELETE", path: "/frozen", minutes: -280},
	{name: "no service", service: "unknown", source: "web", method: "GET", path: "/a"},
	{name: "connection", service: "orders", source: "web", layer: policy.LayerConnection},
}

func (a ask) input(t *testing.T) *policy.Input {
	t.Helper()
	in := &policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest, Time: now.Add(time.Duration(a.minutes) * time.Minute), TokenStatus: policy.TokenAbsent,
		Source:      policy.Source{ID: "spiffe://example.org/svc/" + a.source, TrustDomain: "example.org", Path: "/svc/" + a.source, Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: a.service, ID: "spiffe://example.org/svc/" + a.service},
		Connection:  policy.Connection{PeerIP: "127.0.0.1", TLSVersion: "1.3"},
	}
	if a.layer != "" {
		in.Layer = a.layer
		return in
	}
	in.Request = policy.Request{Protocol: policy.HTTP, Method: a.method, Path: a.path, Host: a.service,
		Segments: strings.Split(strings.TrimPrefix(a.path, "/"), "/"), ContentLength: -1}
	headers := policy.MapValues{}
	if a.amount != "" {
		headers["x-amount"] = []string{a.amount}
	}
	in.Request.Headers, in.Request.Query = headers, policy.MapValues{}
	return in
}

// verdict is what both sides say of a decision.
type verdict struct {
	Verdict, Tier string
	Rules         []string
}

// Bundles go both ways: stock OPA decides with ours as we do, and takes no
// other than what was signed; and what stock OPA builds and signs is ours to
// check.
func TestOPABundles(t *testing.T) {
	opa, policyctl := program(t, "opa"), program(t, "policyctl")
	dir := shortDir(t)
	for name, text := range tiers {
		file := filepath.Join(dir, "policy", name)
		check(t, os.MkdirAll(filepath.Dir(file), 0o755))
		check(t, os.WriteFile(file, []byte(text), 0o600))
	}
	private, public := keyPair(t, dir)
	sources := filepath.Join(dir, "policy")
	content, err := bundle.ReadDir(sources)
	check(t, err)
	ours, err := writopa.Load(content)
	check(t, err)
	snapshot, err := ours.Snapshot(writopa.SnapshotConfig{Timeout: time.Minute})
	check(t, err)

	t.Run("whole", func(t *testing.T) {
		file := filepath.Join(dir, "whole.tar.gz")
		output(t, policyctl, "policy", "build", sources, "--out", file, "--key", private)
		client := serveOPA(t, opa, filepath.Join(dir, "whole.sock"), file, public)
		for _, a := range asks {
			t.Run(a.name, func(t *testing.T) { sameDecision(t, client, snapshot.Decider, a.input(t)) })
		}
	})
	t.Run("one service", func(t *testing.T) {
		file := filepath.Join(dir, "orders.tar.gz")
		output(t, policyctl, "policy", "build", sources, "--out", file, "--key", private, "--service", "orders")
		client := serveOPA(t, opa, filepath.Join(dir, "orders.sock"), file, public)
		for _, a := range asks {
			if a.service == "orders" {
				t.Run(a.name, func(t *testing.T) { sameDecision(t, client, snapshot.Decider, a.input(t)) })
			}
		}
	})
	t.Run("another's signature", func(t *testing.T) {
		_, other := keyPair(t, t.TempDir())
		cmd := exec.CommandContext(bounded(t, time.Minute), opa, runArgs(filepath.Join(dir, "no.sock"), filepath.Join(dir, "whole.tar.gz"), other)...)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "verif") {
			t.Errorf("OPA takes it: %v\n%s", err, out)
		}
	})
	t.Run("built by OPA", func(t *testing.T) {
		file := filepath.Join(dir, "theirs.tar.gz")
		output(t, opa, "build", "--bundle", sources, "--signing-key", private, "--signing-alg", "ES256", "--output", file)
		output(t, policyctl, "policy", "check", "--verification-key", public, file)
		theirs, err := os.ReadFile(file)
		check(t, err)
		archive, err := bundle.ReadArchive(theirs)
		check(t, err)
		program, err := writopa.Load(archive.Content)
		check(t, err)
		decider, err := program.Snapshot(writopa.SnapshotConfig{Timeout: time.Minute})
		check(t, err)
		for _, a := range asks {
			if strings.HasPrefix(a.name, "YAML") {
				continue // opa build leaves files out that it does not know.
			}
			in := a.input(t)
			if diff := cmp.Diff(decided(t, snapshot.Decider, in), decided(t, decider.Decider, in)); diff != "" {
				t.Errorf("%s: from files (-), from OPA's bundle (+):\n%s", a.name, diff)
			}
		}
	})
}

func keyPair(t *testing.T, dir string) (private, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	check(t, err)
	private, public = filepath.Join(dir, "publisher.pem"), filepath.Join(dir, "publisher.pub.pem")
	check(t, os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	check(t, os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), 0o600))
	return private, public
}

func runArgs(socket, file, public string) []string {
	return []string{"run", "--server", "--addr", "unix://" + socket, "--bundle", file,
		"--verification-key", public, "--signing-alg", "ES256", "--skip-known-schema-check", "--disable-telemetry"}
}

// serveOPA runs stock OPA with a signed bundle.
func serveOPA(t *testing.T, opa, socket, file, public string) *http.Client {
	t.Helper()
	cmd := exec.Command(opa, runArgs(socket, file, public)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	check(t, cmd.Start())
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("opa said:\n%s", log.String())
		}
	})
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if resp, err := client.Get("http://opa/health?bundles"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return client
			}
		}
		select {
		case <-exited:
			t.Fatalf("opa ended:\n%s", log.String())
		case <-deadline.C:
			t.Fatalf("opa does not answer")
		case <-tick.C:
		}
	}
}

func decided(t *testing.T, d policy.Decider, in *policy.Input) verdict {
	t.Helper()
	var out policy.Decision
	d.Decide(t.Context(), in, &out)
	v := verdict{Verdict: out.Verdict.String(), Tier: out.Tier.String()}
	for _, r := range out.Rules {
		v.Rules = append(v.Rules, r.ID)
	}
	slices.Sort(v.Rules)
	v.Rules = slices.Compact(v.Rules)
	return v
}

// sameDecision asks stock OPA as a user of it would. Where we say error, OPA's
// answer is one.
func sameDecision(t *testing.T, client *http.Client, ours policy.Decider, in *policy.Input) {
	t.Helper()
	want := decided(t, ours, in)
	encoded, err := policy.EncodeInput(in)
	check(t, err)
	body, err := json.Marshal(map[string]json.RawMessage{"input": encoded})
	check(t, err)
	resp, err := client.Post("http://opa/v1/data/writ/decision?strict-builtin-errors=true", "application/json", bytes.NewReader(body))
	check(t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	check(t, err)
	if want.Verdict == policy.Error.String() {
		if resp.StatusCode != http.StatusInternalServerError {
			t.Errorf("OPA answers %s to what is an error:\n%s", resp.Status, answer)
		}
		return
	}
	var theirs struct{ Result *verdict }
	check(t, json.Unmarshal(answer, &theirs))
	if theirs.Result == nil {
		t.Fatalf("OPA answers %s:\n%s", resp.Status, answer)
	}
	slices.Sort(theirs.Result.Rules)
	if len(theirs.Result.Rules) == 0 {
		theirs.Result.Rules = nil
	}
	if diff := cmp.Diff(want, *theirs.Result); diff != "" {
		t.Errorf("ours (-), OPA's (+):\n%s", diff)
	}
}
