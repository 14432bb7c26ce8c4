package program

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/writ-dev/writ/policy"
)

func TestTiers(t *testing.T) {
	rules := []policy.Rule{{ID: "z", File: "a.rego", Line: 1}, {ID: "b"}, {ID: "é"}, {ID: "B"}}
	method := func(s string) []Atom { return []Atom{{Field: Field{Base: Method}, Preds: equal(s)}} }
	u := Unit{Service: "shop", HasPolicy: true}
	u.Clauses[policy.Guardrail] = []Clause{{Rule: 1, Atoms: method("GUARD")}}
	u.Clauses[policy.BreakGlass] = []Clause{
		{Rule: 0, Atoms: method("GLASS"), Expires: 900}, {Rule: 1, Atoms: method("GLASS"), Expires: 700}, {Rule: 2, Expires: 10, Atoms: method("NONE")},
	}
	u.Clauses[policy.OverridableGuardrail] = []Clause{{Rule: 1, Atoms: method("OVER")}, {Rule: 1, Atoms: method("GLASS")}}
	u.Clauses[policy.ServiceDeny] = []Clause{{Rule: 1, Atoms: method("DENY")}, {Rule: 1, Atoms: method("OVER")}}
	u.Clauses[policy.ServiceAllow] = []Clause{
		{Rule: 0, Atoms: method("GET")}, {Rule: 2, Atoms: method("GET")}, {Rule: 1, Atoms: method("GET")}, {Rule: 3, Atoms: method("GET")},
		{Rule: 0, Atoms: []Atom{{Field: Field{Base: Host}}, method("GET")[0]}},
		{Rule: 2, Atoms: method("DENY")}, {Rule: 2, Atoms: method("ASK")}, {Ask: true, Atoms: method("ASK")},
	}
	bare := Unit{Service: "bare"}
	e, err := New(&Program{Rules: rules, Units: []Unit{bare, u}})
	if err != nil {
		t.Fatal(err)
	}
	revision := policy.Revision{Epoch: 1, Number: 2}
	e = e.At(revision)
	for _, tc := range []struct {
		service, method string
		want            policy.Decision
	}{
		{"shop", "GUARD", policy.Decision{Verdict: policy.Deny, Tier: policy.Guardrail, Rules: rules[1:2]}},
		{"shop", "GLASS", policy.Decision{Verdict: policy.Allow, Tier: policy.BreakGlass, Rules: []policy.Rule{rules[1], rules[0]}, Expires: time.Unix(0, 700).UTC()}},
		{"shop", "OVER", policy.Decision{Verdict: policy.Deny, Tier: policy.OverridableGuardrail, Rules: rules[1:2]}},
		{"shop", "DENY", policy.Decision{Verdict: policy.Deny, Tier: policy.ServiceDeny, Rules: rules[1:2]}},
		{"shop", "GET", policy.Decision{Verdict: policy.Allow, Tier: policy.ServiceAllow, Rules: []policy.Rule{rules[3], rules[1], rules[0], rules[2]}}},
		{"shop", "PUT", policy.Decision{Verdict: policy.Deny, Tier: policy.DefaultDeny, Reason: "no rule allows it"}},
		{"bare", "GET", policy.Decision{Verdict: policy.Deny, Tier: policy.DefaultDeny, Reason: `no policy for service "bare"`}},
	} {
		in := full()
		in.Destination.Service, in.Request.Method = tc.service, tc.method
		tc.want.Revision = revision
		got := policy.Decision{Reason: "old", Rules: []policy.Rule{{ID: "old"}}, Obligations: []policy.Obligation{{Name: "old"}}}
		if !e.Decide(in, &got) {
			t.Errorf("%s %s: asked", tc.service, tc.method)
		}
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s %s: %s", tc.service, tc.method, diff)
		}
	}
	in := full()
	in.Request.Method = "ASK"
	out := policy.Decision{Reason: "old", Rules: []policy.Rule{{ID: "old"}}}
	if e.Decide(in, &out) || len(out.Rules) > 0 || out.Reason != "" || !out.Revision.IsZero() {
		t.Errorf("not asked, or with something left: %+v", out)
	}
}

