package compile_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// compiled loads and compiles a policy in txtar form.
func compiled(t *testing.T, archive string) (*opa.Program, *program.Program, *compile.Report) {
	t.Helper()
	p, err := opa.Load(content(archive))
	if err != nil {
		t.Fatal(err)
	}
	prog, report, err := compile.Compile(t.Context(), p, compile.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := prog.Validate(); err != nil {
		t.Fatal(err)
	}
	return p, prog, report
}

// snippets are bodies of one rule of service orders, what becomes of it, and
// its clauses. Rules under it are helpers.
var snippets = []struct {
	name, body, helpers string
	result              string
	want                string
}{
	{name: "equality", body: `input.request.method == "GET"`, result: compile.Compiled, want: `request.method = GET`},
	{name: "never the type", body: `x := input.request.method; x == data.one`, result: compile.Never},
	{name: "membership", body: `input.request.method in {"HEAD", "GET"}`, result: compile.Compiled, want: `request.method = GET HEAD`},
	{name: "not in", body: `not input.request.method in ["GET"]`, result: compile.Compiled, want: "request.method, not request.method = GET"},
	{name: "not equal needs the field", body: `input.request.method != "GET"`, result: compile.Compiled, want: "request.method, not request.method = GET"},
	{name: "not of undefined holds", body: `not input.request.method == "GET"`, result: compile.Compiled, want: "not request.method = GET"},
	{name: "absent header", body: `not input.request.headers["x-a"]`, result: compile.Compiled, want: "not count(request.headers)(x-a)"},
	{name: "some header", body: "some v in input.request.headers[\"x-a\"]\n startswith(v, \"T-\")\n endswith(v, \"-9\")", result: compile.Compiled,
		want: "request.headers(x-a)[*] ^= T- & $= -9"},
	{name: "two headers' values", body: "some v in input.request.headers[\"x-a\"]\n startswith(v, \"a\")\n some w in input.request.headers[\"x-a\"]\n startswith(w, \"b\")", result: compile.Compiled,
		want: "request.headers(x-a)[*] ^= a, request.headers(x-a)[*] ^= b"},
	{name: "some value not", body: "some v in input.request.headers[\"x-a\"]\n not startswith(v, \"T-\")", result: compile.Compiled,
		want: "request.headers(x-a)[*] !^= T-"},
	{name: "no value", body: "not any_t", helpers: "any_t if {\n some v in input.request.headers[\"x-a\"]\n startswith(v, \"T-\")\n}", result: compile.Compiled,
		want: "not request.headers(x-a)[*] ^= T-"},
	{name: "every value", body: "every v in input.request.headers[\"x-a\"] { startswith(v, \"T-\") }", result: compile.Compiled,
		want: "not request.headers(x-a)[*] !^= T-, count(request.headers)(x-a)"},
	{name: "every constant", body: `every p in ["/a", "/b"] { not startswith(input.request.path, p) }`, result: compile.Compiled,
		want: "request.path, not request.path ^= /a, not request.path ^= /b"},
	{name: "array pattern", body: `["orders", _] = input.request.segments`, result: compile.Compiled,
		want: "request.segments[][0] = orders, count(request.segments) 2..2"},
	{name: "segment", body: `input.request.segments[0] == "orders"`, result: compile.Compiled, want: "request.segments[][0] = orders"},
	{name: "any segment", body: `"admin" in input.request.segments`, result: compile.Compiled, want: "request.segments[][*] = admin"},
	{name: "count", body: `count(input.request.segments) > 2`, result: compile.Compiled, want: "count(request.segments) 3.."},
	{name: "numbers", body: "input.destination.port >= 80\n input.destination.port < 443", result: compile.Compiled, want: "destination.port 80..442"},
	{name: "number and fraction", body: `input.destination.port > 1.5`, result: compile.Topdown, want: "ask: "},
	{name: "glob", body: `glob.match("/a/*", ["/"], input.request.path)`, result: compile.Compiled, want: "request.path glob /|/a/*"},
	{name: "glob without delimiters", body: `glob.match("*.example.org", [], input.request.host)`, result: compile.Compiled, want: "request.host glob .|*.example.org"},
	{name: "regex", body: `regex.match("^/a/[0-9]+$", input.request.path)`, result: compile.Compiled, want: "request.path ~ ^/a/[0-9]+$"},
	{name: "regex that does not compile", body: `regex.match(data.two, input.request.path)`, result: compile.Guarded, want: "ask: request.path"},
	{name: "regex of the input", body: `regex.match(input.request.host, "x")`, result: compile.Guarded, want: "ask: request.host"},
	{name: "network", body: `net.cidr_contains("10.0.0.0/8", input.connection.peer_ip)`, result: compile.Guarded,
		want: "ask: connection.peer_ip !address\nx: connection.peer_ip cidr 10.0.0.0/8"},
	{name: "error behind a condition", body: "input.request.method == \"PUT\"\n to_number(input.request.host) > 3\n input.source.id == \"a\"", result: compile.Guarded,
		want: "ask: request.method = PUT"},
	{name: "error first", body: "to_number(input.source.id) > 3\n input.request.method == \"PUT\"", result: compile.Topdown, want: "ask: "},
	{name: "order of texts", body: `input.source.id > "a"`, result: compile.Topdown, want: "ask: "},
	{name: "with", body: `input.source.id == "a" with input.source as {}`, result: compile.Topdown, want: "ask: "},
	{name: "text steps", body: `lower(trim_space(input.request.host)) == "a"`, result: compile.Compiled, want: "request.host |5 |1 = a"},
	{name: "trimmed", body: `trim_prefix(input.source.id, "spiffe://td/svc/") == "web"`, result: compile.Compiled, want: "source.id = spiffe://td/svc/web web"},
	{name: "trimmed is never with it", body: `trim_suffix(input.request.host, ":80") == "a:80"`, result: compile.Compiled, want: "request.host = a:80:80"},
	{name: "part of a text", body: `split(input.request.host, ".")[1] == "b"`, result: compile.Compiled, want: "request.host |9 . [1] = b"},
	{name: "any part", body: `some p in split(input.request.host, "."); p == "b"`, result: compile.Compiled, want: "request.host |9 . [-1] = b"},
	{name: "constants fold", body: `input.source.id == concat("", ["spiffe://", data.two, sprintf("%d", [count(data.list)])])`, result: compile.Compiled, want: "source.id = spiffe://[2"},
	{name: "comprehension over data", body: `input.request.method in {upper(m) | some m in data.list}`, result: compile.Compiled, want: "request.method = GET PUT"},
	{name: "comprehension counted", body: `count([s | some s in input.request.segments; s == "a"]) > 1`, result: compile.Topdown, want: "ask: "},
	{name: "comprehension that is not empty", body: `count([s | some s in input.request.segments; s == "a"]) > 0`, result: compile.Compiled, want: "request.segments[][*] = a"},
	{name: "comprehension that is empty", body: `count({s | some s in input.request.segments; s == "a"}) == 0`, result: compile.Compiled, want: "not request.segments[][*] = a"},
	{name: "in a comprehension", body: `"b" in {lower(v) | some v in input.request.headers["x-a"]}`, result: compile.Compiled, want: "request.headers(x-a)[*] |1 = b"},
	{name: "any of a comprehension", body: "vs := [lower(v) | some v in input.request.headers[\"x-a\"]]\n some v in vs\n startswith(v, \"t-\")", result: compile.Compiled, want: "request.headers(x-a)[*] |1 ^= t-"},
	{name: "comprehension in a helper", body: `"b" in tags`, helpers: `tags := {lower(v) | some v in input.request.headers["x-a"]}`, result: compile.Compiled, want: "request.headers(x-a)[*] |1 = b"},
	{name: "comprehension that may fail", body: `not 3 in {to_number(v) | some v in input.request.headers["x-a"]}`, result: compile.Guarded, want: "ask: request.headers(x-a)[*]\nx: "},
	{name: "no violations", body: `count(violations) == 0`, helpers: "violations contains \"a\" if input.request.method == \"PUT\"\nviolations contains \"b\" if not input.request.headers[\"x-a\"]", result: compile.Compiled,
		want: "not request.method = PUT, count(request.headers)(x-a)"},
	{name: "some violations", body: `count(violations) > 0`, helpers: "violations contains \"a\" if input.request.method == \"PUT\"\nviolations contains \"b\" if input.source.id == \"a\"", result: compile.Compiled,
		want: "request.method = PUT\nx: source.id = a"},
	{name: "none of many", body: `every m in data.list { lower(input.request.method) != m }`, result: compile.Compiled, want: "request.method, not request.method |1 = get put"},
	{name: "object.get", body: `object.get(input.request.headers, "x-a", ["none"])[0] == "none"`, result: compile.Compiled,
		want: "request.headers(x-a)[0] = none, count(request.headers)(x-a)\nx: not count(request.headers)(x-a), layer = request"},
	{name: "object.get path", body: `object.get(input.request.headers, ["x-a", 0], "") == "1"`, result: compile.Compiled, want: "request.headers(x-a)[0] = 1"},
	{name: "two fields", body: `input.source.trust_domain == split(input.destination.id, "/")[2]`, result: compile.Compiled,
		want: "destination.id |9 / [2] = source.trust_domain"},
	{name: "data by the input", body: `data.roles[input.source.id] == "admin"`, result: compile.Compiled, want: "source.id = ann bob"},
	{name: "data over and over", body: "some r in data.grants\n r.source == input.source.id\n input.request.method in r.methods", result: compile.Compiled,
		want: "request.method = GET HEAD, source.id = a\nx: request.method = GET, source.id = b"},
	{name: "clock", body: "time.now_ns() >= 5\n time.parse_rfc3339_ns(input.time) < 9", result: compile.Compiled, want: "time 5..8"},
	{name: "helper", body: "caller == \"web\"\n reading", helpers: "caller := trim_prefix(input.source.id, \"a/\")\nreading if input.request.method in {\"GET\"}", result: compile.Compiled,
		want: "request.method = GET, source.id = a/web web"},
	{name: "not a helper", body: "not reading", helpers: "reading if input.request.method == \"GET\"\nreading if input.request.path == \"/\"", result: compile.Compiled,
		want: "not request.method = GET, not request.path = /"},
	{name: "default", body: "role == \"none\"", helpers: "default role := \"none\"\nrole := \"admin\" if input.source.id == \"ann\"", result: compile.Compiled,
		want: "not source.id = ann"},
	{name: "else", body: "role == \"b\"", helpers: "role := \"a\" if {\n input.source.authn == \"none\"\n} else := \"b\" if {\n input.source.id == \"ann\"\n}", result: compile.Compiled,
		want: "source.id = ann, not source.authn = none"},
	{name: "values that cannot meet", body: "role == \"a\"", helpers: "role := \"a\" if input.source.id == \"ann\"\nrole := \"b\" if input.source.id == \"bob\"", result: compile.Compiled,
		want: "source.id = ann"},
	{name: "values that may meet", body: "role == \"a\"", helpers: "role := \"a\" if input.source.id == \"ann\"\nrole := \"b\" if input.source.authn == \"mtls\"", result: compile.Guarded,
		want: "ask: source.id = ann, source.authn = mtls\nx: source.id = ann"},
	{name: "function", body: "of(input.source.id, \"ann\")", helpers: "of(id, who) if id == who\nof(id, _) if startswith(id, \"root/\")", result: compile.Compiled,
		want: "source.id = ann\nx: source.id ^= root/"},
	{name: "set of a rule", body: "input.source.id in admins", helpers: "admins contains \"ann\"\nadmins contains input.source.id if input.source.path == \"/root\"", result: compile.Compiled,
		want: "source.id = ann\nx: source.path = /root"},
	{name: "object of a rule", body: "table[input.source.id] == 1", helpers: "table[x] := 1 if some x in data.list", result: compile.Compiled, want: "source.id = get put"},
	{name: "object of a rule over the input", body: "table[\"a\"] == 1", helpers: "table[x] := 1 if x := input.source.id", result: compile.Topdown, want: "ask: "},
	{name: "token", body: "some t in input.tokens\n t.issuer == \"idp\"\n t.claims.role == \"admin\"\n \"orders\" in t.audience", result: compile.Compiled,
		want: "token{token issuer = idp, token audience[*] = orders, token claim kind(role) = string, token claim(role) = admin}"},
	{name: "claim of any kind", body: "some t in input.tokens\n startswith(t.claims.role, \"admin\")", result: compile.Guarded,
		want: "ask: token{token claim kind(role) != string}\nx: token{token claim kind(role) = string, token claim(role) ^= admin}"},
	{name: "claim list", body: "some t in input.tokens\n \"admin\" in t.claims.roles", result: compile.Guarded,
		want: "ask: token{token claim kind(roles) = array object}\nx: token{token claim kind(roles) = strings, token claim item(roles)[*] = admin}"},
	{name: "contradiction", body: "input.request.method == \"GET\"\n input.request.method == \"PUT\"", result: compile.Never},
	{name: "known destination", body: `input.destination.service == "orders"`, result: compile.Compiled, want: ""},
	{name: "another destination", body: `input.destination.service == "payments"`, result: compile.Never},
	{name: "unknown header", body: `some name, _ in input.request.headers; startswith(name, "x-")`, result: compile.Guarded, want: "ask: layer = request"},
	{name: "result of a builtin", body: "a := startswith(input.source.id, \"a\")\n a == false", result: compile.Compiled, want: "not source.id ^= a"},
	{name: "id of data", body: "x", helpers: "x if input.source.id == data.list[_]", result: compile.Compiled, want: "source.id = get put"},
}

const snippetData = `-- data.json --
{"one": 1, "two": "[", "list": ["get", "put"], "roles": {"ann": "admin", "bob": "admin", "eve": "user"},
 "grants": [{"source": "a", "methods": ["GET", "HEAD"]}, {"source": "b", "methods": ["GET"]}]}
`

func snippetPolicy(body, helpers string) string {
	return catalogue + snippetData + "-- orders.rego --\npackage services.orders\n\nallow contains \"x\" if {\n" + body + "\n}\n\n" + helpers + "\n"
}

// TestSnippets: what each becomes, condition by condition.
func TestSnippets(t *testing.T) {
	for _, tt := range snippets {
		t.Run(tt.name, func(t *testing.T) {
			_, prog, report := compiled(t, snippetPolicy(tt.body, tt.helpers))
			got := strings.ReplaceAll(unitText(prog, prog.Units[0]), "service-allow ", "")
			want := tt.want
			if !strings.HasPrefix(want, "ask: ") && tt.result != compile.Never {
				want = "x: " + want
			}
			if tt.result != compile.Never {
				want += "\n"
			}
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("clauses (-want +got):\n%s", diff)
			}
			rule := report.Services[0].Rules[0]
			if rule.Result != tt.result || (rule.Why == "") != (tt.result == compile.Compiled) {
				t.Errorf("result %s, %q; want %s", rule.Result, rule.Why, tt.result)
			}
		})
	}
}

