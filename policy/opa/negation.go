package opa

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
)

// checkNegations refuses a `not` that does not hold when what it asks about is
// absent. Rego evaluates the arguments of a call before the `not`: with a
// header that is not there,
//
//	deny contains "x" if not "a" in input.request.headers["x-a"]
//
// denies nothing, and
//
//	deny contains "x" if not input.request.headers["x-a"][0] == "a"
//
// does, because a field compared with == is part of what is negated. What may
// be absent is a header, a query parameter, an element of a list, what is found
// by a computed name, and a rule or function that has conditions.
func (l *loader) checkNegations() {
	c := &negationChecker{loader: l, rules: map[string][]*ast.Rule{}}
	for _, m := range l.program.parsed {
		for _, rule := range m.Rules {
			name := m.Package.Path.Append(ast.StringTerm(rule.Head.Ref()[0].Value.String())).String()
			c.rules[name] = append(c.rules[name], rule)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(l.program.parsed)) {
		m := l.program.parsed[path]
		if strings.HasPrefix(path, ownPrefix) {
			continue
		}
		c.pkg, c.imports = m.Package.Path, importsOf(m)
		for _, rule := range m.Rules {
			ast.WalkExprs(rule, func(expr *ast.Expr) bool {
				c.expr(expr)
				return false
			})
		}
	}
}

type negationChecker struct {
	*loader
	rules   map[string][]*ast.Rule
	pkg     ast.Ref
	imports map[ast.Var]ast.Ref
}

func (c *negationChecker) expr(expr *ast.Expr) {
	terms, ok := expr.Terms.([]*ast.Term)
	if !expr.Negated || !ok {
		return
	}
	op := expr.Operator()
	equality := op.Equal(ast.Equality.Ref()) || op.Equal(ast.Equal.Ref())
	for _, arg := range terms[1:] {
		switch arg.Value.(type) {
		case ast.Ref, ast.Var:
			if equality {
				continue
			}
		}
		if absent := c.absent(arg); absent != nil {
			c.fail("", expr.Location, policy.ProblemType, "when %s is absent, this `not` does not hold: what it negates must be a rule of its own (`bad if …`, then `not bad`)", absent)
			return
		}
	}
}

// absent is the part of a term that may have no value.
func (c *negationChecker) absent(t *ast.Term) *ast.Term {
	switch v := t.Value.(type) {
	case ast.Var:
		if c.conditional(c.pkg.Append(ast.StringTerm(string(v)))) {
			return t
		}
	case ast.Ref:
		if c.optional(c.resolved(v)) {
			return t
		}
	case ast.Call:
		for _, arg := range v[1:] {
			if absent := c.absent(arg); absent != nil {
				return absent
			}
		}
		if c.conditional(c.resolved(v[0].Value.(ast.Ref))) {
			return t
		}
	case *ast.Array:
		return c.first(v.Foreach)
	case ast.Set:
		return c.first(v.Foreach)
	}
	return nil
}

func (c *negationChecker) first(each func(func(*ast.Term))) *ast.Term {
	var found *ast.Term
	each(func(t *ast.Term) {
		if found == nil {
			found = c.absent(t)
		}
	})
	return found
}

// resolved puts what is imported, or in the same package, in the place of its
// name.
func (c *negationChecker) resolved(ref ast.Ref) ast.Ref {
	head := varOf(ref[0])
	if imported, ok := c.imports[head]; ok {
		return imported.Concat(ref[1:])
	}
	if own := c.pkg.Append(ast.StringTerm(string(head))); c.rules[own.String()] != nil {
		return own.Concat(ref[1:])
	}
	return ref
}

// optional reports whether a reference may have no value, in an input of layer
// request.
func (c *negationChecker) optional(ref ast.Ref) bool {
	switch {
	case ref[0].Equal(ast.InputRootDocument):
		if len(ref) > 3 && ref[1].Equal(keyRequest) {
			return !ref[2].Equal(keyGRPC)
		}
		return len(ref) > 2 && ref[1].Equal(keyTokens)
	case ref[0].Equal(ast.DefaultRootDocument):
		for i, term := range ref[1:] {
			if c.conditional(ref[:i+2]) {
				return true
			}
			if _, literal := term.Value.(ast.String); !literal {
				return true
			}
		}
	}
	return false
}

// conditional reports whether there are rules, or functions, of that path that
// may give nothing: all of them have conditions, and none is a default.
func (c *negationChecker) conditional(path ast.Ref) bool {
	rules := c.rules[path.String()]
	for _, rule := range rules {
		if rule.Default || rule.Head.RuleKind() == ast.MultiValue || c.always(rule) {
			return false
		}
	}
	return len(rules) > 0
}

// always reports whether a rule has a value for any input: it has no body, and
// for a function no patterns as parameters.
func (c *negationChecker) always(rule *ast.Rule) bool {
	for _, arg := range rule.Head.Args {
		if _, isVar := arg.Value.(ast.Var); !isVar {
			return false
		}
	}
	if !rule.Body.Equal(ast.NewBody(ast.NewExpr(ast.BooleanTerm(true)))) || len(rule.Head.Ref()) > 1 {
		return false
	}
	optional := false
	ast.WalkRefs(rule.Head.Value, func(ref ast.Ref) bool {
		optional = optional || ref[0].Equal(ast.InputRootDocument) && c.optional(ref)
		return optional
	})
	return !optional
}
