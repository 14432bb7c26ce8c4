package opa_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

const explained = `
-- data.json --
{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}, "limits": {"gold": 10}}
-- shop.rego --
package shop

default member := false

member if input.source.trust_domain == "example.org"

reading if input.request.method == "GET"

reading if input.request.method == "HEAD"
-- orders.rego --
package services.orders

import data.shop

allow contains "read" if {
	shop.member
	shop.reading
}

allow contains "ticket" if {
	startswith(ticket, "T-")
	ticket = input.request.headers["x-ticket"][_]
	input.request.method == "POST"
}

allow contains "never-near" if {
	input.source.id == "spiffe://example.org/svc/x"
	input.request.host == "x"
	count(input.request.segments) > data.limits.gold
}

deny contains "blocked" if not input.request.headers["x-key"]
-- number.rego --
package guardrails.number

deny contains "odd" if {
	input.layer == "request"
	to_number(input.request.headers["x-number"][0]) > 3
}
`

// describe is an explanation on lines, short enough to compare.
func describe(x *opa.Explanation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", x.Decision.Verdict, x.Decision.Tier)
	var outcomes func(list []opa.RuleOutcome, what, indent string)
	outcomes = func(list []opa.RuleOutcome, what, indent string) {
		for _, o := range list {
			fmt.Fprintf(&b, "%s%s %s %s:%d", indent, what, o.Rule.ID, o.Rule.File, o.Rule.Line)
			if o.NotReached > 0 {
				fmt.Fprintf(&b, " +%d", o.NotReached)
			}
			b.WriteString("\n")
			for _, c := range o.Conditions {
				fmt.Fprintf(&b, "%s  %d:%d %s %s\n", indent, c.Line, c.Column, c.Text, c.Error)
				for _, v := range c.Values {
					fmt.Fprintf(&b, "%s    %s = %s\n", indent, v.Text, v.Value)
				}
				outcomes(c.Because, "because", indent+"    ")
			}
		}
	}
	outcomes(x.Decided, "decided", "")
	outcomes(x.Failed, "failed", "")
	outcomes(x.Overruled, "overruled", "")
	outcomes(x.Nearest, "nearest", "")
	return b.String()
}

