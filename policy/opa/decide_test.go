package opa_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/rego"
)

const glass = `
-- writ/break_glass/data.json --
{"incident-7": {"service": "orders", "source_ids": ["spiffe://example.org/svc/web"],
  "granted": "2030-01-01T12:00:00Z", "expires": "2030-01-01T13:00:00Z", "approvers": ["ann", "bob"], "ticket": "INC-7"}}
`

const (
	absoluteDeny = `
-- absolute.rego --
package guardrails.absolute

deny contains "never" if input.source.id != ""
`
	overridableDeny = `
-- overridable.rego --
package guardrails.overridable

deny_overridable if input.source.id != ""
`
	serviceDeny = `
-- deny.rego --
package services.orders

deny contains "blocked"
`
	serviceAllow = `
-- allow.rego --
package services["orders"]

# Two rules, one id.
allow contains "läse-規則" if input.request.method == "GET"

allow contains "läse-規則" if input.request.method == "HEAD"
`
)

func decide(t *testing.T, s *policy.Snapshot, in *policy.Input) policy.Decision {
	t.Helper()
	var out policy.Decision
	s.Decider.Decide(t.Context(), in, &out)
	if out.Revision != s.Revision {
		t.Errorf("decision of revision %v by %v", out.Revision, s.Revision)
	}
	out.Revision = policy.Revision{}
	return out
}

