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
// variable that is input.layer) in the same rule body, not negated and without
// `with`. What counts as reading is a reference to input.request, to input as
// a whole, or to a helper outside of the guardrail packages that reads so.
// Limits: a test made in a helper is not seen, nor one by membership
// (`input.layer in {"request"}`); such a guardrail repeats the test.
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
				if at != nil && !testsLayer(r.Body) {
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

func testsLayer(body ast.Body) bool {
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
	for _, expr := range body {
		a, b, ok := equation(expr)
		if !ok {
			continue
		}
		if s, ok := a.(ast.String); ok && string(s) == policy.LayerRequest {
			a, b = b, a
		}
		v, _ := a.(ast.Var)
		if s, ok := b.(ast.String); ok && string(s) == policy.LayerRequest && (isLayer(a) || layer[v]) {
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
