package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

// grantData is n grants as data, with one rule over them.
func grantData(n int) string {
	var b strings.Builder
	b.WriteString(catalogue + `-- orders.rego --
package services.orders

allow contains g.id if {
	some g in data.grants
	g.source == input.source.id
	input.request.method in g.methods
	startswith(input.request.path, g.prefix)
}
-- data.json --
{"grants": [`)
	for i := range n {
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, `{"id": "g%d", "source": "spiffe://example.org/svc/c%d", "methods": ["GET", "HEAD"], "prefix": "/tenants/%d/"}`, i, i/4, i)
	}
	b.WriteString("]}\n")
	return b.String()
}

// literalRules is n rules that are written out.
func literalRules(n int) string {
	var b strings.Builder
	b.WriteString(catalogue)
	for i := range n {
		if i%2500 == 0 { // A file has at most 1 MiB.
			fmt.Fprintf(&b, "-- orders%d.rego --\npackage services.orders\n", i)
		}
		fmt.Fprintf(&b, `
allow contains "r%d" if {
	input.source.id == "spiffe://example.org/svc/c%d"
	input.request.method in {"GET", "HEAD"}
	startswith(input.request.path, "/tenants/%d/")
}
`, i, i/4, i)
	}
	return b.String()
}

// manyServices share guardrails and helpers.
func manyServices(services, guardrails int) string {
	var b strings.Builder
	b.WriteString("-- writ/services/data.json --\n{")
	for i := range services {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\"s%d\": {\"spiffe_ids\": [\"spiffe://example.org/svc/s%d\"]}\n", i, i)
	}
	b.WriteString("}\n-- shop.rego --\npackage shop\n\ncaller := trim_prefix(input.source.id, \"spiffe://example.org/svc/\")\n")
	b.WriteString("-- guard.rego --\npackage guardrails.all\n")
	for i := range guardrails {
		fmt.Fprintf(&b, "\ndeny contains \"g%d\" if {\n\tinput.layer == \"request\"\n\tinput.request.segments[0] == \"internal%d\"\n}\n", i, i)
	}
	for i := range services {
		fmt.Fprintf(&b, "-- s%d.rego --\npackage services.s%d\n\nallow contains \"a%d\" if {\n\tdata.shop.caller == \"s%d\"\n\tinput.request.method == \"GET\"\n}\n", i, i, i, (i+1)%services)
	}
	return b.String()
}

// BenchmarkCompile is the compilation alone, of what is loaded already.
func BenchmarkCompile(b *testing.B) {
	for _, bench := range []struct {
		name, archive string
		clauses       int // of the first service
	}{
		{"grants-10000", grantData(10000), 10000},
		{"rules-10000", literalRules(10000), 10000},
		{"services-1000", manyServices(1000, 50), 1},
	} {
		b.Run(bench.name, func(b *testing.B) {
			p, problems := opa.Check(content(bench.archive))
			if len(problems) > 0 {
				b.Fatal(problems)
			}
			b.ReportAllocs()
			for b.Loop() {
				prog, _, err := compile.Compile(b.Context(), p, compile.Config{})
				if err != nil {
					b.Fatal(err)
				}
				if n := len(prog.Units[0].Clauses[policy.ServiceAllow]); n != bench.clauses {
					b.Fatalf("%d clauses", n)
				}
			}
		})
	}
}
