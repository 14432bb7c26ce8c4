package opa

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
)

// checkLayers refuses a guardrail that reads input.request and does not say
// that it is about requests: on a connection it would be silent without
// anybody having decided so.
//
// What counts as the test is an expression `input.layer == "request"` (or a
// variable that is input.layer), `input.layer in {"request"}`, or a helper all
// of whose bodies test so, in the same rule body, not negated and without
// `with`. What counts as reading is a reference to input.request, to input as
// a whole, or to a helper outside of the guardrail packages that reads so.
// Limits: a test in a function is not seen; such a guardrail repeats it.
func (l *loader) checkLayers() {
	compiler := l.program.compiler
	readers := requestReaders(compiler)
	for _, path := range slices.Sorted(maps.Keys(compiler.Modules)) {
		m := compiler.Modules[path]
		if !isGuardrail(m) {
			continue
		}
		for _, rule := range m.Rules {
			throughHelper := false
			for dep := range compiler.Graph.Dependencies(rule) {
				throughHelper = throughHelper || readers[dep.(*ast.Rule)]
			}
			for r := rule; r != nil; r = r.Else {
				at := requestRead(r)
				if at == nil && throughHelper {
					at = r.Location
				}
				if at != nil && !testsLayer(compiler, r.Body, maxLayerHelpers) {
					l.fail(path, at, policy.ProblemType, `a guardrail that reads input.request must test input.layer == "request" in the same rule body: there is no request at layer connection`)
					break
				}
			}
		}
	}
}

func isGuardrail(m *ast.Module) bool {
	return len(m.Package.Path) > 1 && m.Package.Path[1].Equal(ast.StringTerm("guardrails"))
}

// requestReaders are the rules outside of the guardrail packages that read
// input.request, themselves or by what they use.
func requestReaders(compiler *ast.Compiler) map[*ast.Rule]bool {
	readers := map[*ast.Rule]bool{}
	var mark func(rule *ast.Rule)
	mark = func(rule *ast.Rule) {
		if readers[rule] {
			return
		}
		readers[rule] = true
		for dependent := range compiler.Graph.Dependents(rule) {
			if r := dependent.(*ast.Rule); r.Module == nil || !isGuardrail(r.Module) {
				mark(r)
			}
		}
	}
	for _, m := range compiler.Modules {
		if isGuardrail(m) {
			continue
		}
		for _, rule := range m.Rules {
			for r := rule; r != nil; r = r.Else {
				if requestRead(r) != nil {
					mark(rule)
				}
			}
		}
	}
	return readers
}

// requestRead is where the rule, its else aside, reads input.request.
func requestRead(rule *ast.Rule) *ast.Location {
	var at *ast.Location
	find := func(ref ast.Ref) bool {
		if at == nil && readsRequest(ref) {
			if at = ref[0].Location; at == nil {
				at = rule.Location
			}
		}
		return at != nil
	}
	ast.WalkRefs(rule.Head, find)
	ast.WalkRefs(rule.Body, find)
	return at
}

func readsRequest(ref ast.Ref) bool {
	if !ref[0].Equal(ast.InputRootDocument) {
		return false
	}
	if len(ref) == 1 {
		return true
	}
	name, literal := ref[1].Value.(ast.String)
	return !literal || name == "request"
}

// maxLayerHelpers is how many helpers may lead to the test.
const maxLayerHelpers = 8

func testsLayer(compiler *ast.Compiler, body ast.Body, helpers int) bool {
	layer := map[ast.Var]bool{} // variables that are input.layer
	for _, expr := range body {
		a, b, ok := equation(expr)
		if !ok {
			continue
		}
		if isLayer(a) {
			a, b = b, a
		}
		if v, ok := a.(ast.Var); ok && isLayer(b) {
			layer[v] = true
		}
	}
	is := func(x ast.Value) bool {
		v, _ := x.(ast.Var)
		return isLayer(x) || layer[v]
	}
	for _, expr := range body {
		if a, b, ok := equation(expr); ok && (is(a) && isRequestWord(b) || is(b) && isRequestWord(a)) {
			return true
		}
		if expr.Negated || len(expr.With) > 0 {
			continue
		}
		if expr.IsCall() && expr.Operator().Equal(ast.Member.Ref()) && is(expr.Operand(0).Value) && onlyRequest(expr.Operand(1).Value) {
			return true
		}
		if helper, ok := expr.Terms.(*ast.Term); ok && helpers > 0 && helperTestsLayer(compiler, helper.Value, helpers-1) {
			return true
		}
	}
	return false
}

func isRequestWord(v ast.Value) bool { return v.Compare(ast.String(policy.LayerRequest)) == 0 }

// onlyRequest reports whether a list or set holds the word and no other.
func onlyRequest(v ast.Value) bool {
	switch v := v.(type) {
	case ast.Set:
		return v.Len() == 1 && isRequestWord(v.Slice()[0].Value)
	case *ast.Array:
		return v.Len() == 1 && isRequestWord(v.Elem(0).Value)
	}
	return false
}

// helperTestsLayer reports whether a rule is true at layer request only: each
// of its bodies tests, or is its value.
func helperTestsLayer(compiler *ast.Compiler, v ast.Value, helpers int) bool {
	ref, ok := v.(ast.Ref)
	if !ok || !ref.IsGround() {
		return false
	}
	rules := compiler.GetRulesExact(ref)
	for _, rule := range rules {
		for r := rule; r != nil; r = r.Else {
			value := r.Head.Value
			if value == nil || len(r.Head.Args) > 0 {
				return false
			}
			never := value.Value.Compare(ast.Boolean(false)) == 0
			if !never && !isTestValue(r) && !testsLayer(compiler, r.Body, helpers) {
				return false
			}
		}
	}
	return len(rules) > 0
}

// isTestValue reports whether a rule is `name := input.layer == "request"`,
// which the compiler makes a variable of.
func isTestValue(rule *ast.Rule) bool {
	layer := map[ast.Var]bool{}
	for _, expr := range rule.Body {
		if a, b, ok := equation(expr); ok {
			if v, isVar := a.(ast.Var); isVar && isLayer(b) {
				layer[v] = true
			}
		}
		if expr.Negated || len(expr.With) > 0 || !expr.IsCall() || !expr.Operator().Equal(ast.Equal.Ref()) || len(expr.Operands()) != 3 {
			continue
		}
		a, b := expr.Operand(0).Value, expr.Operand(1).Value
		if isRequestWord(a) {
			a, b = b, a
		}
		v, _ := a.(ast.Var)
		if (isLayer(a) || layer[v]) && isRequestWord(b) && expr.Operand(2).Equal(rule.Head.Value) {
			return true
		}
	}
	return false
}

// equation is the two sides of an expression that holds when they are equal.
func equation(expr *ast.Expr) (a, b ast.Value, ok bool) {
	if expr.Negated || len(expr.With) > 0 || !expr.IsCall() {
		return nil, nil, false
	}
	op := expr.Operator()
	if !op.Equal(ast.Equality.Ref()) && !op.Equal(ast.Equal.Ref()) && !op.Equal(ast.Assign.Ref()) || len(expr.Operands()) != 2 {
		return nil, nil, false
	}
	return expr.Operand(0).Value, expr.Operand(1).Value, true
}

func isLayer(v ast.Value) bool {
	ref, ok := v.(ast.Ref)
	return ok && len(ref) == 2 && ref[0].Equal(ast.InputRootDocument) && ref[1].Equal(ast.StringTerm("layer"))
}