func TestAsk(t *testing.T) {
	host := Atom{Field: Field{Base: Host}, Preds: equal("a\uFFFD")}
	claim := func(base Base, name string, index int32) Atom {
		return Atom{Token: []Atom{{Field: Field{Base: base, Name: name, Index: index}}}}
	}
	for name, tc := range map[string]struct {
		change func(in *policy.Input)
		atoms  []Atom
	}{
		"layer":          {func(in *policy.Input) { in.Layer = "" }, nil},
		"time":           {func(in *policy.Input) { in.Time = time.Time{} }, nil},
		"time too late":  {func(in *policy.Input) { in.Time = time.Unix(math.MaxInt64/int64(time.Second), 0) }, nil},
		"time too early": {func(in *policy.Input) { in.Time = time.Unix(-1<<40, 0) }, nil},
		"service":        {func(in *policy.Input) { in.Destination.Service = "other" }, nil},
		"UTF-8":          {func(in *policy.Input) { in.Request.Host = "a\xff" }, []Atom{host}},
		"UTF-8 before a step": {
			func(in *policy.Input) { in.Request.Host = "a\xff" },
			[]Atom{{Field: Field{Base: Host, Via: []Step{{Kind: Lower}}}, Preds: equal("b")}},
		},
		"UTF-8 of two fields": {
			func(in *policy.Input) { in.Request.Host, in.Connection.SNI = "a\uFFFD", "a\xff" },
			[]Atom{{Field: Field{Base: Host}, Preds: []Pred{{Op: EqualField, Other: &Field{Base: SNI}}}}},
		},
		"UTF-8 in one of many": {
			func(in *policy.Input) { in.Request.Headers = policy.MapValues{"h": {"a", "\xff"}} },
			[]Atom{{Field: Field{Base: Header, Name: "h", Index: Any}, Preds: []Pred{{Op: Glob, Texts: []string{"\x00b*"}}}}},
		},
		"UTF-8 in the path": {
			func(in *policy.Input) { in.Request.Segments = []string{"a", "\xff"} },
			[]Atom{{Field: Field{Base: Segments}, Not: true, Preds: []Pred{{Op: PathMatch, Texts: []string{"/a/b"}}}}},
		},
		"claim is a number":  {nil, []Atom{claim(TokenClaim, "n", 0)}},
		"claim is no list":   {nil, []Atom{claim(TokenClaimItem, "role", Any)}},
		"element is no text": {nil, []Atom{claim(TokenClaimItem, "mixed", Any)}},
		"claim of another kind": {
			func(in *policy.Input) { in.Tokens[1].Claims["x"] = []int{1} }, []Atom{claim(TokenClaimKind, "x", 0)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := full()
			if tc.change != nil {
				tc.change(in)
			}
			var out policy.Decision
			if decideAlone(t, in, &out, tc.atoms...) {
				t.Errorf("answered %+v", out)
			}
		})
	}
	in := full()
	in.Connection.ALPN, in.Request.Host = "\xff", "a\xff"
	if holds(t, in, Atom{Field: Field{Base: Method}, Preds: equal("no")}, host) {
		t.Error("it holds")
	} // And did not ask about what it did not read.
	in.Request.Host = "a\xff"
	if holds(t, in, Atom{Field: Field{Base: Host}, Preds: equal("a")}) || !holds(t, in, Atom{Field: Field{Base: Host}, Preds: []Pred{{Op: Prefix, Texts: []string{"a"}}}}) {
		t.Error("bytes that topdown replaces count where the policy has no such character")
	}

	// A claim that is tested to be a text is not asked about, also where an index
	// looks for it.
	var guarded []Atom
	for _, role := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		guarded = append(guarded, Atom{Token: []Atom{
			{Field: Field{Base: TokenClaimKind, Name: "n"}, Preds: equal("string")},
			{Field: Field{Base: TokenClaim, Name: "n"}, Preds: equal(role)},
		}})
	}
	p := clausesOf(len(guarded), func(i int) []Atom { return guarded[i : i+1] })
	if e, err := New(p); err != nil || !e.Decide(full(), new(policy.Decision)) {
		t.Errorf("asked about a claim that is guarded (%v)", err)
	}
	p = clausesOf(len(guarded), func(i int) []Atom { return []Atom{{Token: guarded[i].Token[1:]}} })
	if e, err := New(p); err != nil || e.Decide(full(), new(policy.Decision)) {
		t.Errorf("not asked about a claim that is not guarded (%v)", err)
	}

	u := Unit{Service: "shop", Ask: []Clause{{Atoms: []Atom{{Field: Field{Base: PeerIP}, Not: true, Preds: []Pred{{Op: Address}}}}}}}
	e, err := New(&Program{Units: []Unit{u}})
	if err != nil {
		t.Fatal(err)
	}
	var out policy.Decision
	if in = full(); !e.Decide(in, &out) {
		t.Error("asked about an address")
	}
	if in.Connection.PeerIP = "x"; e.Decide(in, &out) {
		t.Error("answered for what is no address")
	}
}

