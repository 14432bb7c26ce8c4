package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
	writrego "github.com/writ-dev/writ/rego"
)

const ordersCatalogue = `{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`

// measured is a policy and an input that it allows by one rule in its middle.
type measured struct {
	content bundle.Content
	in      *policy.Input
}

var measuredPolicies = map[string]func() measured{
	"grants-10":      func() measured { return grants(10) },
	"grants-1000":    func() measured { return grants(1000) },
	"grants-10000":   func() measured { return grants(10000) },
	"unindexed-1000": func() measured { return unindexed(1000) },
	"yaml-200":       func() measured { return yamlRules(200) },
}

// grants are literal rules, the form that OPA indexes best: who, how, and below
// which path. A hundred callers share them.
func grants(n int) measured {
	const inFile = 2000 // A file of Rego has a limit.
	files := map[string]string{}
	for from := 0; from < n; from += inFile {
		var b strings.Builder
		b.WriteString("package services.orders\n")
		for i := from; i < min(n, from+inFile); i++ {
			fmt.Fprintf(&b, "\nallow contains \"grant-%d\" if {\n\tinput.source.id == \"spiffe://example.org/svc/caller-%d\"\n\tinput.request.method == %q\n\tstartswith(input.request.path, \"/area-%d/\")\n}\n",
				i, i%100, []string{"GET", "POST"}[i/100%2], i/100)
		}
		files[fmt.Sprintf("orders%d.rego", from)] = b.String()
	}
	return measured{contentOf(files), asking(n / 2)}
}

// unindexed are rules whose conditions OPA's index knows nothing of: it has to
// try each.
func unindexed(n int) measured {
	var b strings.Builder
	b.WriteString("package services.orders\n")
	for i := range n {
		fmt.Fprintf(&b, "\nallow contains \"rule-%d\" if {\n\tcontains(input.request.path, \"/area-%d/\")\n\tinput.request.method != \"DELETE\"\n\tinput.request.content_length < %d\n}\n", i, i, 1000+i)
	}
	m := measured{contentOf(map[string]string{"orders.rego": b.String()}), asking(0)}
	setPath(m.in, fmt.Sprintf("/v1/area-%d/", n/2))
	return m
}

// yamlRules are rules as teams write them: globs, headers, negations.
func yamlRules(n int) measured {
	var b strings.Builder
	b.WriteString("service: orders\nrules:\n")
	for i := range n {
		fmt.Fprintf(&b, `- id: rule-%d
  action: allow
  from:
  - spiffe_ids: ["spiffe://example.org/ns/*/sa/caller-%d", "spiffe://example.org/svc/caller-%d"]
    not_cidrs: ["192.0.2.0/24"]
  to:
  - methods: [GET, POST]
    paths: ["/area-%d/{*}/items", "/shared-%d/{**}"]
    not_paths: ["/area-%d/secret/*"]
    headers: {x-env: ["prod-*"]}
`, i, i%50, i%50, i, i, i)
	}
	m := measured{contentOf(map[string]string{"rules.yaml": b.String()}), asking(0)}
	m.in.Source.ID = fmt.Sprintf("spiffe://example.org/svc/caller-%d", n/2%50)
	m.in.Source.Path = strings.TrimPrefix(m.in.Source.ID, "spiffe://example.org")
	m.in.Request.Headers = policy.MapValues{"x-env": {"prod-eu"}, "accept": {"*/*"}}
	setPath(m.in, fmt.Sprintf("/area-%d/17/items", n/2))
	return m
}

