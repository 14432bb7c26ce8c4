package opa

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/rego"
)

// Bounds of an explanation.
const (
	explainTimeout = 10 * time.Second
	// How deep helpers of helpers are explained.
	maxBecause = 3
	// Values of one condition, and the bytes that each is shown with.
	maxShownValues = 6
	maxShownBytes  = 200
)

// Explanation says why an input is decided as it is.
type Explanation struct {
	Decision policy.Decision
	// Decided are the rules that made the decision; none for a default deny.
	Decided []RuleOutcome
	// Overruled are the rules that allow, and that a deny stands above.
	Overruled []RuleOutcome
	// Nearest are the rules that do not allow, those that lack least first;
	// none when another would allow.
	Nearest []RuleOutcome
	// Failed are the rules whose evaluation ends in an error.
	Failed []RuleOutcome
	// Incomplete says that the time was over before every rule was looked at.
	Incomplete bool
}

// RuleOutcome is what became of one rule body.
type RuleOutcome struct {
	Tier policy.Tier
	Rule policy.Rule
	// Source is the first line of the rule.
	Source string
	// Held reports whether the body holds.
	Held bool
	// Conditions that fail while those before them hold, in source order.
	Conditions []Condition
	// NotReached counts those that depend on one that fails.
	NotReached int
}

// Condition is one expression of a rule that failed.
type Condition struct {
	File         string
	Line, Column int
	Text         string
	// Values of what is compared, as they were.
	Values []ShownValue
	// Error of a builtin, empty when the condition is just not true.
	Error string
	// Because is the nearest definition of each helper that failed.
	Because []RuleOutcome
}

// ShownValue is a part of a condition and what it was: JSON, cut where it is
// long, or "undefined".
type ShownValue struct {
	Text  string `json:"text"`
	Value string `json:"value"`
}

// ExplainOptions says how much to explain.
type ExplainOptions struct {
	// Nearest rules to return; 3 when 0, all when negative.
	Nearest int
}

