package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
	writrego "github.com/writ-dev/writ/rego"
)

// shop is the policy that is decided.
const shop = "../../deploy/examples/shop/policy"

// shopCatalogue is data.writ.services of the shop.
const shopCatalogue = `{"writ": {"services": {
	"web": {"spiffe_ids": ["spiffe://shop.example/svc/web"], "mode": "enforce"},
	"catalog": {"spiffe_ids": ["spiffe://shop.example/svc/catalog"], "mode": "enforce"},
	"orders": {"spiffe_ids": ["spiffe://shop.example/svc/orders"], "mode": "enforce"},
	"payments": {"spiffe_ids": ["spiffe://shop.example/svc/payments"], "mode": "enforce"},
	"reports": {"spiffe_ids": ["spiffe://shop.example/svc/reports"], "mode": "enforce"}
}}}`

// question is a request of the shop as the sidecar sees it.
func question(method string) *policy.Input {
	return &policy.Input{
		Direction:   policy.Inbound,
		Layer:       policy.LayerRequest,
		Source:      policy.Source{ID: "spiffe://shop.example/svc/web", TrustDomain: "shop.example", Path: "/svc/web", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: "catalog", ID: "spiffe://shop.example/svc/catalog", Port: 8443},
		Request: policy.Request{
			Protocol: policy.HTTP, Method: method, Host: "catalog", Path: "/products/42", Segments: []string{"products", "42"},
			Query: policy.MapValues{"page": {"1"}},
			Headers: policy.MapValues{
				"accept": {"*/*"}, "user-agent": {"curl/8"}, "x-request-id": {"7f3c"}, "accept-encoding": {"gzip"},
			},
		},
		TokenStatus: policy.TokenAbsent,
		Connection:  policy.Connection{PeerIP: "127.0.0.1", ClientIP: "127.0.0.1", TLSVersion: "1.3", SNI: "", ALPN: "h2"},
		Time:        time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, c := range []struct{ verdict, method string }{{"allow", "GET"}, {"deny", "DELETE"}} {
		b.Run(c.verdict, func(b *testing.B) {
			b.Run("writ", func(b *testing.B) { benchmarkWrit(b, question(c.method), c.verdict) })
			b.Run("opa", func(b *testing.B) { benchmarkOPA(b, question(c.method), c.verdict) })
		})
	}
}

func benchmarkWrit(b *testing.B, in *policy.Input, verdict string) {
	content, err := bundle.ReadDir(shop)
	if err != nil {
		b.Fatal(err)
	}
	content = append(content, bundle.File{Path: "data.json", Content: []byte(shopCatalogue)})
	slices.SortFunc(content, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	program, err := opa.Load(content)
	if err != nil {
		b.Fatal(err)
	}
	snapshot, err := program.Snapshot(opa.SnapshotConfig{Revision: policy.Revision{Epoch: 1, Number: 1}})
	if err != nil {
		b.Fatal(err)
	}
	var out policy.Decision
	b.ReportAllocs()
	for b.Loop() {
		snapshot.Decider.Decide(b.Context(), in, &out)
		if out.Verdict.String() != verdict {
			b.Fatalf("verdict %s (%s), want %s", out.Verdict, out.Reason, verdict)
		}
	}
}

// benchmarkOPA is OPA as a Go program would embed it at its best: prepared
// query, store of parsed values, parsed input.
func benchmarkOPA(b *testing.B, in *policy.Input, verdict string) {
	options := []func(*rego.Rego){
		rego.Query("data.writ.decision"),
		rego.Store(inmem.NewFromASTObject(ast.MustParseTerm(shopCatalogue).Value.(ast.Object))),
	}
	for name, text := range writrego.Modules() {
		options = append(options, rego.Module(name, text))
	}
	files, err := filepath.Glob(filepath.Join(shop, "*.rego"))
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		options = append(options, rego.Module(f, string(text)))
	}
	query, err := rego.New(options...).PrepareForEval(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	input := parsed(b, in)
	b.ReportAllocs()
	for b.Loop() {
		rs, err := query.Eval(b.Context(), rego.EvalParsedInput(input), rego.EvalTime(in.Time))
		if err != nil || len(rs) != 1 {
			b.Fatal(rs, err)
		}
		if got := rs[0].Expressions[0].Value.(map[string]any)["verdict"]; got != verdict {
			b.Fatalf("verdict %v, want %s", got, verdict)
		}
	}
}

func parsed(b *testing.B, in *policy.Input) ast.Value {
	data, err := policy.EncodeInput(in)
	if err != nil {
		b.Fatal(err)
	}
	value, err := ast.ValueFromReader(bytes.NewReader(data))
	if err != nil {
		b.Fatal(err)
	}
	return value
}
