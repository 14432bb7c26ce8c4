package program

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/writ-dev/writ/policy"
)

// grants lets sources call path prefixes of one service: source i%sources,
// prefix by what is left of i, with one of two sets of methods.
func grants(n, sources int) *Program {
	p := &Program{Compiler: "bench"}
	u := Unit{Service: "shop", HasPolicy: true}
	for i := range n {
		p.Rules = append(p.Rules, policy.Rule{ID: fmt.Sprintf("grant-%05d", i), File: "data.json", Line: i})
		methods := []string{"GET"}
		if i%2 == 1 {
			methods = []string{"POST", "PUT"}
		}
		u.Clauses[policy.ServiceAllow] = append(u.Clauses[policy.ServiceAllow], Clause{Rule: uint32(i), Atoms: []Atom{
			{Field: Field{Base: SourceID}, Preds: []Pred{{Op: Equal, Texts: []string{sourceID(i % sources)}}}},
			{Field: Field{Base: Method}, Preds: []Pred{{Op: Equal, Texts: methods}}},
			{Field: Field{Base: Path}, Preds: []Pred{{Op: Prefix, Texts: []string{prefix(i / sources % 100)}}}},
		}})
	}
	p.Units = []Unit{u}
	return p
}

func sourceID(i int) string { return fmt.Sprintf("spiffe://example.org/svc/client-%05d", i) }

func prefix(i int) string { return fmt.Sprintf("/v1/tenants/t%03d/", i) }

func request(source int, method, path string) *policy.Input {
	return &policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest, Time: time.Unix(1700000000, 0),
		Source:      policy.Source{ID: sourceID(source), TrustDomain: "example.org", Path: "/svc/client", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: "shop", ID: "spiffe://example.org/svc/shop", Port: 8080},
		Request: policy.Request{
			Protocol: policy.HTTP, Method: method, Host: "shop.example.org", Path: path, Segments: []string{"v1", "tenants", "t001", "orders"},
			Headers: policy.MapValues{"x-team": {"blue"}, "user-agent": {"curl/8"}}, ContentLength: 512,
		},
		Connection: policy.Connection{PeerIP: "10.1.2.3", ClientIP: "10.1.2.3"},
	}
}

// inputsFor meets each of the grants in a scattered order, so that the caches
// of the processor do not hold one path through the index only.
func inputsFor(n, sources int) []*policy.Input {
	var ins []*policy.Input
	for k := range min(n, 4096) {
		i := k * 7919 % n
		ins = append(ins, request(i%sources, []string{"GET", "POST"}[i%2], prefix(i/sources%100)+"orders/17"))
	}
	return ins
}

