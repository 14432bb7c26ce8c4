package opa

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// fill says what the parts of a condition were, and why a helper failed.
func (e *explainer) fill(ctx context.Context, c *Condition, kept ast.Body, x *ast.Expr, depth int) {
	for _, part := range parts(x) {
		if len(c.Values) == maxShownValues {
			break
		}
		shown := ShownValue{Text: termText(part), Value: "undefined"}
		values, err := e.values(ctx, kept, part, x.With, 2)
		switch {
		case err != nil:
			shown.Value = "error: " + strings.Join(strings.Fields(err.Error()), " ")
			if _, unbound := part.Value.(ast.Var); unbound {
				continue
			}
		case len(values) > 0:
			shown.Value = showValue(values[0])
			if len(values) > 1 {
				shown.Value += ", and others"
			}
		}
		c.Values = append(c.Values, shown)
		ref, ok := part.Value.(ast.Ref)
		failed := len(values) == 0 || values[0].Compare(ast.Boolean(false)) == 0
		if !ok || !failed || x.Negated || depth >= maxBecause || len(x.With) > 0 {
			continue
		}
		if nearest, ok := e.because(ctx, ref, depth); ok {
			c.Because = append(c.Because, nearest)
		}
	}
}

// because is the definition of a helper that was nearest to hold.
func (e *explainer) because(ctx context.Context, ref ast.Ref, depth int) (RuleOutcome, bool) {
	var outcomes []RuleOutcome
	for _, rule := range e.rules.find(ref) {
		if !rule.Default && len(rule.Head.Args) == 0 {
			outcomes = append(outcomes, e.helper(ctx, rule, depth+1)...)
		}
	}
	outcomes = slices.DeleteFunc(outcomes, func(o RuleOutcome) bool { return o.Held })
	if len(outcomes) == 0 {
		return RuleOutcome{}, false
	}
	return slices.MinFunc(outcomes, nearer), true
}

// helper is the outcome of a helper's bodies. Its value is whatever it is, so
// only whether it has one counts.
func (e *explainer) helper(ctx context.Context, rule *ast.Rule, depth int) []RuleOutcome {
	outcomes := e.rule(ctx, rule, depth)
	for i := range outcomes {
		outcomes[i].Rule.ID = strings.TrimPrefix(rule.Module.Package.Path.Extend(rule.Head.Ref().GroundPrefix()).String(), "data.")
	}
	return outcomes
}

// parts are what an expression compares, without constants: operands, and of
// a call what it is called with.
func parts(x *ast.Expr) []*ast.Term {
	var list []*ast.Term
	var add func(t *ast.Term)
	add = func(t *ast.Term) {
		switch v := t.Value.(type) {
		case ast.Call:
			if !slices.ContainsFunc(list, t.Equal) {
				list = append(list, t)
			}
			for _, arg := range v[1:] {
				add(arg)
			}
		case ast.Var:
			if !v.IsWildcard() && !slices.ContainsFunc(list, t.Equal) {
				list = append(list, t)
			}
		case ast.Ref:
			if !slices.ContainsFunc(list, t.Equal) {
				list = append(list, t)
			}
		case *ast.Array:
			v.Foreach(add)
		}
	}
	switch terms := x.Terms.(type) {
	case *ast.Term:
		add(terms)
	case []*ast.Term:
		for _, t := range terms[1:] {
			add(t)
		}
	case *ast.SomeDecl:
		for _, t := range terms.Symbols {
			if call, ok := t.Value.(ast.Call); ok {
				add(call[len(call)-1]) // some x in xs: what is looked at
			}
		}
	case *ast.Every:
		add(terms.Domain)
	}
	return list
}

// termText is a part as it was written.
func termText(t *ast.Term) string {
	if _, call := t.Value.(ast.Call); !call && t.Location != nil && len(t.Location.Text) > 0 {
		if text := strings.Join(strings.Fields(string(t.Location.Text)), " "); !strings.ContainsAny(text, "{}\n") {
			return text
		}
	}
	return t.String()
}

// showValue is JSON, cut where it is long.
func showValue(v ast.Value) string {
	text := v.String()
	if len(text) <= maxShownBytes {
		return text
	}
	cut := maxShownBytes
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return cmp.Or(text[:cut], "") + "…"
}