func contentOf(files map[string]string) bundle.Content {
	c := bundle.Content{{Path: "data.json", Content: []byte(ordersCatalogue)}}
	for path, text := range files {
		c = append(c, bundle.File{Path: path, Content: []byte(text)})
	}
	slices.SortFunc(c, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	return c
}

// asking is a request that grant i allows.
func asking(i int) *policy.Input {
	in := question([]string{"GET", "POST"}[i/100%2])
	in.Source = policy.Source{
		ID: fmt.Sprintf("spiffe://example.org/svc/caller-%d", i%100), TrustDomain: "example.org",
		Path: fmt.Sprintf("/svc/caller-%d", i%100), Authn: policy.AuthnMTLS,
	}
	in.Destination = policy.Destination{Service: "orders", ID: "spiffe://example.org/svc/orders", Port: 8443}
	setPath(in, fmt.Sprintf("/area-%d/1001", i/100))
	return in
}

func setPath(in *policy.Input, path string) {
	in.Request.Path = path
	in.Request.Segments, _ = policy.SplitPath(nil, path, false)
}

func (m measured) load(b *testing.B) *opa.Program {
	p, err := opa.Load(m.content)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func BenchmarkPolicy(b *testing.B) {
	for _, name := range policyDecisions {
		b.Run(name, func(b *testing.B) {
			b.Run(ours, func(b *testing.B) {
				m := measuredPolicies[name]()
				decideLoop(b, compiled(b, m.load(b)), m.in)
			})
			b.Run(opaDecision, func(b *testing.B) { evalLoop(b, measuredPolicies[name](), "data.writ.decision") })
			b.Run(opaAllow, func(b *testing.B) { evalLoop(b, measuredPolicies[name](), "data.services.orders.allow") })
		})
	}
}

func compiled(b *testing.B, p *opa.Program) policy.Decider {
	prog, report, err := compile.Compile(b.Context(), p, compile.Config{})
	if err != nil {
		b.Fatal(err)
	}
	for _, s := range report.Services {
		for _, r := range s.Rules {
			if r.Result != compile.Compiled {
				b.Fatalf("%s is %s: %s", r.ID, r.Result, r.Why)
			}
		}
	}
	s, err := compile.Snapshot(func() (*opa.Program, error) { return p, nil }, prog, p.Catalogue().Services, opa.SnapshotConfig{Revision: policy.Revision{Epoch: 1, Number: 1}})
	if err != nil {
		b.Fatal(err)
	}
	return s.Decider
}

func decideLoop(b *testing.B, d policy.Decider, in *policy.Input) {
	var out policy.Decision
	b.ReportAllocs()
	for b.Loop() {
		d.Decide(context.Background(), in, &out)
	}
	if out.Verdict != policy.Allow || len(out.Rules) != 1 {
		b.Fatalf("%s %s %v %s", out.Verdict, out.Tier, out.Rules, out.Reason)
	}
}

// evalLoop is OPA as a Go program would embed it at its best: prepared query,
// store of parsed values, parsed input.
func evalLoop(b *testing.B, m measured, ask string) {
	data, problems := m.content.Data()
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	object, err := ast.InterfaceToValue(data)
	if err != nil {
		b.Fatal(err)
	}
	options := []func(*rego.Rego){rego.Query(ask), rego.Store(inmem.NewFromASTObject(object.(ast.Object)))}
	for name, text := range writrego.Modules() {
		options = append(options, rego.Module(name, text))
	}
	for _, f := range m.content {
		if f.IsModule() {
			options = append(options, rego.Module(f.Path, string(f.Content)))
		}
	}
	query, err := rego.New(options...).PrepareForEval(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	input := parsed(b, m.in)
	b.ReportAllocs()
	var rs rego.ResultSet
	for b.Loop() {
		if rs, err = query.Eval(b.Context(), rego.EvalParsedInput(input), rego.EvalTime(m.in.Time)); err != nil {
			b.Fatal(err)
		}
	}
	if len(rs) != 1 {
		b.Fatal(rs)
	}
}

// BenchmarkTopdown is our own way through topdown beside a bare EvalParsedInput
// of the same query, on the shop's policy.
func BenchmarkTopdown(b *testing.B) {
	b.Run(ours, func(b *testing.B) { benchmarkWrit(b, question("GET"), "allow") })
	b.Run(opaDecision, func(b *testing.B) { benchmarkOPA(b, question("GET"), "allow") })
}

func BenchmarkCompile(b *testing.B) {
	p := grants(10000).load(b)
	for b.Loop() {
		if _, _, err := compile.Compile(b.Context(), p, compile.Config{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkProgramSize tells what a sidecar holds for 10,000 grants.
func BenchmarkProgramSize(b *testing.B) {
	prog, _, err := compile.Compile(b.Context(), grants(10000).load(b), compile.Config{})
	if err != nil {
		b.Fatal(err)
	}
	encoded := prog.Encode()
	prog = nil
	before := heap()
	evaluator := prepared(b, encoded)
	held := heap() - before
	for b.Loop() { // The size is what is told, and it takes no time.
	}
	b.ReportMetric(float64(held)/1e6, "MB")
	b.ReportMetric(float64(len(encoded))/1e6, "encoded-MB")
	runtime.KeepAlive(evaluator)
	runtime.KeepAlive(encoded)
}

func prepared(b *testing.B, encoded []byte) *program.Evaluator {
	p, err := program.Decode(encoded)
	if err != nil {
		b.Fatal(err)
	}
	e, err := program.New(p)
	if err != nil {
		b.Fatal(err)
	}
	return e
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
