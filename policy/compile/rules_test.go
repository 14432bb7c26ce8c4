package compile

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

const rulesCatalogue = `{"writ": {
	"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}, "payments": {"spiffe_ids": ["spiffe://example.org/svc/payments"]}}}}`

// TestRulesEqualTopdown: what is compiled of YAML rules is what the interpreter
// says of them, for generated rules and inputs.
func TestRulesEqualTopdown(t *testing.T) {
	const policies, inputs = 300, 200
	tiers := map[policy.Tier]int{}
	asked := 0
	for seed := range uint64(policies) {
		w := ruleWriter{rand.New(rand.NewPCG(seed, 7))}
		content := bundle.Content{
			{Path: "data.json", Content: []byte(rulesCatalogue)},
			{Path: "orders.rules.yaml", Content: []byte(w.services())},
		}
		if w.r.IntN(2) == 0 {
			content = append(content, bundle.File{Path: "rules.yaml", Content: []byte(w.guardrails())})
		}
		p, problems := opa.Check(content)
		if len(problems) > 0 {
			t.Fatalf("policy %d: %v\n%s", seed, problems, content[1].Content)
		}
		topdown, err := p.Snapshot(opa.SnapshotConfig{Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		compiled := compiledRules(t, p)
		for range inputs {
			in := w.input()
			var want, got policy.Decision
			if !compiled.Decide(in, &got) {
				asked++
				continue
			}
			topdown.Decider.Decide(t.Context(), in, &want)
			tiers[want.Tier]++
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("policy %d, input %+v (-topdown +compiled):\n%s\n%s", seed, in, diff, slices.Concat(content[1].Content, content[len(content)-1].Content))
			}
		}
	}
	t.Logf("tiers %v, %d asked", tiers, asked)
	for tier := policy.Guardrail; tier <= policy.DefaultDeny; tier++ {
		if tier != policy.BreakGlass && tiers[tier] < 100 {
			t.Errorf("%d decisions by %v: too few to tell", tiers[tier], tier)
		}
	}
	if asked > policies*inputs/3 {
		t.Errorf("%d of %d asked", asked, policies*inputs)
	}
}

func compiledRules(t testing.TB, p *opa.Program) *program.Evaluator {
	t.Helper()
	prog := &program.Program{Digest: p.Digest()}
	set := p.Rules()
	u := program.Unit{Service: "orders", HasPolicy: len(set.Services["orders"]) > 0}
	for _, r := range slices.Concat(set.Guardrails, set.Services["orders"]) {
		w := translate(&r)
		for _, c := range w.clauses {
			c.Rule = uint32(len(prog.Rules))
			u.Clauses[r.Tier] = append(u.Clauses[r.Tier], c)
		}
		u.Ask = append(u.Ask, w.asks...)
		prog.Rules = append(prog.Rules, policy.Rule{ID: r.ID, File: r.File, Line: r.Line})
	}
	prog.Units = []program.Unit{u}
	e, err := program.New(prog)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
