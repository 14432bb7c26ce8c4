package opa_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// written is a rules file with one rule for orders, given as a flow mapping
// without its braces.
func written(rule string) string {
	return "\n-- orders.rules.yaml --\nservice: orders\nrules:\n  - {id: r, " + rule + "}\n"
}

// TestWrittenConditions holds each condition of YAML rules to a request that
// meets it and one that does not. Of a rule that denies it is the deny.
func TestWrittenConditions(t *testing.T) {
	type change = func(*policy.Input)
	source := func(id string) change {
		return func(in *policy.Input) { in.Source.ID = id }
	}
	path := func(segments ...string) change {
		return func(in *policy.Input) { in.Request.Segments = segments }
	}
	header := func(values ...string) change {
		return func(in *policy.Input) { in.Request.Headers = policy.MapValues{"x-env": values} }
	}
	noHeader := func(*policy.Input) {}
	ip := func(text string) change {
		return func(in *policy.Input) { in.Connection.PeerIP = text }
	}
	client := func(text string) change {
		return func(in *policy.Input) { in.Connection.ClientIP = text }
	}
	method := func(m string) change { return func(in *policy.Input) { in.Request.Method = m } }
	host := func(h string) change { return func(in *policy.Input) { in.Request.Host = h } }
	port := func(n int) change { return func(in *policy.Input) { in.Destination.Port = n } }
	length := func(n int64) change { return func(in *policy.Input) { in.Request.ContentLength = n } }
	clock := func(text string) change {
		return func(in *policy.Input) {
			var err error
			if in.Time, err = time.Parse(time.RFC3339, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	connection := func(in *policy.Input) { in.Layer, in.Request = policy.LayerConnection, policy.Request{} }
	grpc := func(service, method string) change {
		return func(in *policy.Input) {
			in.Request.Protocol, in.Request.GRPCService, in.Request.GRPCMethod = policy.GRPC, service, method
		}
	}
	tokens := func(list ...policy.Token) change {
		return func(in *policy.Input) { in.Tokens, in.TokenStatus = list, policy.TokenValid }
	}
	role := func(v any) policy.Token {
		return policy.Token{Issuer: "https://id", Subject: "ann", Claims: map[string]any{"role": v}}
	}
	const allow, deny = "action: allow, from: any, ", "action: deny, from: any, "
	from := func(entry string) string { return "action: allow, from: [{" + entry + "}]" }
	denyFrom := func(entry string) string { return "action: deny, from: [{" + entry + "}]" }
	tests := []struct {
		rule      string
		yes, noes []change
	}{
		{from(`spiffe_ids: ["spiffe://example.org/svc/web"]`), []change{noHeader, connection},
			[]change{source("spiffe://example.org/svc/web2"), source("")}},
		{from(`spiffe_ids: ["spiffe://example.org/ns/*/sa/web", "spiffe://example.org/svc/batch-*"]`),
			[]change{source("spiffe://example.org/ns/a/sa/web"), source("spiffe://example.org/svc/batch-7")},
			[]change{source("spiffe://example.org/ns/a/b/sa/web"), source("spiffe://example.org/ns/a/sa/web2"), source("xspiffe://example.org/ns/a/sa/web"), source("spiffe://exampleXorg/ns/a/sa/web")}},
		{from(`spiffe_ids: ["spiffe://example.org/ns/a/**"]`), []change{source("spiffe://example.org/ns/a/x"), source("spiffe://example.org/ns/a/x/y")},
			[]change{source("spiffe://example.org/ns/a"), source("spiffe://example.org/ns/ab/x")}},
		{from(`trust_domains: [example.org]`), []change{noHeader}, []change{func(in *policy.Input) { in.Source.TrustDomain = "other.org" }}},
		{from(`namespaces: [a]`), []change{source("spiffe://example.org/ns/a/sa/x")}, []change{source("spiffe://other.org/ns/a/sa/x"), source("spiffe://example.org/ns/b/sa/x")}},
		{from(`service_accounts: [a/x]`), []change{source("spiffe://example.org/ns/a/sa/x")}, []change{source("spiffe://other.org/ns/a/sa/x"), source("spiffe://example.org/ns/a/sa/y")}},
		{from(`names: [web]`), []change{noHeader}, []change{source("spiffe://other.org/svc/web")}},
		{from(`not_names: [web]`), []change{source("spiffe://other.org/svc/web")}, []change{noHeader}},
		// Inside an entry all hold, over entries one.
		{from(`names: [web], cidrs: [10.0.0.0/8]`), []change{ip("10.1.2.3")}, []change{ip("127.0.0.1")}},
		{from(`cidrs: [10.0.0.0/8]}, {names: [web]`), []change{noHeader, func(in *policy.Input) { in.Source.ID = "x"; in.Connection.PeerIP = "10.0.0.1" }}, []change{source("x")}},

		{from(`cidrs: [10.0.0.0/8, "2001:db8::/32"]`), []change{ip("10.1.2.3"), ip("2001:db8::1"), ip("::ffff:10.1.2.3")}, []change{ip("11.0.0.1"), ip(""), ip("nonsense"), ip("10.0.0.0/8"), ip("10.0.0.1%eth0")}},
		{from(`not_cidrs: [10.0.0.0/8]`), []change{ip("11.0.0.1"), ip("::1")}, []change{ip("10.0.0.1"), ip(""), ip("nonsense"), ip("12.0.0.0/8")}},
		{denyFrom(`client_cidrs: [10.0.0.0/8]`), []change{client("10.0.0.1"), client("nonsense")}, []change{client("11.0.0.1"), client("")}},
		{denyFrom(`not_client_cidrs: [10.0.0.0/8]`), []change{client("11.0.0.1"), client("nonsense"), client("")}, []change{client("10.0.0.1")}},

		{from(`claims: {role: [admin]}, token_issuers: ["https://id"]`), []change{tokens(role("admin")), tokens(role([]any{"x", "admin"}))},
			[]change{tokens(), tokens(role("user")), tokens(role(7)), tokens(role([]any{7})), tokens(policy.Token{Issuer: "https://id"}, policy.Token{Issuer: "x", Claims: map[string]any{"role": "admin"}})}},
		{denyFrom(`not_token_issuers: ["https://id"]`), []change{tokens(), tokens(policy.Token{Issuer: "x"})}, []change{tokens(policy.Token{Issuer: "x"}, policy.Token{Issuer: "https://id"})}},
		{denyFrom(`not_claims: {role: [admin, user]}`), []change{tokens(), tokens(role("x"))}, []change{tokens(role("user"))}},

		{allow + `to: [{methods: [GET, HEAD]}]`, []change{noHeader}, []change{method("POST"), connection}},
		{allow + `to: [{not_methods: [GET]}]`, []change{method("POST")}, []change{noHeader, connection}},
		{deny + `to: [{not_methods: [GET]}]`, []change{method("POST")}, []change{noHeader, connection}},
		{allow + `to: [{methods: [GET], paths: ["/a"]}, {methods: [POST]}]`, []change{path("a"), method("POST")}, []change{noHeader}},
		{allow + `to: [{paths: ["/"]}]`, []change{path()}, []change{path(""), path("a"), connection}},
		{allow + `to: [{paths: ["/a/{*}"]}]`, []change{path("a", "x"), path("a", "x/y")}, []change{path("a"), path("a", ""), path("a", "x", "y")}},
		{allow + `to: [{paths: ["/a/*"]}]`, []change{path("a", "x"), path("a", ""), path("a", "x", "y")}, []change{path("a"), path("b", "x")}},
		{allow + `to: [{paths: ["/a/{**}/z"]}]`, []change{path("a", "z"), path("a", "x", "y", "z")}, []change{path("a"), path("z"), path("a", "z", "y")}},
		{allow + `to: [{paths: ["/a/{**}/m/*"]}]`, []change{path("a", "m", "x"), path("a", "x", "m", "y", "m")}, []change{path("a", "m"), path("a", "x", "m"), path("a")}},
		{allow + `to: [{paths: ["/v*.json"]}]`, []change{path("v1.json"), path("v.json")}, []change{path("v1xjson"), path("xv1.json"), path("v1.json", "")}},
		{allow + `to: [{not_paths: ["/a/{**}"]}]`, []change{path("b"), path()}, []change{path("a"), path("a", "x"), connection}},
		{allow + `to: [{hosts: [Shop.example.org, "*.internal"]}]`, []change{host("shop.EXAMPLE.org:8443"), host("a.b.internal")}, []change{host("xshop.example.org"), host("internal"), host("")}},
		{allow + `to: [{headers: {x-env: [prod, "T-*"]}}]`, []change{header("prod"), header("x", "T-1")}, []change{noHeader, header("prod2"), header()}},
		{allow + `to: [{not_headers: {x-env: [prod]}}]`, []change{noHeader, header("x"), header()}, []change{header("x", "prod"), connection}},
		{allow + `to: [{headers: {x-env: ["*"]}}]`, []change{header("")}, []change{noHeader, header()}},
		{allow + `to: [{query: {debug: ["1"]}}]`, []change{func(in *policy.Input) { in.Request.Query = policy.MapValues{"debug": {"0", "1"}} }}, []change{noHeader}},
		{allow + `to: [{grpc_services: [shop.Orders], grpc_methods: ["Get*"]}]`, []change{grpc("shop.Orders", "GetOne")}, []change{noHeader, grpc("shop.Orders", "Set"), grpc("shop.Other", "Get")}},
		{allow + `to: [{not_grpc_methods: [Delete]}]`, []change{grpc("s", "Get")}, []change{noHeader, grpc("s", "Delete"), connection}},
		{deny + `to: [{not_grpc_methods: [Get]}]`, []change{noHeader, grpc("s", "Delete")}, []change{grpc("s", "Get"), connection}},
		{allow + `to: [{ports: [8443, 9000-9010]}]`, []change{noHeader, port(9005), connection}, []change{port(8444), port(9011)}},
		{allow + `to: [{not_ports: [8443]}]`, []change{port(1)}, []change{noHeader}},

		{allow + `when: [{field: request.headers.x-env, in: [prod]}]`, []change{header("x", "prod")}, []change{noHeader, connection}},
		{allow + `when: [{field: request.headers.x-env, exists: false}]`, []change{noHeader, header()}, []change{header(""), connection}},
		{deny + `when: [{field: request.headers.x-env, exists: true}]`, []change{header("")}, []change{noHeader, connection}},
		{allow + `when: [{field: request.path, glob: ["/r*t?"], not_suffix: [x]}]`, nil, []change{noHeader}},
		{allow + `when: [{field: request.path, glob: ["/r*ts"], not_suffix: [x]}]`, []change{noHeader}, []change{func(in *policy.Input) { in.Request.Path = "/r/../x" }}},
		{allow + `when: [{field: source.id, prefix: ["spiffe://example.org/"]}, {field: source.authn, not_in: [none]}]`, []change{noHeader}, []change{source("x"), func(in *policy.Input) { in.Source.Authn = policy.AuthnNone }}},
		{allow + `when: [{field: request.content_length, max: 10}]`, []change{length(0), length(10)}, []change{length(11), length(-1)}},
		{deny + `when: [{field: request.content_length, min: 10}]`, []change{length(10), length(-1)}, []change{length(9)}},
		{allow + `when: [{field: request.content_length, in: [-1, 5]}]`, []change{length(-1), length(5)}, []change{length(0)}},
		{allow + `when: [{time: {after: 2030-01-01, before: 2030-02-01T00:00:00Z}}]`, []change{clock("2030-01-01T00:00:00Z"), clock("2030-01-31T23:59:59Z")},
			[]change{clock("2029-12-31T23:59:59Z"), clock("2030-02-01T00:00:00Z")}},
		{allow + `when: [{window: {days: [tue], from: "08:00", to: "18:00"}}]`, []change{clock("2030-01-01T08:00:00Z"), clock("2030-01-01T17:59:59Z")},
			[]change{clock("2030-01-01T07:59:59Z"), clock("2030-01-01T18:00:00Z"), clock("2030-01-02T12:00:00Z")}},
		{allow + `when: [{window: {from: "00:00", to: "24:00", days: [tue], zone: "+02:00"}}]`, []change{clock("2029-12-31T22:00:00Z"), clock("2030-01-01T21:59:59Z")},
			[]change{clock("2029-12-31T21:59:59Z"), clock("2030-01-01T22:00:00Z")}},
		{"action: allow, from: any, expires: 2030-01-02", []change{clock("2030-01-01T23:59:59Z")}, []change{clock("2030-01-02T00:00:00Z")}},
		{"action: deny, from: any, expires: 2030-01-02", []change{clock("2030-01-01T23:59:59Z"), clock("2040-01-01T00:00:00Z")}, nil},
	}
	for _, tt := range tests {
		s := snapshot(t, catalogue+written(tt.rule))
		speaks := policy.Decision{Verdict: policy.Allow, Tier: policy.ServiceAllow, Rules: []policy.Rule{{ID: "r", File: "orders.rules.yaml", Line: 3}}}
		if strings.Contains(tt.rule, "action: deny") {
			speaks.Verdict, speaks.Tier = policy.Deny, policy.ServiceDeny
		}
		// What is allowed for a time says until when.
		for text, end := range map[string]string{"allow, from: any, expires: 2030-01-02": "2030-01-02", "before: 2030-02-01": "2030-02-01"} {
			if strings.Contains(tt.rule, text) {
				speaks.Expires, _ = time.Parse(time.DateOnly, end)
			}
		}
		silent := policy.Decision{Verdict: policy.Deny, Tier: policy.DefaultDeny, Reason: "no rule allows it"}
		for want, changes := range map[*policy.Decision][]change{&speaks: tt.yes, &silent: tt.noes} {
			for i, c := range changes {
				if diff := cmp.Diff(*want, decide(t, s, request(c))); diff != "" {
					t.Errorf("%s, case %d of %v (-want +got):\n%s", tt.rule, i, want.Verdict, diff)
				}
			}
		}
	}
}

const writtenGuardrails = `
-- rules.yaml --
guardrails:
  - id: no-foreigners
    from: [{not_trust_domains: [example.org]}]
  - id: office-hours
    overridable: true
    from: [{names: [batch]}]
    to: [{methods: [POST]}]
`

// TestWrittenTiers holds YAML rules to the tiers of Rego rules, beside them.
func TestWrittenTiers(t *testing.T) {
	foreign := func(in *policy.Input) { in.Source.TrustDomain = "other.org" }
	batch := func(in *policy.Input) {
		in.Source.ID, in.Request.Method = "spiffe://example.org/svc/batch", "POST"
	}
	s := snapshot(t, catalogue+glass+serviceAllow+writtenGuardrails+written("action: allow, from: [{names: [web]}]"))
	for _, tt := range []struct {
		in   *policy.Input
		tier policy.Tier
		want string
	}{
		{request(foreign), policy.Guardrail, "[{no-foreigners rules.yaml 2}]"},
		{request(batch), policy.OverridableGuardrail, "[{office-hours rules.yaml 4}]"},
		{request(), policy.BreakGlass, "[{incident-7 writ/break_glass/data.json 1}]"},
		{request(func(in *policy.Input) { in.Time = at.Add(time.Hour) }), policy.ServiceAllow, "[{läse-規則 allow.rego 4} {r orders.rules.yaml 3}]"},
	} {
		got := decide(t, s, tt.in)
		if got.Tier != tt.tier || fmt.Sprint(got.Rules) != tt.want {
			t.Errorf("decided in %v by %v, want %v by %s", got.Tier, got.Rules, tt.tier, tt.want)
		}
	}
}

// TestWrittenReads holds what is recorded to what YAML rules name.
func TestWrittenReads(t *testing.T) {
	want := policy.Reads{Headers: []string{"x-a", "x-b", "x-c"}, Query: []string{"q"}}
	sources := catalogue + written(`action: allow, from: any, to: [{headers: {x-b: [y]}, not_headers: {x-a: [y]}, query: {q: [y]}}], when: [{field: request.headers.x-c, exists: true}]`)
	if diff := cmp.Diff(want, snapshot(t, sources).Reads); diff != "" {
		t.Errorf("reads (-want +got):\n%s", diff)
	}
	p, err := opa.Load(content(sources))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, p.Reads()); diff != "" {
		t.Errorf("reads of the program (-want +got):\n%s", diff)
	}
}

// TestWrittenForOthers loads a slice's worth of rules: other services of the
// file are not there.
func TestWrittenForOthers(t *testing.T) {
	sources := content(catalogue + "\n-- both.rules.yaml --\nservices: [orders, elsewhere]\nrules:\n  - {id: r, action: allow, from: any}\n")
	p, err := opa.Load(sources)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(p.Rules().Services); got != 1 {
		t.Errorf("rules of %d services, want those of the one that is in the catalogue", got)
	}
	if _, problems := opa.Check(sources); len(problems) != 1 {
		t.Errorf("problems %v, want that the service is not in the catalogue", problems)
	}
}

// stockOPA answers data.writ.decision by a standalone bundle and nothing of ours.
func stockOPA(t *testing.T, sources bundle.Content) func(ast.Value) map[string]any {
	t.Helper()
	standalone, err := sources.Standalone("1")
	if err != nil {
		t.Fatal(err)
	}
	options := []func(*oparego.Rego){oparego.Query("data.writ.decision"), oparego.StrictBuiltinErrors(true)}
	for _, f := range standalone {
		if f.IsModule() {
			options = append(options, oparego.Module(f.Path, string(f.Content)))
		}
	}
	text, _ := standalone.File("data.json")
	var data map[string]any
	if err := json.Unmarshal(text, &data); err != nil {
		t.Fatal(err)
	}
	query, err := oparego.New(append(options, oparego.Store(inmem.NewFromObject(data)))...).PrepareForEval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return func(input ast.Value) map[string]any {
		t.Helper()
		results, err := query.Eval(t.Context(), oparego.EvalParsedInput(input))
		if err != nil || len(results) != 1 {
			t.Fatal(results, err)
		}
		return results[0].Expressions[0].Value.(map[string]any)
	}
}

func TestWrittenOnStockOPA(t *testing.T) {
	decide := stockOPA(t, content(catalogue+writtenGuardrails+written(`action: allow, from: [{names: [web], cidrs: [127.0.0.0/8]}], to: [{paths: ["/reports/{**}"], headers: {x-env: ["p*"]}}]`)))
	for want, change := range map[string]func(*policy.Input){
		"service-allow": func(in *policy.Input) { in.Request.Headers = policy.MapValues{"x-env": {"prod"}} },
		"default-deny":  func(*policy.Input) {},
		"guardrail":     func(in *policy.Input) { in.Source.TrustDomain = "other.org" },
	} {
		value, err := opa.InputValue(request(change))
		if err != nil {
			t.Fatal(err)
		}
		if got := decide(value)["tier"]; got != want {
			t.Errorf("stock OPA decides by %v, want %s", got, want)
		}
	}
}

// TestTimeOnStockOPA: stock OPA goes by the input's time as we do, whatever its
// machine's clock says, and by that where the input has none.
func TestTimeOnStockOPA(t *testing.T) {
	const long, gone = "2200-01-01T00:00:00Z", "1999-01-01T00:00:00Z"
	for _, tt := range []struct{ rule, time, tier string }{
		{"expires: 2000-01-01T00:00:00Z", gone, "service-allow"},
		{"expires: 2000-01-01T00:00:00Z", "1999-12-31T23:59:59.999999999Z", "service-allow"},
		{"expires: 2000-01-01T00:00:00Z", "2000-01-01T00:00:00Z", "default-deny"},
		{"expires: 2000-01-01T00:00:00Z", "", "default-deny"},
		{"expires: 2199-01-01T00:00:00Z", long, "default-deny"},
		{"expires: 2199-01-01T00:00:00Z", "", "service-allow"},
		{"when: [{time: {before: 2000-01-01T00:00:00Z}}]", gone, "service-allow"},
		{"when: [{time: {after: 2199-01-01T00:00:00Z}}]", long, "service-allow"},
		{"when: [{time: {after: 2199-01-01T00:00:00Z}}]", "", "default-deny"},
		{"when: [{window: {days: [fri], from: \"00:00\", to: \"00:01\", zone: UTC}}]", gone, "service-allow"},
		{"when: [{window: {days: [fri], from: \"00:00\", to: \"00:01\", zone: UTC}}]", "1999-01-02T00:00:00Z", "default-deny"},
	} {
		sources := content(catalogue + written("action: allow, from: any, "+tt.rule))
		in := request(func(in *policy.Input) {
			if tt.time != "" {
				in.Time, _ = time.Parse(time.RFC3339Nano, tt.time)
			}
		})
		value, err := opa.InputValue(in)
		if err != nil {
			t.Fatal(err)
		}
		if tt.time == "" {
			without := ast.NewObject()
			value.(ast.Object).Foreach(func(key, v *ast.Term) {
				if !key.Equal(ast.StringTerm("time")) {
					without.Insert(key, v)
				}
			})
			value = without
		} else {
			p, err := opa.Load(sources)
			if err != nil {
				t.Fatalf("%s: %v", tt.rule, err)
			}
			s, err := p.Snapshot(opa.SnapshotConfig{Timeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			var out policy.Decision
			if s.Decider.Decide(t.Context(), in, &out); out.Tier.String() != tt.tier {
				t.Errorf("%s at %q: we decide by %v, want %s", tt.rule, tt.time, out.Tier, tt.tier)
			}
		}
		if got := stockOPA(t, sources)(value)["tier"]; got != tt.tier {
			t.Errorf("%s at %q: stock OPA decides by %v, want %s", tt.rule, tt.time, got, tt.tier)
		}
	}
}
