package compile_test

import (
	"bytes"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/program"
)

// TestSlice: who has the sources gets the bytes that are in the slice.
func TestSlice(t *testing.T) {
	cut := func(method string) *bundle.Slice {
		t.Helper()
		content, err := bundle.NewContent([]bundle.File{
			{Path: "data.json", Content: []byte(`{"writ": {"services": {
				"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]},
				"payments": {"spiffe_ids": ["spiffe://example.org/svc/payments"]}}}}`)},
			{Path: "orders.rego", Content: []byte("package services.orders\n\nallow contains \"a\" if input.request.method == \"" + method + "\"\n\nallow contains \"b\" if input.source.path in {\"/svc/a\", \"/svc/b\", \"/svc/c\"}\n")},
			{Path: "payments.rego", Content: []byte("package services.payments\n\nallow := true\n")},
		})
		if err != nil {
			t.Fatal(err)
		}
		cutter, err := bundle.NewCutter(content)
		if err != nil {
			t.Fatal(err)
		}
		slice, err := cutter.Cut(bundle.SliceConfig{
			Revision: policy.Revision{Epoch: 1, Number: 1, Digest: content.Digest()}, SPIFFEID: spiffeid.RequireFromString("spiffe://example.org/svc/orders"),
		})
		if err != nil {
			t.Fatal(err)
		}
		if slice.Program, err = compile.Slice(t.Context(), content, slice); err != nil {
			t.Fatal(err)
		}
		return slice
	}
	first := cut("GET")
	for range 10 {
		if again := cut("GET"); len(first.Compare(again)) > 0 {
			t.Fatalf("the same sources: %v", first.Compare(again))
		}
	}
	if other := cut("PUT"); bytes.Equal(other.Program, first.Program) {
		t.Error("other sources give the same program")
	}
	prog, err := program.Decode(first.Program)
	if err != nil {
		t.Fatal(err)
	}
	if len(prog.Units) != 1 || prog.Units[0].Service != "orders" {
		t.Errorf("units: %+v", prog.Units)
	}
	if _, err := compile.Slice(t.Context(), bundle.Content{{Path: "x.rego", Content: []byte("x")}}, first); err == nil {
		t.Error("what does not parse was compiled")
	}
}