// Explain decides in and says why. It evaluates each rule of the service, and
// the guardrails, one condition after the other.
func (p *Program) Explain(ctx context.Context, in *policy.Input, opts ExplainOptions) (*Explanation, error) {
	snapshot, err := p.Snapshot(SnapshotConfig{})
	if err != nil {
		return nil, err
	}
	out := new(Explanation)
	snapshot.Decider.Decide(ctx, in, &out.Decision)
	modules, err := p.Resolved(false)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	asker, err := p.ask(in, explainTimeout)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	e := &explainer{asker: asker, rules: indexResolved(modules)}
	for _, rule := range e.concerned(modules, in.Destination.Service) {
		for _, outcome := range e.rule(ctx, rule, 0) {
			out.add(outcome)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	for _, outcome := range e.writtenRules(ctx, in.Destination.Service) {
		out.add(outcome)
	}
	out.Incomplete = e.late
	if out.Decision.Tier == policy.BreakGlass {
		for _, r := range out.Decision.Rules {
			out.Decided = append(out.Decided, RuleOutcome{Tier: policy.BreakGlass, Rule: r, Source: p.sourceLine(r.File, r.Line), Held: true})
		}
	}
	if len(out.Overruled) > 0 {
		out.Nearest = nil // What stands in the way is the deny alone.
	}
	slices.SortStableFunc(out.Nearest, nearer)
	limit := cmp.Or(opts.Nearest, 3)
	if limit > 0 && len(out.Nearest) > limit {
		out.Nearest = out.Nearest[:limit]
	}
	return out, nil
}

func (x *Explanation) add(o RuleOutcome) {
	switch {
	case o.Held && o.Tier == x.Decision.Tier:
		x.Decided = append(x.Decided, o)
	case o.Held && o.Tier == policy.ServiceAllow:
		x.Overruled = append(x.Overruled, o)
	case o.Held:
		// A deny below the one that decided, or one under a break-glass.
	case slices.ContainsFunc(o.Conditions, func(c Condition) bool { return c.Error != "" }):
		x.Failed = append(x.Failed, o)
	case o.Tier == policy.ServiceAllow && x.Decision.Verdict != policy.Allow:
		x.Nearest = append(x.Nearest, o)
	}
}

// nearer puts the rule first that lacks less.
func nearer(a, b RuleOutcome) int {
	return cmp.Or(cmp.Compare(len(a.Conditions), len(b.Conditions)), cmp.Compare(a.NotReached, b.NotReached))
}

type explainer struct {
	*asker
	rules resolvedRules
	late  bool
}

// concerned are the rules that speak about the service, guardrails first.
func (e *explainer) concerned(modules map[string]*ast.Module, service string) []*ast.Rule {
	type spoken struct {
		tier policy.Tier
		rule *ast.Rule
	}
	var list []spoken
	for _, m := range modules {
		if of := bundle.ServiceOf(m.Package.Path); of != "" && of != service {
			continue
		}
		for _, rule := range m.Rules {
			if tier := tierOf(m.Package.Path, rule.Head.Ref()[0].Value.String()); tier != 0 && !rule.Default {
				list = append(list, spoken{tier, rule})
			}
		}
	}
	slices.SortFunc(list, func(a, b spoken) int {
		return cmp.Or(cmp.Compare(a.tier, b.tier), strings.Compare(a.rule.Location.File, b.rule.Location.File), cmp.Compare(a.rule.Location.Row, b.rule.Location.Row))
	})
	rules := make([]*ast.Rule, len(list))
	for i := range list {
		rules[i] = list[i].rule
	}
	return rules
}

// rule is the outcome of a rule's body and of each else, up to the first that
// holds.
func (e *explainer) rule(ctx context.Context, rule *ast.Rule, depth int) []RuleOutcome {
	var outcomes []RuleOutcome
	for r := rule; r != nil; r = r.Else {
		if time.Now().After(e.deadline) {
			e.late = true
			break
		}
		pkg := rule.Module.Package.Path
		id, literal := ruleID(rule)
		if !literal {
			id = rule.Head.Key.String()
		}
		o := RuleOutcome{
			Tier:   tierOf(pkg, rule.Head.Ref()[0].Value.String()),
			Rule:   policy.Rule{ID: id, File: r.Location.File, Line: r.Location.Row},
			Source: e.program.sourceLine(r.Location.File, r.Location.Row),
		}
		e.body(ctx, conditions(r), depth, &o)
		outcomes = append(outcomes, o)
		if o.Held {
			break
		}
	}
	return outcomes
}

// conditions are what must hold for a rule to speak: its body, and its value
// where that is computed. A constant that is false never speaks.
func conditions(rule *ast.Rule) []*ast.Expr {
	exprs := slices.Clone(rule.Body)
	// A rule without a body has a body that is true.
	exprs = slices.DeleteFunc(exprs, func(x *ast.Expr) bool {
		t, ok := x.Terms.(*ast.Term)
		return ok && t.Value.Compare(ast.Boolean(true)) == 0
	})
	if v := rule.Head.Value; rule.Head.RuleKind() == ast.SingleValue && v != nil && v.Value.Compare(ast.Boolean(true)) != 0 {
		value := ast.NewExpr(v.Copy())
		if value.Location = v.Location; value.Location == nil {
			value.Location = rule.Location
		}
		exprs = append(exprs, value)
	}
	return exprs
}

// body takes the expressions one by one, keeps those that hold together with
// what was kept, and reports the others. One that needs a variable of a later
// one waits for it, as the compiler would have it.
func (e *explainer) body(ctx context.Context, exprs []*ast.Expr, depth int, o *RuleOutcome) {
	var kept ast.Body
	waiting := exprs
	for progress := true; progress && len(waiting) > 0; {
		progress = false
		var later []*ast.Expr
		for _, x := range waiting {
			holds, err := e.holds(ctx, kept, x)
			var compile ast.Errors
			switch {
			case errors.As(err, &compile):
				later = append(later, x)
				continue
			case errors.Is(err, errTooLong):
				e.late = true
				o.Conditions = append(o.Conditions, e.condition(x, err))
				return
			case err != nil:
				o.Conditions = append(o.Conditions, e.condition(x, err))
			case holds:
				kept = append(kept, x.Copy())
			default:
				c := e.condition(x, nil)
				e.fill(ctx, &c, kept, x, depth)
				o.Conditions = append(o.Conditions, c)
			}
			progress = true
		}
		waiting = later
	}
	o.NotReached = len(waiting)
	o.Held = len(o.Conditions) == 0 && o.NotReached == 0
}

func (e *explainer) holds(ctx context.Context, kept ast.Body, x *ast.Expr) (bool, error) {
	found := false
	err := e.solve(ctx, append(kept.Copy(), x.Copy()), func(topdown.QueryResult) bool {
		found = true
		return false
	})
	return found, err
}

func (e *explainer) condition(x *ast.Expr, err error) Condition {
	c := Condition{Text: exprText(x)}
	if at := x.Location; at != nil {
		c.File, c.Line, c.Column = at.File, at.Row, at.Col
	}
	if err != nil {
		c.Error = strings.Join(strings.Fields(err.Error()), " ")
	}
	return c
}

// exprText is the expression as written, on one line.
func exprText(x *ast.Expr) string {
	text := ""
	if x.Location != nil {
		text = string(x.Location.Text)
	}
	return cmp.Or(strings.Join(strings.Fields(text), " "), x.String())
}

func (p *Program) sourceLine(file string, line int) string {
	content, ok := p.content.File(file)
	if name, own := strings.CutPrefix(file, ownPrefix); own {
		content, ok = []byte(rego.Modules()[name]), true
	}
	lines := bytes.Split(content, []byte("\n"))
	if !ok || line < 1 || line > len(lines) {
		return ""
	}
	return strings.TrimSpace(string(lines[line-1]))
}
