package mesh

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const small = `
trust_domain: example.org
policy: policy
services:
  - name: web
    command: [web, --listen, ":{port}", --shop, "{upstream.shop}", "{dir}"]
    upstreams: [{service: shop}, {service: pay.v2, port: 9003}]
    env: {SHOP: "http://{upstream.shop}/", JSON: '{"a":1}'}
    dir: srv
  - name: shop
    address: 127.0.0.1:9001
    mode: observe
    observe_until: 2030-01-31
    path: allow-double-slash
  - name: pay.v2
    command: [pay]
    port: 9002
    protocol: grpc
    spiffe_id: spiffe://example.org/ns/pay
  - name: me
    upstreams: [{service: shop}]
requests:
  - {caller: web, target: shop, path: "/a?b=c", headers: {x-team: red}, expected: allow}
  - {caller: web, target: pay.v2, path: /pay.v1.Pay/Charge, expected: deny}
  - {caller: none, target: shop, method: DELETE, path: //x/../y, expected: refused}
`

func TestModeAt(t *testing.T) {
	end := time.Date(2030, 1, 31, 0, 0, 0, 0, time.UTC)
	s := Service{Mode: Observe, ObserveUntil: end}
	for at, want := range map[time.Time]string{end.Add(-1): Observe, end: Enforce, end.Add(1): Enforce} {
		if got := s.ModeAt(at); got != want {
			t.Errorf("%s at %s, want %s", got, at, want)
		}
	}
	if got := (&Service{Mode: Enforce}).ModeAt(end); got != Enforce {
		t.Errorf("enforce is %q", got)
	}
}

