package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/strictyaml"
)

const whole = `trust_domain: example.org
service: orders
workload_api: unix:///run/writ/agent.sock
inbound:
  listen: 0.0.0.0:8443
  app: unix:///run/orders/app.sock
  protocol: grpc
  max_connection_age: 1h
  max_head_bytes: 32768
upstreams:
  - name: payments
    listen: 127.0.0.1:9001
    address: payments.internal:8443
    spiffe_id: spiffe://example.org/svc/payments
    allow_uids: [1000]
control:
  address: writd:8444
policy:
  keys: [/etc/writ/decision.pem]
  dir: /var/lib/writ/policy
  max_age: 10m
  max_age_action: deny
audit:
  dir: /var/lib/writ/spool
  headers: [x-request-id, x-b3-*]
`

func TestWholeConfig(t *testing.T) {
	got := Default()
	at, err := strictyaml.Decode("f", []byte(whole), &got)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(at.Errorf); err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.TrustDomain, want.Service, want.WorkloadAPI = "example.org", "orders", "unix:///run/writ/agent.sock"
	want.Inbound = &Inbound{Listen: "0.0.0.0:8443", App: "unix:///run/orders/app.sock", Protocol: "grpc", MaxConnectionAge: time.Hour, MaxHeadBytes: 32768, Underscores: "strip"}
	want.Upstreams = []Upstream{{Name: "payments", Listen: "127.0.0.1:9001", Address: "payments.internal:8443", SPIFFEID: "spiffe://example.org/svc/payments", Protocol: "http", AllowUIDs: []int{1000}}}
	want.Control = Control{Address: "writd:8444", SPIFFEID: "spiffe://example.org/writ/server"}
	want.Policy.Keys, want.Policy.Dir, want.Policy.MaxAge, want.Policy.MaxAgeAction = []string{"/etc/writ/decision.pem"}, "/var/lib/writ/policy", 10*time.Minute, "deny"
	want.Audit.Dir, want.Audit.Headers = "/var/lib/writ/spool", []string{"x-request-id", "x-b3-*"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct{ name, old, new, want string }{
		{"trust domain with scheme", "trust_domain: example.org", "trust_domain: spiffe://example.org", "f:1:15: trust_domain: want the bare name"},
		{"trust domain in capitals", "trust_domain: example.org", "trust_domain: EXAMPLE", "f:1:15: trust_domain: "},
		{"no service", "service: orders\n", "", "service: missing"},
		{"workload api", "unix:///run/writ/agent.sock", "/run/agent.sock", "f:3:15: workload_api: want unix:///absolute/path"},
		{"app", "app: unix:///run/orders/app.sock", "app: unix:app.sock", "f:6:8: inbound.app: "},
		{"app without a port", "app: unix:///run/orders/app.sock", "app: localhost", `f:6:8: inbound.app: "localhost": want host:port`},
		{"app at port 0", "app: unix:///run/orders/app.sock", "app: 127.0.0.1:0", "port 0"},
		{"long socket path", "app: unix:///run/orders/app.sock", "app: unix:///" + strings.Repeat("x", 107), "a Unix socket address holds 107"},
		{"listen", "listen: 0.0.0.0:8443", "listen: 0.0.0.0:65536", "f:5:11: inbound.listen: "},
		{"upstream beyond loopback", "listen: 127.0.0.1:9001", "listen: 0.0.0.0:9001", "f:12:13: upstreams[0].listen: want a loopback ip:port"},
		{"upstream id", "spiffe_id: spiffe://example.org/svc/payments", "spiffe_id: payments", "f:14:16: upstreams[0].spiffe_id: "},
		{"upstream trust domain", "spiffe_id: spiffe://example.org/svc/payments", "spiffe_id: spiffe://example.org", "not a workload"},
		{"negative uid", "allow_uids: [1000]", "allow_uids: [-1]", "f:15:18: upstreams[0].allow_uids[0]: must be at least 0"},
		{"no keys", "  keys: [/etc/writ/decision.pem]\n", "", "policy.keys: missing"},
		{"header in capitals", "x-request-id", "X-Request-Id", "f:25:13: audit.headers[0]: "},
		{"star inside", "x-b3-*", "x-*-b3", "audit.headers[1]: "},
		{"two upstreams of one name", "control:", "  - {name: payments, listen: '127.0.0.1:9001', address: 'x:1', spiffe_id: spiffe://example.org/a}\ncontrol:", "upstreams[1].name: \"payments\" is there already"},
		{"two upstreams of one port", "control:", "  - {name: other, listen: '127.0.0.1:9001', address: 'x:1', spiffe_id: spiffe://example.org/a}\ncontrol:", "upstreams[1].listen: 127.0.0.1:9001 is taken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !strings.Contains(whole, tc.old) {
				t.Fatalf("%q is not in the sample", tc.old)
			}
			cfg := Default()
			at, err := strictyaml.Decode("f", []byte(strings.Replace(whole, tc.old, tc.new, 1)), &cfg)
			if err == nil {
				err = cfg.Validate(at.Errorf)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	cfg := Default()
	at, _ := strictyaml.Decode("f", []byte("admin: 0.0.0.0:1\ndrain: -1s\n"), &cfg)
	err := cfg.Validate(at.Errorf)
	for _, want := range []string{"this sidecar would do nothing", "f:1:8: admin: ", "f:2:8: drain: ", "trust_domain: missing", "control.address: missing", "audit.dir: missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
