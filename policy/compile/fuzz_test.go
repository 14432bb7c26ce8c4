package compile_test

import (
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

// FuzzCompile: whatever loads compiles to a valid program that decides as
// topdown does.
func FuzzCompile(f *testing.F) {
	for _, s := range snippets {
		f.Add(s.body, s.helpers)
	}
	f.Fuzz(func(t *testing.T, body, helpers string) {
		c := content(catalogue + snippetData + "-- orders.rego --\n")
		i := slices.IndexFunc(c, func(f bundle.File) bool { return f.Path == "orders.rego" })
		c[i].Content = []byte("package services.orders\n\nallow contains \"x\" if {\n" + body + "\n}\n\n" + helpers + "\n")
		p, err := opa.Load(c)
		if err != nil {
			return
		}
		prog, _, err := compile.Compile(t.Context(), p, compile.Config{Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if diff := difference(t, topdownOf(t, p), snapshotOf(t, p, prog).Decider); diff != "" {
			t.Error(diff)
		}
	})
}
