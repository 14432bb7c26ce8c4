package opa_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/rego"
)

// benchPolicy has as many services' worth of grants as rules.
func benchPolicy(rules int) string {
	var b strings.Builder
	b.WriteString(catalogue + absentGuard + "-- orders.rego --\npackage services.orders\n")
	for i := range rules {
		fmt.Fprintf(&b, "\nallow contains \"r%d\" if {\n\tinput.source.id == \"spiffe://example.org/svc/c%d\"\n\tinput.request.method == \"GET\"\n}\n", i, i)
	}
	return b.String()
}

const absentGuard = `
-- guard.rego --
package guardrails.names

deny contains "anonymous" if input.source.authn == "none"
`

func benchInput(rules int) *policy.Input {
	return request(func(in *policy.Input) { in.Source.ID = fmt.Sprintf("spiffe://example.org/svc/c%d", rules/2) })
}

// BenchmarkDecide is one decision, the input built included.
func BenchmarkDecide(b *testing.B) {
	for _, rules := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint(rules), func(b *testing.B) {
			s := snapshot(b, benchPolicy(rules))
			in := benchInput(rules)
			var out policy.Decision
			b.ReportAllocs()
			for b.Loop() {
				s.Decider.Decide(b.Context(), in, &out)
			}
			if out.Verdict != policy.Allow {
				b.Fatalf("%+v", out)
			}
		})
	}
}

// BenchmarkEvalParsedInput is the peer: OPA's prepared query over the same
// modules, AST store and caches, the input already built.
func BenchmarkEvalParsedInput(b *testing.B) {
	for _, rules := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint(rules), func(b *testing.B) {
			c := content(benchPolicy(rules))
			data, _ := c.Data()
			object, err := ast.InterfaceToValue(data)
			if err != nil {
				b.Fatal(err)
			}
			opts := []func(*oparego.Rego){
				oparego.Query("data.writ.decision"),
				oparego.Store(inmem.NewFromASTObject(object.(ast.Object))),
			}
			for _, f := range c {
				if f.IsModule() {
					opts = append(opts, oparego.Module(f.Path, string(f.Content)))
				}
			}
			for name, text := range rego.Modules() {
				opts = append(opts, oparego.Module(name, text))
			}
			query, err := oparego.New(opts...).PrepareForEval(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			input, err := opa.InputValue(benchInput(rules))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := query.Eval(b.Context(), oparego.EvalParsedInput(input)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkInput is what the input costs alone.
func BenchmarkInput(b *testing.B) {
	in := request()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := opa.InputValue(in); err != nil {
			b.Fatal(err)
		}
	}
}