func TestParse(t *testing.T) {
	m, err := Parse("/mesh/mesh.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	want := &Mesh{
		TrustDomain: "example.org",
		Policy:      "/mesh/policy",
		Services: []Service{
			{
				Name: "web", Protocol: HTTP, Mode: Enforce, Path: "strict", Dir: "/mesh/srv",
				Command:   []string{"web", "--listen", ":{port}", "--shop", "{upstream.shop}", "{dir}"},
				SPIFFEID:  "spiffe://example.org/svc/web",
				Upstreams: []Upstream{{Service: "shop"}, {Service: "pay.v2", Port: 9003}},
				Env:       map[string]string{"SHOP": "http://{upstream.shop}/", "JSON": `{"a":1}`},
			},
			{
				Name: "shop", Address: "127.0.0.1:9001", Protocol: HTTP, Mode: Observe, Path: "allow-double-slash", Dir: "/mesh",
				ObserveUntil: time.Date(2030, 1, 31, 0, 0, 0, 0, time.UTC),
				SPIFFEID:     "spiffe://example.org/svc/shop",
			},
			{Name: "pay.v2", Command: []string{"pay"}, Port: 9002, Protocol: GRPC, Mode: Enforce, Path: "strict", Dir: "/mesh", SPIFFEID: "spiffe://example.org/ns/pay"},
			{Name: "me", Dir: "/mesh", SPIFFEID: "spiffe://example.org/svc/me", Upstreams: []Upstream{{Service: "shop"}}},
		},
		Requests: []Request{
			{Caller: "web", Target: "shop", Method: "GET", Path: "/a?b=c", Headers: map[string]string{"x-team": "red"}, Expected: Allowed},
			{Caller: "web", Target: "pay.v2", Method: "POST", Path: "/pay.v1.Pay/Charge", Expected: Denied},
			{Caller: "none", Target: "shop", Method: "DELETE", Path: "//x/../y", Expected: Refused},
		},
	}
	if diff := cmp.Diff(want, m, cmpopts.IgnoreUnexported(Mesh{}, Service{})); diff != "" {
		t.Errorf("mesh (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{"web": "127.0.0.1:0", "shop": "127.0.0.1:9001", "pay.v2": "127.0.0.1:9002", "me": ""} {
		if got := m.Service(name).App(); got != want {
			t.Errorf("application of %s at %q, want %q", name, got, want)
		}
	}
	if got := m.Service("pay.v2").ID().String(); got != "spiffe://example.org/ns/pay" {
		t.Errorf("ID %q", got)
	}
}

func TestExpand(t *testing.T) {
	m, err := Parse("/mesh/mesh.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	web := m.Service("web")
	web.Port, web.Upstreams[0].Port = 81, 82
	argv, env := web.Expand("/bin/policyctl")
	if diff := cmp.Diff([]string{"web", "--listen", ":81", "--shop", "127.0.0.1:82", "/mesh/srv"}, argv); diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
	want := []string{
		`JSON={"a":1}`, "PORT=81", "SHOP=http://127.0.0.1:82/",
		"WRIT_UPSTREAM_PAY_V2=127.0.0.1:9003", "WRIT_UPSTREAM_SHOP=127.0.0.1:82",
	}
	if diff := cmp.Diff(want, env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	// Each case replaces a piece of the small mesh.
	for _, tc := range []struct{ name, old, new, want string }{
		{"no trust domain", "trust_domain: example.org\n", "", `m:1:1: trust_domain: missing: give one such as example.org`},
		{"trust domain as ID", ": example.org\n", ": spiffe://example.org\n", `m:2:15: trust_domain: want the name alone: "example.org"`},
		{"bad trust domain", ": example.org\n", ": Example\n", `m:2:15: trust_domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores`},
		{"no policy", "policy: policy\n", "", `m:1:1: policy: missing: name the directory of the policy sources`},
		{"short authority", "policy: policy", "policy: policy\nsvid_ttl: 20s\nca_ttl: 30s", `m:5:9: ca_ttl: 30s is shorter than 40s`},
		{"short life", "policy: policy", "policy: policy\nsvid_ttl: 9s", `m:4:11: svid_ttl: 9s is shorter than 10s`},
		{"recorded header", "policy: policy", "policy: policy\nrecord: {headers: [X-Team]}", `m:4:20: record.headers[0]: "X-Team" is not a header name in lower case`},
		{"unknown key", "    command: [pay]", "    comand: [pay]", `m:16:5: services[2].comand: unknown key: did you mean "command"?`},
		{"name twice", "name: me", "name: web", `m:20:11: services[3].name: "web" is the name of two services`},
		{"name none", "name: me", "name: none", `m:20:11: services[3].name: "none" means a caller without an SVID`},
		{"name of ours", "name: me", "name: writd", `m:20:11: services[3].name: "writd" is a program of Writ itself`},
		{"name with slash", "name: me", "name: a/b", `m:20:11: services[3].name: "a/b": want lower-case letters, digits, '-', '_' and '.', a letter or digit at both ends, at most 63`},
		{"dots for a name", "name: me", "name: ..", `m:20:11: services[3].name: "..": want lower-case`},
		{"command and address", "    address: 127.0.0.1:9001", "    address: 127.0.0.1:9001\n    command: [shop]", `m:11:14: services[1].address: command is given too: a service is either run here or found at an address`},
		{"port beside address", "    address: 127.0.0.1:9001", "    address: 127.0.0.1:9001\n    port: 1", `m:12:11: services[1].port: has no effect here: the address says it`},
		{"address without port", "127.0.0.1:9001", "127.0.0.1", `m:11:14: services[1].address: "127.0.0.1": want host:port`},
		{"address with port 0", "127.0.0.1:9001", "127.0.0.1:0", `m:11:14: services[1].address: "127.0.0.1:0": want host:port`},
		{"nothing at all", "upstreams: [{service: shop}]", "spiffe_id: spiffe://example.org/me", `m:20:5: services[3]: "me" neither runs (command), nor listens (address), nor calls anyone (upstreams)`},
		{"client with mode", "name: me", "name: me\n    mode: enforce", `m:21:11: services[3].mode: has no effect here: a service with neither command nor address only calls others`},
		{"observe without date", "    observe_until: 2030-01-31\n", "", `m:12:11: services[1].mode: observe needs observe_until: a date such as 2030-01-31 at which it ends by itself`},
		{"date without observe", "mode: observe\n", "mode: enforce\n", `m:13:20: services[1].observe_until: has no effect here: mode is enforce`},
		{"same port", "port: 9003", "port: 9002", `m:17:11: services[2].port: port 9002 is also services[0].upstreams[1].port`},
		{"port of the address", "port: 9003", "port: 9001", `m:11:14: services[1].address: port 9001 is also services[0].upstreams[1].port`},
		{"port too large", "port: 9003", "port: 90030", `m:7:58: services[0].upstreams[1].port: 90030 is not a port (1 to 65535)`},
		{"ID of another domain", "spiffe://example.org/ns/pay", "spiffe://example.com/ns/pay", `m:19:16: services[2].spiffe_id: "spiffe://example.com/ns/pay" is not in trust domain "example.org"`},
		{"ID of the domain", "spiffe://example.org/ns/pay", "spiffe://example.org", `m:19:16: services[2].spiffe_id: "spiffe://example.org" names the trust domain, not a workload`},
		{"ID twice", "spiffe://example.org/ns/pay", "spiffe://example.org/svc/web", `m:19:16: services[2].spiffe_id: "spiffe://example.org/svc/web" is the ID of web too`},
		{"unknown upstream", "upstreams: [{service: shop}, ", "upstreams: [{service: shop}, {service: shpo}, ", `m:7:44: services[0].upstreams[1].service: no service is called "shpo": did you mean "shop"?`},
		{"upstream twice", "upstreams: [{service: shop}, ", "upstreams: [{service: shop}, {service: shop}, ", `m:7:44: services[0].upstreams[1].service: "shop" is listed twice`},
		{"client as upstream", "upstreams: [{service: shop}, ", "upstreams: [{service: shop}, {service: me}, ", `m:7:44: services[0].upstreams[1].service: "me" has neither command nor address, so nobody can call it`},
		{"unknown word", "{upstream.shop}\"", "{upstream.shap}\"", `m:6:49: services[0].command[4]: {upstream.shap}: "shap" is not an upstream of "web": did you mean "shop"?`},
		{"unknown target", "caller: web, target: shop", "caller: web, target: sho", `m:23:27: requests[0].target: no service is called "sho": did you mean "shop"?`},
		{"unknown caller", "caller: web, target: shop", "caller: wob, target: shop", `m:23:14: requests[0].caller: no service is called "wob": did you mean "web"?`},
		{"caller without upstream", "caller: web, target: shop", "caller: pay.v2, target: shop", `m:23:14: requests[0].caller: "pay.v2" cannot call "shop": add it to the upstreams of "pay.v2"`},
		{"no expectation", ", expected: refused", "", `m:25:5: requests[2].expected: missing: say what the verdict must be (allow, deny, refused or error)`},
		{"wrong expectation", "expected: refused", "expected: denied", `m:25:76: requests[2].expected: "denied" is not one of allow, deny, refused, error: did you mean "deny"?`},
		{"space in a path", "//x/../y", `"/a b"`, `m:25:56: requests[2].path: "/a b": want a path that begins with / and holds no space, control character or #`},
		{"call by path", "/pay.v1.Pay/Charge", "/charge", `m:24:41: requests[1].path: "/charge": pay.v2 speaks gRPC, want /package.Service/Method`},
		{"call with a method", "target: pay.v2,", "target: pay.v2, method: GET,", `m:24:43: requests[1].method: a gRPC call has none: its method is in the path`},
		{"header split", "x-team: red", `x-team: "a\r\nb: c"`, `m:23:67: requests[0].headers.x-team: "a\r\nb: c" cannot be a header value`},
		{"header of ours", "x-team: red", `Host: x`, `m:23:65: requests[0].headers.Host: "Host" cannot be chosen`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if n := strings.Count(small, tc.old); n != 1 {
				t.Fatalf("%q stands %d times in the mesh", tc.old, n)
			}
			_, err := Parse("m", []byte(strings.Replace(small, tc.old, tc.new, 1)))
			if err == nil {
				t.Fatal("accepted")
			}
			if first, _, _ := strings.Cut(err.Error(), "\n"); !strings.HasPrefix(first, tc.want) {
				t.Errorf("got  %s\nwant %s", first, tc.want)
			}
		})
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := Parse("m", []byte("services: [{name: a}, {name: b, command: [b], port: -1}]"))
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("want trust domain, policy, a and port reported, got:\n%v", err)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "policy"); m.Policy != want {
		t.Errorf("policy %q, want %q", m.Policy, want)
	}
}

// FuzzParse holds that an accepted mesh is consistent: names and IDs are unique
// and every reference leads somewhere.
func FuzzParse(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte("trust_domain: a\npolicy: p\nservices: [{name: a, command: [x]}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse("m", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "m:") {
				t.Fatalf("an error without a place: %v", err)
			}
			return
		}
		ids := map[string]bool{}
		for _, s := range m.Services {
			if s.ID().TrustDomain() != m.Domain() || ids[s.SPIFFEID] || filepath.Base(s.Name) != s.Name {
				t.Fatalf("service %+v", s)
			}
			ids[s.SPIFFEID] = true
			for _, u := range s.Upstreams {
				if up := m.Service(u.Service); up == nil || !up.Listens() {
					t.Fatalf("upstream %q of %q", u.Service, s.Name)
				}
			}
			s.Expand("policyctl")
		}
		for _, r := range m.Requests {
			if strings.ContainsAny(r.Method+r.Path, " \r\n") || m.Service(r.Target) == nil {
				t.Fatalf("request %+v", r)
			}
		}
	})
}