func TestConcurrentDecide(t *testing.T) {
	p := grants(500, 10)
	e, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	ins := inputsFor(500, 10)
	var wait sync.WaitGroup
	for worker := range 8 {
		wait.Go(func() {
			var out policy.Decision
			for i := range 2000 {
				k := (i + worker*61) % len(ins)
				grant := k * 7919 % 500
				if !e.Decide(ins[k], &out) || len(out.Rules) != 1 || out.Rules[0].Line != grant {
					t.Errorf("request for grant %d: %+v", grant, out)
					return
				}
			}
		})
	}
	wait.Wait()
}

func TestAllocations(t *testing.T) {
	many := full()
	many.Source.ID = sourceID(1)
	many.Request.Headers = policy.MapValues{"x-forwarded-for": {"10.0.0.1, 10.0.0.2"}, "host": {"SHOP.Example"}}
	p := grants(1000, 100)
	for i, atom := range []Atom{
		{Field: Field{Base: Host, Via: []Step{{Kind: Lower}}}, Preds: equal("shop.example")},
		{Field: Field{Base: Header, Name: "x-forwarded-for", Index: Any, Via: []Step{{Kind: SplitElement, Text: ",", Index: Any}, {Kind: TrimSpace}}}, Preds: []Pred{{Op: CIDR, Texts: []string{"10.0.0.0/8"}}}},
		{Field: Field{Base: Path}, Preds: []Pred{{Op: Regex, Texts: []string{"^/pkg.*Get$"}}}},
		{Field: Field{Base: Path}, Preds: []Pred{{Op: Glob, Texts: []string{"/\x00/pkg.*/G*t"}}}},
		{Field: Field{Base: Segments}, Preds: []Pred{{Op: PathMatch, Texts: []string{"/{**}/G*"}}}},
		{Token: []Atom{{Field: Field{Base: TokenAudience, Index: Any}, Preds: equal("y")}, {Field: Field{Base: TokenClaim, Name: "role"}, Preds: equal("admin")}}},
	} {
		p.Units[0].Clauses[policy.ServiceAllow] = append(p.Units[0].Clauses[policy.ServiceAllow], Clause{Rule: uint32(i), Atoms: []Atom{atom}})
	}
	e, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]*policy.Input{"grant": inputsFor(1000, 100)[3], "many": many, "denied": request(1, "DELETE", "/")} {
		var out policy.Decision
		if !e.Decide(in, &out) {
			t.Fatalf("%s: asked", name)
		}
		if name == "many" && len(out.Rules) != 6 {
			t.Errorf("%d of 6 rules", len(out.Rules))
		}
		// The pool is emptied by the garbage collector now and then, which the
		// average over many runs rounds away.
		if n := testing.AllocsPerRun(1000, func() { e.Decide(in, &out) }); n != 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestManyUnits(t *testing.T) {
	for _, n := range []int{1, fewTexts, 50} {
		p := &Program{}
		for i := range n {
			p.Units = append(p.Units, Unit{Service: fmt.Sprintf("service-%03d", i)})
		}
		e, err := New(p)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n + 1 {
			in := full()
			in.Destination.Service = fmt.Sprintf("service-%03d", i)
			var out policy.Decision
			if answered := e.Decide(in, &out); answered != (i < n) {
				t.Errorf("%d units: %s answered: %v", n, in.Destination.Service, answered)
			} else if want := fmt.Sprintf("no policy for service %q", in.Destination.Service); answered && out.Reason != want {
				t.Errorf("%d units: %q; want %q", n, out.Reason, want)
			}
		}
	}
}