// TestBreakGlass: the conditions of an entry, its id and its end.
func TestBreakGlass(t *testing.T) {
	const entries = `-- writ/break_glass/data.json --
{"incident-7": {"service": "orders", "source_ids": ["a", "b"],
  "granted": "2030-01-01T12:00:00Z", "expires": "2030-01-01T13:00:00Z", "approvers": ["ann", "bob"], "ticket": "INC-7"}}
`
	_, prog, report := compiled(t, catalogue+strings.ReplaceAll(entries, `"a", "b"`, `"spiffe://example.org/a", "spiffe://example.org/b"`))
	want := "break-glass incident-7: source.id = spiffe://example.org/a spiffe://example.org/b, time 1893499200000000000..1893502799999999999, not source.authn = none\n"
	if got := unitText(prog, prog.Units[0]); got != want {
		t.Errorf("got %swant %s", got, want)
	}
	i := slices.IndexFunc(report.Services[0].Rules, func(r compile.RuleReport) bool { return r.ID == "incident-7" })
	if i < 0 || report.Services[0].Rules[i].Result != compile.Compiled {
		t.Errorf("report %+v", report.Services[0].Rules)
	}
}

// TestServicesApart: what depends on the service is compiled for each, also
// behind a helper that was followed before.
func TestServicesApart(t *testing.T) {
	_, prog, _ := compiled(t, `-- writ/services/data.json --
{"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}, "payments": {"spiffe_ids": ["spiffe://example.org/svc/payments"]}}
-- shop.rego --
package shop

ours if input.destination.service == "payments"
-- guard.rego --
package guardrails.apart

deny contains "always" if input.source.authn == "none"

deny contains "first" if {
	data.shop.ours
	input.source.id == "a"
}

deny contains "second" if {
	data.shop.ours
	input.source.id == "b"
}
`)
	const always = "guardrail always: source.authn = none\n"
	want := map[string]string{"orders": always, "payments": always + "guardrail first: source.id = a\nguardrail second: source.id = b\n"}
	for _, u := range prog.Units {
		if diff := cmp.Diff(want[u.Service], unitText(prog, u)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", u.Service, diff)
		}
	}
}
