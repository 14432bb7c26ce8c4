package opa

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/rules"
)

// maxShownOperands is how many of the values that a YAML rule admits are shown.
const maxShownOperands = 8

var (
	entryVar = ast.VarTerm("writ_entry")
	whichVar = ast.VarTerm("writ_which")
	testVar  = ast.VarTerm("writ_test")
)

// writtenRules are the outcomes of the YAML rules that speak about a service.
func (e *explainer) writtenRules(ctx context.Context, service string) []RuleOutcome {
	var outcomes []RuleOutcome
	set := e.program.written
	for _, group := range []struct {
		path []string
		list []rules.Rule
	}{
		{[]string{"guardrails"}, set.Guardrails},
		{[]string{"services", service}, set.Services[service]},
	} {
		for i := range group.list {
			if time.Now().After(e.deadline) || ctx.Err() != nil {
				e.late = true
				return outcomes
			}
			outcomes = append(outcomes, e.writtenRule(ctx, set, &group.list[i], group.path))
		}
	}
	return outcomes
}

// tierWords are the names of tiers in data.writ.rules.
var tierWords = map[policy.Tier]string{
	policy.Guardrail: "deny", policy.OverridableGuardrail: "deny_overridable", policy.ServiceDeny: "deny", policy.ServiceAllow: "allow",
}

// writtenRule asks the root rule which tests of a rule hold. Of from and to it
// reports the entry that lacks least.
func (e *explainer) writtenRule(ctx context.Context, set *rules.Set, r *rules.Rule, path []string) RuleOutcome {
	o := RuleOutcome{Tier: r.Tier, Rule: policy.Rule{ID: r.ID, File: r.File, Line: r.Line}, Source: e.program.sourceLine(r.File, r.Line)}
	at := ast.MustParseRef("data.writ.rules")
	for _, name := range append(slices.Clone(path), tierWords[r.Tier], r.ID) {
		at = at.Append(ast.StringTerm(name))
	}
	fail := func(part string, i int, text string, err error) *Condition {
		line, column := set.Place(r, part, i)
		c := Condition{File: r.File, Line: line, Column: column, Text: text}
		if err != nil {
			c.Error = strings.Join(strings.Fields(err.Error()), " ")
		}
		o.Conditions = append(o.Conditions, c)
		return &o.Conditions[len(o.Conditions)-1]
	}
	if r.Tier == policy.ServiceAllow && !r.Expires.IsZero() && !e.at.Before(r.Expires) {
		c := fail(rules.PartExpires, 0, "expires: "+r.Expires.UTC().Format(time.RFC3339), nil)
		c.Values = []ShownValue{{"input.time", ast.String(e.at.UTC().Format(time.RFC3339)).String()}}
	}
	for _, p := range []struct {
		name    string
		entries [][]rules.Condition
	}{{rules.PartFrom, r.From}, {rules.PartTo, r.To}} {
		held, err := e.holding(ctx, at.Append(ast.StringTerm(p.name)).Append(entryVar).Append(whichVar))
		if err != nil {
			fail(p.name, 0, p.name, err)
			continue
		}
		best, lacking := -1, []int(nil)
		for i, entry := range p.entries {
			missing := missingTests(entry, held[i])
			// Of two that lack as much, the one of which more holds.
			if best < 0 || len(missing) < len(lacking) || len(missing) == len(lacking) && len(entry) > len(p.entries[best]) {
				best, lacking = i, missing
			}
		}
		for _, j := range lacking {
			test := &p.entries[best][j]
			c := fail(p.name, best, p.name+": "+testText(test), nil)
			e.fillWritten(ctx, c, test)
		}
	}
	held, err := e.holding(ctx, at.Append(ast.StringTerm(rules.PartWhen)).Append(whichVar))
	if err != nil {
		fail(rules.PartWhen, 0, rules.PartWhen, err)
	} else {
		for _, j := range missingTests(r.When, held[0]) {
			c := fail(rules.PartWhen, j, rules.PartWhen+": "+testText(&r.When[j]), nil)
			e.fillWritten(ctx, c, &r.When[j])
		}
	}
	o.Held = len(o.Conditions) == 0
	return o
}

