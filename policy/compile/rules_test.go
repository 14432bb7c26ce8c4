package compile

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

const rulesCatalogue = `{"writ": {
	"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}, "payments": {"spiffe_ids": ["spiffe://example.org/svc/payments"]}},
	"break_glass": {"b1": {"service": "orders", "source_ids": ["spiffe://example.org/svc/batch"], "granted": "2030-01-01T12:00:00Z",
		"expires": "2030-01-01T13:00:00Z", "approvers": ["ann", "bob"], "ticket": "T1"}}}}`

// TestRulesEqualTopdown: what is compiled of YAML rules is what the interpreter
// says of them, for generated rules and inputs.
func TestRulesEqualTopdown(t *testing.T) {
	policies, inputs := 300, 200
	if testing.Short() || underRace {
		policies = 40
	}
	const shares = 4
	var all [shares]comparison
	t.Run("generated", func(t *testing.T) {
		for share := range shares {
			t.Run(strconv.Itoa(share), func(t *testing.T) {
				t.Parallel()
				all[share].tiers = map[policy.Tier]int{}
				for seed := share; seed < policies; seed += shares {
					all[share].policy(t, seed, inputs)
				}
			})
		}
	})
	tiers, asked := map[policy.Tier]int{}, 0
	for _, c := range all {
		asked += c.asked
		for tier, n := range c.tiers {
			tiers[tier] += n
		}
	}
	t.Logf("tiers %v, %d asked", tiers, asked)
	for tier := policy.Guardrail; tier <= policy.DefaultDeny; tier++ {
		if tiers[tier] < 100 {
			t.Errorf("%d decisions by %v: too few to tell", tiers[tier], tier)
		}
	}
	if asked > policies*inputs/3 {
		t.Errorf("%d of %d asked", asked, policies*inputs)
	}
}

// comparison counts what was decided both ways.
type comparison struct {
	tiers map[policy.Tier]int
	asked int
}

func (c *comparison) policy(t *testing.T, seed, inputs int) {
	w := ruleWriter{rand.New(rand.NewPCG(uint64(seed), 7))}
	content := bundle.Content{
		{Path: "data.json", Content: []byte(rulesCatalogue)},
		{Path: "orders.rules.yaml", Content: []byte(w.services())},
	}
	if w.r.IntN(2) == 0 {
		content = append(content, bundle.File{Path: "rules.yaml", Content: []byte(w.guardrails())})
	}
	if w.r.IntN(3) == 0 {
		content = append(content, bundle.File{Path: "orders_extra.rego", Content: []byte(besideRules)})
	}
	slices.SortFunc(content, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	p, problems := opa.Check(content)
	if len(problems) > 0 {
		t.Fatalf("policy %d: %v\n%s", seed, problems, written(content))
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
			c.asked++
			continue
		}
		topdown.Decider.Decide(t.Context(), in, &want)
		c.tiers[want.Tier]++
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("policy %d, input %+v (-topdown +compiled):\n%s\n%s", seed, in, diff, written(content))
		}
	}
}

// besideRules is Rego that speaks in the same tiers.
const besideRules = `package services.orders

allow contains "rego" if input.request.method == "GET"

deny contains sprintf("no-%s", [input.request.host]) if input.request.headers["x-env"][0] == "test"
`

// written are the rules files.
func written(content bundle.Content) string {
	var b strings.Builder
	for _, f := range content {
		if f.IsRules() {
			fmt.Fprintf(&b, "-- %s --\n%s", f.Path, f.Content)
		}
	}
	return b.String()
}

// TestRulesReport says what becomes of each rule.
func TestRulesReport(t *testing.T) {
	many := func(key, form string) string {
		var b strings.Builder
		for i := range 100 {
			fmt.Fprintf(&b, "{%s: [\"%s\"]}, ", key, fmt.Sprintf(form, i))
		}
		return "[" + b.String() + "]"
	}
	p, problems := opa.Check(bundle.Content{
		{Path: "data.json", Content: []byte(rulesCatalogue)},
		{Path: "orders.rules.yaml", Content: []byte(`service: orders
rules:
  - {id: plain, action: allow, from: [{names: [web]}, {names: [batch]}], to: [{methods: [GET], ports: [80, 443]}]}
  - {id: claims, action: allow, from: [{claims: {role: [admin], team: [a]}}]}
  - {id: hours, action: allow, from: [{names: [web]}], when: [{window: {from: "08:00", to: "18:00"}}]}
  - {id: hours-of-all, action: allow, from: any, when: [{window: {from: "08:00", to: "18:00"}}]}
  - {id: many, action: allow, from: ` + many("names", "n%d") + `, to: ` + many("paths", "/p%d") + `}
`)},
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	_, report, err := Compile(t.Context(), p, Config{Services: []string{"orders"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range report.Services[0].Rules {
		if r.Tier == policy.ServiceAllow.String() {
			got = append(got, fmt.Sprintf("%s:%d %s %s %d %s", r.File, r.Line, r.ID, r.Result, r.Clauses, r.Why))
		}
	}
	want := []string{
		"orders.rules.yaml:3 plain compiled 2 ",
		"orders.rules.yaml:4 claims guarded 4 a claim may be a list with more than texts in it",
		"orders.rules.yaml:5 hours compiled 1 ",
		"orders.rules.yaml:6 hours-of-all compiled 1 ",
		"orders.rules.yaml:7 many topdown 1 too many combinations of from, to and when",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func compiledRules(t testing.TB, p *opa.Program) *program.Evaluator {
	t.Helper()
	prog, _, err := Compile(t.Context(), p, Config{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := program.New(prog)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
