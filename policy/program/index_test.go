package program

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
)

// TestLookups: of many clauses with one condition each, exactly those are
// found that hold, whatever the manner in which they are looked up.
func TestLookups(t *testing.T) {
	letters := func(s source, most int) string {
		text := ""
		for range s.IntN(most + 1) {
			text += of(s, "a", "a", "b", "é", "\x00")
		}
		return text
	}
	for name, tc := range map[string]struct {
		op   Op
		kind nodeKind
		want func(s, t string) bool
	}{
		"equal":    {Equal, byText, func(s, t string) bool { return s == t }},
		"prefix":   {Prefix, byPrefix, strings.HasPrefix},
		"suffix":   {Suffix, bySuffix, strings.HasSuffix},
		"contains": {Contains, byContent, strings.Contains},
	} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			s := source{rand.New(rand.NewPCG(seed, 0))}
			texts := make([][]string, 200)
			for i := range texts {
				texts[i] = s.texts(func() string { return letters(s, 7) + strings.Repeat("a", 30*(i%40/39)) })
				if tc.op == Contains { // Of the empty text there is nothing to find.
					texts[i] = s.texts(func() string { return "a" + letters(s, 7) + strings.Repeat("a", 30*(i%40/39)) })
				}
			}
			e, err := New(clausesOf(len(texts), func(i int) []Atom {
				return []Atom{{Field: Field{Base: SNI}, Preds: []Pred{{Op: tc.op, Texts: texts[i]}}}}
			}))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(e.nodes, func(n node) bool { return n.kind == tc.kind }) {
				t.Error("nothing is looked up in this manner")
			}
			found := 0
			for range 2000 {
				in := full()
				in.Connection.SNI = letters(s, 14) + strings.Repeat("a", s.IntN(2)*s.IntN(60))
				var want []int
				for i, texts := range texts {
					if slices.ContainsFunc(texts, func(text string) bool { return tc.want(in.Connection.SNI, text) }) {
						want = append(want, i+1)
					}
				}
				found += len(want)
				if diff := cmp.Diff(want, linesOf(t, e, in)); diff != "" {
					t.Fatalf("seed %d, %q: %s", seed, in.Connection.SNI, diff)
				}
			}
			if found == 0 {
				t.Error("nothing is ever found")
			}
		})
	}
}

// linesOf are the lines of the rules that hold.
func linesOf(t *testing.T, e *Evaluator, in *policy.Input) []int {
	t.Helper()
	var out policy.Decision
	if !e.Decide(in, &out) {
		t.Fatal("asked")
	}
	var lines []int
	for _, rule := range out.Rules {
		lines = append(lines, rule.Line)
	}
	return lines
}

func TestLookupNumbers(t *testing.T) {
	seed := rand.Uint64()
	s := source{rand.New(rand.NewPCG(seed, 0))}
	type bounds struct{ low, high int64 }
	ranges := make([]bounds, 100)
	for i := range ranges {
		low := s.Int64N(300) - 20
		ranges[i] = bounds{low, low + s.Int64N(20)}
	}
	ranges[7], ranges[8], ranges[9] = bounds{math.MinInt64, 4}, bounds{250, math.MaxInt64}, bounds{math.MaxInt64, math.MaxInt64}
	e, err := New(clausesOf(len(ranges), func(i int) []Atom {
		return []Atom{{Field: Field{Base: ContentLength}, Preds: between(ranges[i].low, ranges[i].high)}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(e.nodes, func(n node) bool { return n.kind == byNumber }) {
		t.Error("nothing is looked up by number")
	}
	values := []int64{math.MinInt64, math.MaxInt64 - 1, math.MaxInt64}
	for n := range int64(350) {
		values = append(values, n-30)
	}
	for _, n := range values {
		in := full()
		in.Request.ContentLength = n
		var want []int
		for i, r := range ranges {
			if r.low <= n && n <= r.high {
				want = append(want, i+1)
			}
		}
		if diff := cmp.Diff(want, linesOf(t, e, in)); diff != "" {
			t.Fatalf("seed %d, %d: %s", seed, n, diff)
		}
	}
}

func TestLookupPaths(t *testing.T) {
	seed := rand.Uint64()
	s := source{rand.New(rand.NewPCG(seed, 0))}
	patterns := make([]string, 200)
	for i := range patterns {
		patterns[i] = s.pathPattern()
	}
	e, err := New(clausesOf(len(patterns), func(i int) []Atom {
		return []Atom{{Field: Field{Base: Segments}, Preds: []Pred{{Op: PathMatch, Texts: patterns[i : i+1]}}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(e.nodes, func(n node) bool { return n.kind == byPath }) {
		t.Error("nothing is looked up by path")
	}
	for range 500 {
		in := full()
		in.Request.Segments = nil
		for range s.IntN(5) {
			in.Request.Segments = append(in.Request.Segments, s.segment())
		}
		var want []int
		for i, pattern := range patterns {
			if naivePath(pattern, in.Request.Segments) {
				want = append(want, i+1)
			}
		}
		if diff := cmp.Diff(want, linesOf(t, e, in)); diff != "" {
			t.Fatalf("seed %d, %q: %s", seed, in.Request.Segments, diff)
		}
	}
}

// TestIndexIsBounded: clauses with many texts in many fields do not multiply.
func TestIndexIsBounded(t *testing.T) {
	bases := []Base{SourceID, Method, Host, SNI, ALPN, Path, SourcePath, PeerIP}
	p := clausesOf(400, func(i int) []Atom {
		var atoms []Atom
		for k, base := range bases {
			var texts []string
			for j := range 20 {
				texts = append(texts, fmt.Sprintf("%d-%d", k, (i*7+j*13)%60))
			}
			atoms = append(atoms, Atom{Field: Field{Base: base}, Preds: equal(texts...)})
		}
		return atoms
	})
	e, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	if limit := 400*len(bases)*20 + 8*400 + 4096 + 400; len(e.refs) > limit {
		t.Errorf("%d refs for 400 clauses, more than %d", len(e.refs), limit)
	}
}

// TestTiersAreShared: what is the same for many units is there once.
func TestTiersAreShared(t *testing.T) {
	p := grants(300, 10)
	one, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		u := p.Units[0]
		u.Service = fmt.Sprintf("shop-%02d", i)
		p.Units = append(p.Units, u)
	}
	u := &p.Units[20]
	u.Clauses[policy.ServiceAllow] = slices.Clone(u.Clauses[policy.ServiceAllow])
	u.Clauses[policy.ServiceAllow][7].Ask = true
	many, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(many.refs), 2*len(one.refs); got != want {
		t.Errorf("%d refs for 21 units, of which two differ; want %d", got, want)
	}
	in := inputsFor(300, 10)[0] // It meets grant 0.
	var out policy.Decision
	for _, service := range []string{"shop", "shop-00", "shop-19"} {
		in.Destination.Service = service
		if !many.Decide(in, &out) || out.Tier != policy.ServiceAllow || out.Rules[0].Line != 0 {
			t.Errorf("%s: %+v", service, out)
		}
	}
	d, err := Decode(p.Encode())
	if err != nil {
		t.Fatal(err)
	}
	for i, u := range d.Units {
		if c := u.Clauses[policy.ServiceAllow][7]; c.Ask != (i == 20) || c.Rule != 7 || len(c.Atoms) != 3 {
			t.Errorf("unit %d, clause 7: %+v", i, c)
		}
	}
}