// holding are the tests below a reference that hold, by entry and place.
func (e *explainer) holding(ctx context.Context, ref ast.Ref) (map[int]map[int]bool, error) {
	body := ast.NewBody(
		ast.Equality.Expr(testVar, ast.NewTerm(ref)),
		ast.NewExpr([]*ast.Term{ast.NewTerm(ast.MustParseRef("data.writ.holds")), testVar}),
	)
	held := map[int]map[int]bool{}
	err := e.solve(ctx, body, func(result topdown.QueryResult) bool {
		entry, which := boundTo(result, entryVar), boundTo(result, whichVar)
		if held[entry] == nil {
			held[entry] = map[int]bool{}
		}
		held[entry][which] = true
		return true
	})
	if errors.Is(err, errTooLong) {
		e.late = true
	}
	return held, err
}

func boundTo(result topdown.QueryResult, v *ast.Term) int {
	if t := result[v.Value.(ast.Var)]; t != nil {
		if n, ok := t.Value.(ast.Number); ok {
			i, _ := n.Int()
			return i
		}
	}
	return 0
}

func missingTests(list []rules.Condition, held map[int]bool) []int {
	var missing []int
	for i := range list {
		if !held[i] {
			missing = append(missing, i)
		}
	}
	return missing
}

// testText says what a test asks, in the words of its normal form.
func testText(c *rules.Condition) string {
	field := c.Field
	if c.Name != "" {
		field += fmt.Sprintf("[%q]", c.Name)
	}
	not := ""
	if c.Not {
		not = "not "
	}
	var operands []string
	switch c.Op {
	case rules.OpExists:
		return not + field + " exists"
	case rules.OpToken:
		for i := range c.Token {
			operands = append(operands, testText(&c.Token[i]))
		}
		return not + "one token with " + strings.Join(operands, " and ")
	case rules.OpWindow:
		clock := func(s int64) string { return fmt.Sprintf("%02d:%02d", s/3600, s/60%60) }
		return fmt.Sprintf("%s%s on %s from %s to %s, UTC%+.1fh", not, field, strings.Join(c.Window.Days, ", "),
			clock(c.Window.From), clock(c.Window.To), time.Duration(c.Window.Offset).Hours())
	case rules.OpPath:
		for _, p := range c.Paths {
			operands = append(operands, p.Text)
		}
	case rules.OpRange:
		for _, r := range c.Ranges {
			operands = append(operands, rangeText(c.Field, r))
		}
	default:
		operands = c.Texts
	}
	shown := strings.Join(operands[:min(len(operands), maxShownOperands)], ", ")
	if more := len(operands) - maxShownOperands; more > 0 {
		shown += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("%s%s %s [%s]", not, field, c.Op, shown)
}

func rangeText(field string, r rules.Range) string {
	if field == rules.FieldTime {
		return time.Unix(0, r.Low).UTC().Format(time.RFC3339) + " to " + time.Unix(0, r.High).UTC().Format(time.RFC3339)
	}
	if r.Low == r.High {
		return fmt.Sprint(r.Low)
	}
	return fmt.Sprintf("%d to %d", r.Low, r.High)
}

// fillWritten says what the field of a test was.
func (e *explainer) fillWritten(ctx context.Context, c *Condition, test *rules.Condition) {
	name := test.Field
	switch name {
	case rules.FieldHost:
		name = "request.host"
	case rules.FieldToken:
		name = "token_status"
	}
	ref := ast.Ref{ast.InputRootDocument}
	for part := range strings.SplitSeq(name, ".") {
		ref = ref.Append(ast.StringTerm(part))
	}
	if test.Name != "" {
		ref = ref.Append(ast.StringTerm(test.Name))
	}
	shown := ShownValue{Text: ref.String(), Value: "undefined"}
	values, err := e.values(ctx, nil, ast.NewTerm(ref), nil, 1)
	if err == nil && len(values) > 0 {
		shown.Value = showValue(values[0])
	}
	c.Values = append(c.Values, shown)
}