func TestExplain(t *testing.T) {
	program, problems := opa.Check(content(explained))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	tests := []struct {
		name    string
		change  func(*policy.Input)
		options opa.ExplainOptions
		want    string
	}{
		{"allowed", func(in *policy.Input) {}, opa.ExplainOptions{}, `
allow service-allow
decided read orders.rego:5
`},
		{"denied although allowed", func(in *policy.Input) { in.Request.Headers = nil }, opa.ExplainOptions{}, `
deny service-deny
decided blocked orders.rego:22
overruled read orders.rego:5
`},
		{"helper", func(in *policy.Input) { in.Request.Method = "PUT" }, opa.ExplainOptions{Nearest: 1}, `
deny default-deny
nearest read orders.rego:5
  7:2 shop.reading 
    shop.reading = undefined
    because shop.reading shop.rego:7
      7:12 input.request.method == "GET" 
        input.request.method = "PUT"
`},
		{"default of a helper", func(in *policy.Input) { in.Source.TrustDomain = "other.example" }, opa.ExplainOptions{Nearest: 1}, `
deny default-deny
nearest read orders.rego:5
  6:2 shop.member 
    shop.member = false
    because shop.member shop.rego:5
      5:11 input.source.trust_domain == "example.org" 
        input.source.trust_domain = "other.example"
`},
		{"all, with a variable of a later line", func(in *policy.Input) {
			in.Request.Method = "POST"
			in.Request.Headers = policy.MapValues{"x-key": {"1"}, "x-ticket": {"please"}}
		}, opa.ExplainOptions{Nearest: -1}, `
deny default-deny
nearest read orders.rego:5
  7:2 shop.reading 
    shop.reading = undefined
    because shop.reading shop.rego:7
      7:12 input.request.method == "GET" 
        input.request.method = "POST"
nearest ticket orders.rego:10
  11:2 startswith(ticket, "T-") 
    ticket = "please"
nearest never-near orders.rego:16
  17:2 input.source.id == "spiffe://example.org/svc/x" 
    input.source.id = "spiffe://example.org/svc/web"
  18:2 input.request.host == "x" 
    input.request.host = "orders"
  19:2 count(input.request.segments) > data.limits.gold 
    count(input.request.segments) = 1
    input.request.segments = ["reports"]
    data.limits.gold = 10
`},
		{"not reached", func(in *policy.Input) {
			in.Request.Method = "POST"
		}, opa.ExplainOptions{Nearest: 2}, `
deny default-deny
nearest read orders.rego:5
  7:2 shop.reading 
    shop.reading = undefined
    because shop.reading shop.rego:7
      7:12 input.request.method == "GET" 
        input.request.method = "POST"
nearest ticket orders.rego:10 +1
  12:2 ticket = input.request.headers["x-ticket"][_] 
    input.request.headers["x-ticket"][_] = undefined
`},
		{"guardrail", func(in *policy.Input) {
			in.Request.Headers = policy.MapValues{"x-key": {"1"}, "x-number": {"4"}}
		}, opa.ExplainOptions{}, `
deny guardrail
decided odd number.rego:3
overruled read orders.rego:5
`},
		{"error", func(in *policy.Input) {
			in.Request.Headers = policy.MapValues{"x-key": {"1"}, "x-number": {"four"}}
		}, opa.ExplainOptions{}, `
error enforcement
failed odd number.rego:3
  5:2 to_number(input.request.headers["x-number"][0]) > 3 number.rego:5: eval_builtin_error: to_number: strconv.ParseFloat: parsing "four": invalid syntax
overruled read orders.rego:5
`},
		{"no policy", func(in *policy.Input) { in.Destination.Service = "nobody" }, opa.ExplainOptions{}, `
deny default-deny
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := request()
			in.Request.Headers = policy.MapValues{"x-key": {"1"}}
			tt.change(in)
			x, err := program.Explain(t.Context(), in, tt.options)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), describe(x)); diff != "" {
				t.Errorf("explanation (-want +got):\n%s", diff)
			}
		})
	}
}

func TestQuery(t *testing.T) {
	program, problems := opa.Check(content(explained))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	in := request()
	in.Request.Headers = policy.MapValues{"x-key": {"1"}}
	tests := []struct {
		query string
		want  string // of values, or in the error
	}{
		{`data.shop.member`, `[true]`},
		{`data.shop.nothing`, `[]`},
		{`data.services.orders.allow with input.request.method as "HEAD"`, `[[read]]`},
		{`input.request.method == "GET"`, `[true]`},
		{`data.limits[x]`, `[10]`},
		{`input.reqest`, `undefined ref: input.reqest`},
		{`http.send({})`, `policy may not use it`},
		{`numbers.range(1, 1000000000)`, `eval_builtin_error`},
		{`x := 1; y := 2`, `want one term`},
		{`not data.shop.member`, `want one term`},
		{`package x`, `want one term`},
		{strings.Repeat("[", 300), `max parsing recursion depth exceeded`},
		{strings.Repeat(" ", 70_000) + "1", `longer than`},
		{``, `want one term`},
	}
	for _, tt := range tests {
		values, err := program.Query(t.Context(), tt.query, in, 0)
		got := fmt.Sprint(values)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
			t.Errorf("%.60s: got %.300s, want %s", tt.query, got, tt.want)
		}
	}
}

func TestExplainWritten(t *testing.T) {
	program, problems := opa.Check(content(`
-- data.json --
{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}
-- orders.rules.yaml --
service: orders
rules:
  - id: web-reads
    action: allow
    from:
      - names: [web]
      - spiffe_ids: ["spiffe://example.org/svc/app"]
        cidrs: ["10.0.0.0/8"]
    to:
      - methods: [GET]
        paths: ["/orders/**"]
      - methods: [HEAD]
    when:
      - field: request.headers.x-env
        in: [prod]
    expires: 2031-01-01T00:00:00Z
    ticket: T-2
    owner: ann
  - id: was
    action: allow
    from: any
    expires: 2020-01-01T00:00:00Z
    ticket: T-1
    owner: ann
  - id: no-trace
    action: deny
    from: any
    to:
      - methods: [TRACE]
-- all.rules.yaml --
guardrails:
  - id: own-domain
    from:
      - not_trust_domains: ["example.org"]
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	tests := []struct {
		name   string
		change func(*policy.Input)
		want   string
	}{
		{"allowed", func(*policy.Input) {}, `
allow service-allow
decided web-reads orders.rules.yaml:3
`},
		{"deny", func(in *policy.Input) { in.Request.Method = "TRACE" }, `
deny service-deny
decided no-trace orders.rules.yaml:25
nearest web-reads orders.rules.yaml:3
  10:9 to: request.method in [GET] 
    input.request.method = "TRACE"
nearest was orders.rules.yaml:19
  22:14 expires: 2020-01-01T00:00:00Z 
    input.time = "2030-01-01T12:30:00Z"
`},
		{"guardrail", func(in *policy.Input) {
			in.Source.TrustDomain, in.Source.ID = "other.example", "spiffe://other.example/svc/web"
		}, `
deny guardrail
decided own-domain all.rules.yaml:2
nearest web-reads orders.rules.yaml:3
  6:9 from: source.id in [spiffe://example.org/svc/web] 
    input.source.id = "spiffe://other.example/svc/web"
nearest was orders.rules.yaml:19
  22:14 expires: 2020-01-01T00:00:00Z 
    input.time = "2030-01-01T12:30:00Z"
`},
		{"nearest alternative, header", func(in *policy.Input) {
			in.Source.ID = "spiffe://example.org/svc/app"
			in.Request.Headers = nil
		}, `
deny default-deny
nearest was orders.rules.yaml:19
  22:14 expires: 2020-01-01T00:00:00Z 
    input.time = "2030-01-01T12:30:00Z"
nearest web-reads orders.rules.yaml:3
  7:9 from: connection.peer_ip cidr [10.0.0.0/8] 
    input.connection.peer_ip = "127.0.0.1"
  14:7 when: request.headers["x-env"] in [prod] 
    input.request.headers["x-env"] = undefined
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := request()
			in.Request.Segments = []string{"orders", "1"}
			in.Request.Headers = policy.MapValues{"x-env": {"prod"}}
			tt.change(in)
			x, err := program.Explain(t.Context(), in, opa.ExplainOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), describe(x)); diff != "" {
				t.Errorf("explanation (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzQuery asks anything. An answer has no end of its own, but its time and
// its size are bounded.
func FuzzQuery(f *testing.F) {
	program, problems := opa.Check(content(explained))
	if len(problems) > 0 {
		f.Fatal(problems)
	}
	for _, query := range []string{"data.writ.decision", "input.request.headers[x]", `[x | some x in data.limits]`, "1 == 2", `data.shop.member with input as {}`} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, err := program.Query(t.Context(), query, request(), 100*time.Millisecond)
		if err != nil && values != nil {
			t.Errorf("values %v with %v", values, err)
		}
	})
}