// TestTiers holds each tier against each lower one.
func TestTiers(t *testing.T) {
	tiers := []struct {
		source string
		want   policy.Decision
	}{
		{absoluteDeny, policy.Decision{Verdict: policy.Deny, Tier: policy.Guardrail, Rules: []policy.Rule{{ID: "never", File: "absolute.rego", Line: 3}}}},
		{glass, policy.Decision{Verdict: policy.Allow, Tier: policy.BreakGlass, Expires: at.Add(30 * time.Minute),
			Rules: []policy.Rule{{ID: "incident-7", File: "writ/break_glass/data.json", Line: 1}}}},
		{overridableDeny, policy.Decision{Verdict: policy.Deny, Tier: policy.OverridableGuardrail,
			Rules: []policy.Rule{{ID: "guardrails.overridable.deny_overridable", File: "overridable.rego", Line: 3}}}},
		{serviceDeny, policy.Decision{Verdict: policy.Deny, Tier: policy.ServiceDeny, Rules: []policy.Rule{{ID: "blocked", File: "deny.rego", Line: 3}}}},
		{serviceAllow, policy.Decision{Verdict: policy.Allow, Tier: policy.ServiceAllow, Rules: []policy.Rule{{ID: "läse-規則", File: "allow.rego", Line: 4}}}},
	}
	for i, higher := range tiers {
		t.Run(higher.want.Tier.String(), func(t *testing.T) {
			if diff := cmp.Diff(higher.want, decide(t, snapshot(t, catalogue+higher.source), request())); diff != "" {
				t.Errorf("alone (-want +got):\n%s", diff)
			}
			all := catalogue + higher.source
			for _, lower := range tiers[i+1:] {
				all += lower.source
				if diff := cmp.Diff(higher.want, decide(t, snapshot(t, catalogue+higher.source+lower.source), request())); diff != "" {
					t.Errorf("with %v (-want +got):\n%s", lower.want.Tier, diff)
				}
			}
			if diff := cmp.Diff(higher.want, decide(t, snapshot(t, all), request())); diff != "" {
				t.Errorf("with all lower tiers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDefaultDenyHasAReason(t *testing.T) {
	s := snapshot(t, catalogue+serviceAllow)
	tests := []struct {
		name   string
		change func(*policy.Input)
		want   string
	}{
		{"no rule", func(in *policy.Input) { in.Request.Method = "POST" }, "no rule allows it"},
		{"no policy", func(in *policy.Input) { in.Destination.Service = "payments" }, `no policy for service "payments"`},
		{"not in the catalogue", func(in *policy.Input) { in.Destination.Service = "o\x00ther" }, `service "o\x00ther" is not in the catalogue`},
		{"no service", func(in *policy.Input) { in.Destination.Service = "" }, `service "" is not in the catalogue`},
		{"connection", func(in *policy.Input) { in.Layer = policy.LayerConnection }, "no rule allows it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := policy.Decision{Verdict: policy.Deny, Tier: policy.DefaultDeny, Reason: tt.want}
			if diff := cmp.Diff(want, decide(t, s, request(tt.change))); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

// TestErrorsNeverAllow: whatever fails, in whatever tier that is reached, is
// the verdict error.
func TestErrorsNeverAllow(t *testing.T) {
	failing := `
-- broken.rego --
package %s

%s contains "broken" if {
	input.layer == "request"
	to_number(input.request.host) == 1
}
`
	conflict := `
-- conflict.rego --
package services.orders

allow := false if input.request.method == "GET"

allow := true if input.source.id != ""
`
	tests := []struct{ name, source, reason string }{
		{"guardrail", serviceAllow + fmt.Sprintf(failing, "guardrails.g", "deny"), "broken.rego:5: eval_builtin_error"},
		{"overridable guardrail", serviceAllow + fmt.Sprintf(failing, "guardrails.g", "deny_overridable"), "eval_builtin_error"},
		{"service deny", serviceAllow + fmt.Sprintf(failing, "services.orders", "deny"), "eval_builtin_error"},
		{"service allow", serviceAllow + fmt.Sprintf(failing, "services.orders", "allow"), "eval_builtin_error"},
		{"conflict", conflict, "eval_conflict_error: rule data.services.orders.allow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(t, snapshot(t, catalogue+tt.source), request())
			if got.Verdict != policy.Error || got.Tier != policy.Enforcement || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("got %+v, want error with %q", got, tt.reason)
			}
		})
	}
	t.Run("below a guardrail that denies", func(t *testing.T) {
		got := decide(t, snapshot(t, catalogue+absoluteDeny+conflict), request())
		if got.Tier != policy.Guardrail {
			t.Errorf("got %+v, want the guardrail", got)
		}
	})
}

func TestBadInput(t *testing.T) {
	s := snapshot(t, catalogue+serviceAllow+`
-- claims.rego --
package services.payments

allow if input.tokens[0].claims.ok
`)
	tests := []struct {
		name   string
		change func(*policy.Input)
	}{
		{"no layer", func(in *policy.Input) { in.Layer = "" }},
		{"no time", func(in *policy.Input) { in.Time = time.Time{} }},
		{"claims that are no JSON", func(in *policy.Input) {
			in.Destination.Service = "payments"
			in.Tokens = []policy.Token{{Claims: map[string]any{"ok": make(chan int)}}}
		}},
		{"values that panic", func(in *policy.Input) { in.Request.Headers = panicking{} }},
	}
	s2 := snapshot(t, catalogue+`
-- all.rego --
package services.orders

allow if count(input.request.headers) == 0
`)
	for _, tt := range tests {
		for _, s := range []*policy.Snapshot{s, s2} {
			got := decide(t, s, request(tt.change))
			if got.Verdict == policy.Allow && (s == s2) == (tt.name == "values that panic") {
				t.Errorf("%s: %+v", tt.name, got)
			}
		}
	}
}

type panicking struct{}

func (panicking) Get(string) []string              { panic("get") }
func (panicking) Each(func(string, []string) bool) { panic("each") }

func TestOtherResults(t *testing.T) {
	tests := []struct {
		name, root string
		want       policy.Verdict
		reason     string
	}{
		{"undefined", `package writ
decision := {"verdict": "allow"} if input.source.id == "nobody"`, policy.Undefined, "no decision"},
		{"not an object", "package writ\ndecision := true", policy.Error, "none that can be read"},
		{"foreign verdict", `package writ
decision := {"verdict": "allow", "tier": "default-deny", "rules": set()}`, policy.Error, `verdict "allow" in tier "default-deny"`},
		{"no tier", `package writ
decision := {"verdict": "allow"}`, policy.Error, "tier"},
		{"too slow", `package writ
decision := {"verdict": "allow", "tier": "service-allow", "rules": {"slow"}} if {
	count([1 | numbers.range(1, 100000)[_]; numbers.range(1, 100000)[_] == 0]) == 0
}`, policy.Error, "no decision within 1ms"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := opa.WithRoot(tt.root, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if tt.name != "too slow" {
				if s, err = opa.WithRoot(tt.root, time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			got := decide(t, s, request())
			if got.Verdict != tt.want || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("got %+v, want %v with %q", got, tt.want, tt.reason)
			}
		})
	}
}

func TestCancelledDecision(t *testing.T) {
	s, err := opa.WithRoot(`package writ
decision := {"verdict": "allow", "tier": "service-allow", "rules": {"slow"}} if {
	count([1 | numbers.range(1, 100000)[_]; numbers.range(1, 100000)[_] == 0]) == 0
}`, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out policy.Decision
	s.Decider.Decide(ctx, request(), &out)
	if out.Verdict != policy.Error {
		t.Errorf("got %+v", out)
	}
}

// TestClock: the evaluation's clock is input.time, whatever the day.
func TestClock(t *testing.T) {
	s := snapshot(t, catalogue+`
-- orders.rego --
package services.orders

allow contains "noon" if {
	time.clock(time.now_ns()) == [12, 30, 0]
	time.now_ns() == time.parse_rfc3339_ns(input.time)
}
`)
	if got := decide(t, s, request()); got.Verdict != policy.Allow {
		t.Errorf("got %+v", got)
	}
	if got := decide(t, s, request(func(in *policy.Input) { in.Time = at.Add(time.Second) })); got.Verdict != policy.Deny {
		t.Errorf("a second later: %+v", got)
	}
}

// TestInputIsItsJSON: what a policy sees is what EncodeInput writes.
func TestInputIsItsJSON(t *testing.T) {
	inputs := []*policy.Input{
		request(),
		request(func(in *policy.Input) {
			in.Request.Protocol, in.Request.GRPCService, in.Request.GRPCMethod = policy.GRPC, "shop.Orders", "Get"
			in.Request.Headers = policy.MapValues{"x-a": {"1", "zwei", "\xff\xfe"}, "x-ünï": {}}
			in.Request.Query = policy.MapValues{"q": {""}}
			in.Request.ContentLength = -1
			in.TokenStatus = policy.TokenValid
			in.Tokens = []policy.Token{{Issuer: "i", Subject: "s", Audience: []string{"a"}, Actor: "act",
				Claims: map[string]any{"n": json.Number("1.50"), "f": 2.5, "l": []any{nil, true}, "o": map[string]any{"k": "v"}}}}
		}),
		request(func(in *policy.Input) { in.Layer = policy.LayerConnection; in.TokenStatus = "" }),
	}
	for i, in := range inputs {
		data, err := policy.EncodeInput(in)
		if err != nil {
			t.Fatal(err)
		}
		want, err := ast.ValueFromReader(strings.NewReader(string(data)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := opa.InputValue(in)
		if err != nil {
			t.Fatal(err)
		}
		if want.Compare(got) != 0 {
			t.Errorf("input %d:\nwant %v\ngot  %v", i, want, got)
		}
	}
}

// TestInputKeepsToTheSchema: what EncodeInput writes is valid, and a field
// more is not.
func TestInputKeepsToTheSchema(t *testing.T) {
	data, err := policy.EncodeInput(request(func(in *policy.Input) {
		in.Request.Protocol = policy.GRPC
		in.Tokens = []policy.Token{{Issuer: "i"}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	for input, want := range map[string]bool{
		string(data): true,
		strings.Replace(string(data), `"sni"`, `"snii"`, 1): false,
	} {
		query := oparego.New(oparego.Query("[1 | json.match_schema(input, data.schema)[0]] == [1]"),
			oparego.Store(inmem.NewFromReader(strings.NewReader(`{"schema": `+string(rego.InputSchema())+`}`))),
			oparego.ParsedInput(ast.MustParseTerm(input).Value))
		results, err := query.Eval(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := results[0].Expressions[0].Value == true; got != want {
			t.Errorf("valid is %v: %s", got, input)
		}
	}
}

func TestReads(t *testing.T) {
	tests := []struct {
		name, body string
		want       policy.Reads
	}{
		{"none", `input.request.method == "GET"`, policy.Reads{}},
		{"literal", `input.request.headers["x-a"][0] == "1"; input.request.query.q[_] == "x"`, policy.Reads{Headers: []string{"x-a"}, Query: []string{"q"}}},
		{"some in", `some v in input.request.headers["x-b"]; v != ""`, policy.Reads{Headers: []string{"x-b"}}},
		{"object.get", `object.get(input.request.headers, "x-c", []) == ["1"]`, policy.Reads{Headers: []string{"x-c"}}},
		{"object.get path", `object.get(input.request.headers, ["x-d", 0], "") == "1"`, policy.Reads{Headers: []string{"x-d"}}},
		{"library", `http.header("X-F") == "1"; http.query_has("Q", http.query("p"))`, policy.Reads{Headers: []string{"x-f"}, Query: []string{"Q", "p"}}},
		{"library without import", `data.writ.http.header_has("x-g", "1") with input.time as http.header("x-h")`, policy.Reads{Headers: []string{"x-g", "x-h"}}},
		{"library, nothing", `http.path("/a"); spiffe.ours(input.source.id)`, policy.Reads{}},
		{"library, computed", `http.header_matches(input.request.method, "1")`, policy.Reads{AllHeaders: true}},
		{"library, replacing", `http.reads with lower as http.query`, policy.Reads{AllQuery: true}},
		{"object.get nested", `count(object.get(input.request.headers, "x-e", [])) == 0`, policy.Reads{Headers: []string{"x-e"}}},
		{"object.get indexed", `object.get(input.request.headers, "x-i", [])[0] == "1"`, policy.Reads{Headers: []string{"x-i"}}},
		{"object.get computed", `n := lower("X"); object.get(input.request.headers, n, []) == []`, policy.Reads{AllHeaders: true}},
		{"object.get input", `object.get(input, ["request", "headers"], {}) == {}`, policy.Reads{AllHeaders: true, AllQuery: true}},
		{"variable", `some name; input.request.headers[name][0] == "1"`, policy.Reads{AllHeaders: true}},
		{"alias", `h := input.request.headers; h["x-f"][0] == "1"`, policy.Reads{AllHeaders: true}},
		{"whole request", `count(input.request) > 0`, policy.Reads{AllHeaders: true, AllQuery: true}},
		{"whole input", `count(input) > 0`, policy.Reads{AllHeaders: true, AllQuery: true}},
		{"query keys", `"debug" in object.keys(input.request.query)`, policy.Reads{AllQuery: true}},
		{"nested", `count({x | some x in input.request.headers["x-g"]}) > 0`, policy.Reads{Headers: []string{"x-g"}}},
		{"imported", `h["x-h"][0] == "1"`, policy.Reads{AllHeaders: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			imp := ""
			switch {
			case tt.name == "imported":
				imp = "import input.request.headers as h\n"
			case strings.HasPrefix(tt.name, "library"):
				imp = "import data.writ.http\nimport data.writ.spiffe\n"
			}
			s := snapshot(t, catalogue+"-- orders.rego --\npackage services.orders\n"+imp+"allow if { "+tt.body+" }\n")
			if diff := cmp.Diff(tt.want, s.Reads, cmp.Transformer("empty", func(l []string) string { return fmt.Sprint(l) })); diff != "" {
				t.Errorf("reads (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPrunedInputDecidesAlike: leaving out what Reads does not name changes no
// decision.
func TestPrunedInputDecidesAlike(t *testing.T) {
	s := snapshot(t, catalogue+`
-- orders.rego --
package services.orders

allow contains "tenant" if input.request.headers["x-tenant"] == ["a"]

allow contains "query" if "1" in object.get(input.request.query, "q", [])

deny contains "absent" if not input.request.headers["x-must"]
`)
	headers := policy.MapValues{"x-tenant": {"a"}, "x-must": {""}, "x-more": {"1"}}
	got := decide(t, s, request(func(in *policy.Input) {
		in.Request.Headers, in.Request.Query = headers, policy.MapValues{"q": {"0", "1"}}
	}))
	var ids []string
	for _, r := range got.Rules {
		ids = append(ids, r.ID)
	}
	if got.Verdict != policy.Allow || len(ids) != 2 {
		t.Errorf("got %+v", got)
	}
	if got := decide(t, s, request()); got.Tier != policy.ServiceDeny {
		t.Errorf("without x-must: %+v", got)
	}
}

func TestCatalogueInSnapshot(t *testing.T) {
	s := snapshot(t, catalogue)
	want := map[string]policy.Service{
		"orders": {Name: "orders", SPIFFEIDs: []string{"spiffe://example.org/svc/orders"}, Mode: policy.Enforce},
		"payments": {Name: "payments", SPIFFEIDs: []string{"spiffe://example.org/svc/payments"}, Mode: policy.Observe,
			ObserveUntil: time.Date(2030, 6, 1, 0, 0, 0, 0, time.UTC), AllowDoubleSlash: true},
	}
	if diff := cmp.Diff(want, s.Services); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}

// TestComputedIDs: an id that is not literal is found when one rule only can
// have made it.
func TestComputedIDs(t *testing.T) {
	one := catalogue + "-- a.rego --\npackage services.orders\n\nallow contains id if id := sprintf(\"by %s\", [input.source.path])\n"
	if got := decide(t, snapshot(t, one), request()); len(got.Rules) != 1 || got.Rules[0] != (policy.Rule{ID: "by /svc/web", File: "a.rego", Line: 3}) {
		t.Errorf("got %+v", got)
	}
	two := one + "-- b.rego --\npackage services.orders\n\nallow contains id if id := input.request.method\n"
	for _, rule := range decide(t, snapshot(t, two), request()).Rules {
		if rule.File != "" {
			t.Errorf("guessed %+v", rule)
		}
	}
}

func TestConcurrentDecisions(t *testing.T) {
	s := snapshot(t, catalogue+serviceAllow)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var out policy.Decision
			for i := range 200 {
				want := policy.Allow
				in := request()
				if i%2 == 0 {
					in.Request.Method, want = "POST", policy.Deny
				}
				s.Decider.Decide(t.Context(), in, &out)
				if out.Verdict != want {
					t.Errorf("got %+v, want %v", out, want)
				}
			}
		})
	}
	wg.Wait()
}

// TestActivationsLeakNothing: a thousand snapshots, swapped while they decide,
// leave no goroutine behind.
func TestActivationsLeakNothing(t *testing.T) {
	var programs [2]*opa.Program
	for i, c := range []bundle.Content{content(catalogue + serviceAllow), content(catalogue + absoluteDeny + serviceAllow)} {
		var err error
		if programs[i], err = opa.Load(c); err != nil {
			t.Fatal(err)
		}
	}
	var current atomic.Pointer[policy.Snapshot]
	current.Store(snapshot(t, catalogue+serviceAllow))
	ctx, cancel := context.WithCancel(t.Context())
	var deciding sync.WaitGroup
	for range 2 {
		deciding.Go(func() {
			var out policy.Decision
			for ctx.Err() == nil {
				s := current.Load()
				s.Decider.Decide(context.Background(), request(), &out)
				if want := []policy.Verdict{policy.Allow, policy.Deny}[s.Revision.Number%2]; s.Revision.Epoch == 2 && out.Verdict != want {
					t.Errorf("revision %v: %+v", s.Revision, out)
				}
			}
		})
	}
	before := runtime.NumGoroutine()
	for i := range uint64(1000) {
		s, err := programs[i%2].Snapshot(opa.SnapshotConfig{Revision: policy.Revision{Epoch: 2, Number: i}, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		current.Store(s)
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
	cancel()
	deciding.Wait()
}
