package opa

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
)

// checkInputs finds what no input can be in the values that `with` puts into
// its place: a test that asks about a misspelt field tests nothing. It follows
// literals, variables, rules and functions of the same package, and
// object.union; a field may be missing, because a test names only what it is
// about.
func (l *loader) checkInputs(modules map[string]*ast.Module) {
	c := &inputChecker{loader: l, rules: map[string][]*ast.Rule{}, words: words(), seen: map[*ast.Term]bool{}}
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		for _, rule := range modules[path].Rules {
			name := ruleName(modules[path], rule.Head.Ref()[0].Value)
			c.rules[name] = append(c.rules[name], rule)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		if strings.HasPrefix(path, ownPrefix) {
			continue
		}
		for _, rule := range modules[path].Rules {
			ast.WalkExprs(rule, func(expr *ast.Expr) bool {
				for _, w := range expr.With {
					c.with(w, rule)
				}
				return false
			})
		}
	}
}

func ruleName(m *ast.Module, name ast.Value) string {
	return m.Package.Path.String() + " " + name.String()
}

type inputChecker struct {
	*loader
	rules map[string][]*ast.Rule // by package and name
	words map[string][]string
	seen  map[*ast.Term]bool
}

// place is where a value goes: its path in input, the type that is wanted
// there, and the rule that it is written in.
type place struct {
	path string
	want types.Type
	rule *ast.Rule
}

func (c *inputChecker) with(w *ast.With, rule *ast.Rule) {
	target, ok := w.Target.Value.(ast.Ref)
	if !ok || !target[0].Equal(ast.InputRootDocument) {
		return
	}
	at := place{target.String(), inputType(), rule}
	for _, name := range target[1:] {
		if at.want == nil {
			return // checkFields has said so.
		}
		at.want = step(at.want, name)
	}
	c.value(w.Value, at)
}

func (c *inputChecker) value(t *ast.Term, at place) {
	if at.want == nil || types.Compare(at.want, types.A) == 0 {
		return
	}
	switch v := t.Value.(type) {
	case ast.Object:
		if _, ok := at.want.(*types.Object); !ok {
			c.want(t, at)
			return
		}
		v.Foreach(func(key, value *ast.Term) { c.field(key, value, at) })
	case *ast.Array:
		if _, ok := at.want.(*types.Array); !ok {
			c.want(t, at)
			return
		}
		v.Foreach(func(element *ast.Term) {
			c.value(element, place{at.path + "[]", types.Values(at.want), at.rule})
		})
	case ast.String:
		if types.Compare(at.want, types.S) != 0 {
			c.want(t, at)
		} else if known := c.words[at.path]; known != nil && !slices.Contains(known, string(v)) {
			c.fail("", t.Location, policy.ProblemType, "%s is never %q, but %s%s", at.path, string(v), strings.Join(known, " or "), didYouMean(string(v), known))
		}
	case ast.Number:
		if types.Compare(at.want, types.N) != 0 {
			c.want(t, at)
		}
	case ast.Boolean, ast.Null, ast.Set:
		c.want(t, at)
	default:
		if !c.seen[t] { // Rules may use each other in a circle here.
			c.seen[t] = true
			c.follow(t, at)
			delete(c.seen, t)
		}
	}
}

func (c *inputChecker) field(key, value *ast.Term, at place) {
	name, literal := key.Value.(ast.String)
	if !literal {
		return
	}
	want := types.Select(at.want, string(name))
	if want == nil {
		c.fail("", key.Location, policy.ProblemType, "%s has no field %q%s", at.path, string(name), nearmiss.Hint(string(name), fieldsOf(at.want)))
		return
	}
	if lower := strings.ToLower(string(name)); at.path == "input.request.headers" && lower != string(name) {
		c.fail("", key.Location, policy.ProblemType, "header names are lower case: did you mean %q?", lower)
	}
	c.value(value, place{at.path + "." + string(name), want, at.rule})
}

// follow looks at what a variable or a call stands for.
func (c *inputChecker) follow(t *ast.Term, at place) {
	switch v := t.Value.(type) {
	case ast.Var:
		if value := assigned(at.rule, v); value != nil {
			c.value(value, at)
			return
		}
		c.heads(v, false, at)
	case ast.Call:
		operator := v[0].Value.(ast.Ref)
		switch {
		case operator.String() == "object.union" && len(v) == 3:
			c.value(v[1], at)
			c.value(v[2], at)
		case len(operator) == 1:
			c.heads(operator[0].Value, true, at)
		}
	}
}

// heads looks at the values of the rules, or functions, of that name.
func (c *inputChecker) heads(name ast.Value, function bool, at place) {
	for _, rule := range c.rules[ruleName(at.rule.Module, name)] {
		for r := rule; r != nil; r = r.Else {
			if len(r.Head.Args) > 0 == function && r.Head.Value != nil {
				c.value(r.Head.Value, place{at.path, at.want, r})
			}
		}
	}
}

// assigned is what the rule assigns to a variable, nil when it does so nowhere
// or in several places.
func assigned(rule *ast.Rule, v ast.Var) *ast.Term {
	var value *ast.Term
	count := 0
	ast.WalkExprs(rule, func(expr *ast.Expr) bool {
		if expr.IsAssignment() && expr.Operand(0).Value.Compare(v) == 0 {
			value = expr.Operand(1)
			count++
		}
		return false
	})
	if count == 1 {
		return value
	}
	return nil
}

func (c *inputChecker) want(t *ast.Term, at place) {
	kind := "an object"
	switch at.want.(type) {
	case types.String:
		kind = "a text"
	case types.Number:
		kind = "a number"
	case *types.Array:
		kind = "a list"
	}
	c.fail("", t.Location, policy.ProblemType, "%s: want %s, not %s", at.path, kind, t)
}
