package compile_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

// TestBounds compiles what is large, or would become so. No more than a few
// gigabytes pass through the compiler for any of it, and none of it overflows
// the stack, which would be the end of the process.
func TestBounds(t *testing.T) {
	if compile.UnderRace {
		t.Skip("takes long")
	}
	each := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	texts := func(n int) string { return strings.TrimSuffix(each(n, `"%d",`), ",") }
	for _, tt := range []struct {
		name, body, helpers, data string
		result                    string
	}{
		{name: "a long list", body: "input.source.id in {" + texts(60000) + "}", result: compile.Compiled},
		{name: "a long list of what is not constant", body: "x := input.source.id\ny := [" + strings.Repeat("x,", 500000) + "x]\ny[0] == \"a\"", result: compile.Topdown},
		{name: "every of many", body: "every p in data.l { input.source.id != p }", data: texts(200000), result: compile.Topdown},
		{name: "none of many", body: "not f", helpers: "f if {\n some p in data.l\n startswith(input.source.id, p)\n}", data: texts(200000), result: compile.Topdown},
		{name: "2^40 ways", body: each(40, "f%d\n"), helpers: each(40, "f%[1]d if input.request.headers[\"a%[1]d\"]\nf%[1]d if input.request.headers[\"b%[1]d\"]\n"), result: compile.Topdown},
		{name: "a long else", body: "f == 3", helpers: "f := 1 if {\n input.request.headers[\"z\"]\n}" + each(300, "else := 3 if {\n input.request.headers[\"a%[1]d\"]\n}"), result: compile.Topdown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := opa.Load(content(catalogue + "-- data.json --\n{\"l\": [" + tt.data + "]}\n-- orders.rego --\npackage services.orders\n\nallow contains \"x\" if {\n" + tt.body + "\n}\n\n" + tt.helpers + "\n"))
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, report, err := compile.Compile(t.Context(), p, compile.Config{})
			if err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; mb > 2048 {
				t.Errorf("took %d MB", mb)
			}
			if got := report.Services[0].Rules[0]; got.Result != tt.result {
				t.Errorf("%s: %s", got.Result, got.Why)
			}
		})
	}
}