func decideAll(b *testing.B, program func() *Program, ins []*policy.Input, want policy.Tier) {
	b.Helper()
	before := heap()
	e, err := New(program())
	if err != nil {
		b.Fatal(err)
	}
	used := heap() - before // The program itself is gone by now.
	var out policy.Decision
	for i, in := range ins {
		if !e.Decide(in, &out) || out.Tier != want {
			b.Fatalf("input %d: %+v", i, out)
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e.Decide(ins[i], &out)
		if i++; i == len(ins) {
			i = 0
		}
	}
	b.ReportMetric(float64(used)/(1<<20), "heap-MB")
	runtime.KeepAlive(e)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkGrants(b *testing.B) {
	for _, size := range []struct{ n, sources int }{{10, 10}, {1000, 100}, {10000, 100}, {10000, 10000}} {
		b.Run(fmt.Sprintf("grants=%d/sources=%d", size.n, size.sources), func(b *testing.B) {
			decideAll(b, func() *Program { return grants(size.n, size.sources) }, inputsFor(size.n, size.sources), policy.ServiceAllow)
		})
	}
	b.Run("grants=10000/denied", func(b *testing.B) {
		decideAll(b, func() *Program { return grants(10000, 100) }, []*policy.Input{request(77, "DELETE", "/v1/tenants/t042/x"), request(123456, "GET", "/v1")}, policy.DefaultDeny)
	})
}

// clausesOf is a program of n service allows.
func clausesOf(n int, atoms func(i int) []Atom) *Program {
	p := &Program{Compiler: "bench"}
	u := Unit{Service: "shop", HasPolicy: true}
	for i := range n {
		p.Rules = append(p.Rules, policy.Rule{ID: fmt.Sprintf("rule-%05d", i), File: "shop.rego", Line: i + 1})
		u.Clauses[policy.ServiceAllow] = append(u.Clauses[policy.ServiceAllow], Clause{Rule: uint32(i), Atoms: atoms(i)})
	}
	p.Units = []Unit{u}
	return p
}

// BenchmarkUnindexed is what OPA's rule index does not help with.
func BenchmarkUnindexed(b *testing.B) {
	b.Run("prefix+method+size=1000", func(b *testing.B) {
		p := func() *Program {
			return clausesOf(1000, func(i int) []Atom {
				return []Atom{
					{Field: Field{Base: Path}, Preds: []Pred{{Op: Prefix, Texts: []string{prefix(i)}}}},
					{Field: Field{Base: Method}, Not: true, Preds: []Pred{{Op: Equal, Texts: []string{"DELETE"}}}},
					{Field: Field{Base: ContentLength}, Preds: []Pred{{Op: Range, Low: 0, High: 1000 + int64(i)}}},
				}
			})
		}
		decideAll(b, p, []*policy.Input{request(1, "GET", prefix(500)+"x")}, policy.ServiceAllow)
	})
	b.Run("oneprefix+size=1000", func(b *testing.B) {
		p := func() *Program {
			return clausesOf(1000, func(i int) []Atom {
				return []Atom{
					{Field: Field{Base: Path}, Preds: []Pred{{Op: Prefix, Texts: []string{"/v1/"}}}},
					{Field: Field{Base: Method}, Not: true, Preds: []Pred{{Op: Equal, Texts: []string{"DELETE"}}}},
					{Field: Field{Base: ContentLength}, Preds: []Pred{{Op: Range, Low: int64(i) * 10, High: int64(i)*10 + 9}}},
				}
			})
		}
		decideAll(b, p, []*policy.Input{request(1, "GET", "/v1/x")}, policy.ServiceAllow)
	})
	b.Run("contains=1000", func(b *testing.B) {
		p := func() *Program {
			return clausesOf(1000, func(i int) []Atom {
				return []Atom{{Field: Field{Base: Path}, Preds: []Pred{{Op: Contains, Texts: []string{fmt.Sprintf("t%03d", i)}}}}}
			})
		}
		decideAll(b, p, []*policy.Input{request(1, "GET", "/v1/tenants/t500/orders/17")}, policy.ServiceAllow)
	})
	b.Run("globs+headers+negations=200", func(b *testing.B) {
		p := func() *Program {
			return clausesOf(200, func(i int) []Atom {
				atoms := []Atom{
					{Field: Field{Base: Path}, Preds: []Pred{{Op: Glob, Texts: []string{"/\x00" + fmt.Sprintf("/v1/tenants/t%03d/*/*", i)}}}},
					{Field: Field{Base: Method}, Not: true, Preds: []Pred{{Op: Equal, Texts: []string{"DELETE"}}}},
				}
				switch i % 4 {
				case 0:
					atoms[0] = Atom{Field: Field{Base: Host}, Preds: []Pred{{Op: Glob, Texts: []string{".\x00*.example.org"}}}}
					atoms = append(atoms, Atom{Field: Field{Base: Header, Name: "x-team"}, Preds: []Pred{{Op: Equal, Texts: []string{fmt.Sprintf("team-%d", i)}}}})
				case 1:
					atoms = append(atoms, Atom{Field: Field{Base: Header, Name: "x-debug"}, Not: true})
				}
				return atoms
			})
		}
		decideAll(b, p, []*policy.Input{request(1, "GET", "/v1/tenants/t001/orders/17")}, policy.ServiceAllow)
	})
}

func BenchmarkNew(b *testing.B) {
	p := grants(10000, 100)
	for b.Loop() {
		if _, err := New(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	data := grants(10000, 100).Encode()
	for b.Loop() {
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(data))/1000, "kB")
}
