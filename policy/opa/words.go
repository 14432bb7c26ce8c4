package opa

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
)

// words are the fields of input that hold one of a few words, and these.
func words() map[string][]string {
	return map[string][]string{
		"input.direction":        {policy.Inbound},
		"input.layer":            {policy.LayerConnection, policy.LayerRequest},
		"input.source.authn":     {policy.AuthnMTLS, policy.AuthnToken, policy.AuthnNone},
		"input.request.protocol": {policy.HTTP, policy.GRPC},
		"input.token_status":     {policy.TokenAbsent, policy.TokenValid, policy.TokenInvalid},
	}
}

// checkWords finds comparisons of such a field with a word that it never
// holds. The type checker knows texts only, and a deny that can never be is
// worse than one that does not compile.
func (l *loader) checkWords() {
	fields := words()
	modules := l.program.compiler.Modules
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		for _, rule := range modules[path].Rules {
			ast.WalkBodies(rule, func(body ast.Body) bool {
				l.checkWordsIn(body, fields)
				return false
			})
		}
	}
}

func (l *loader) checkWordsIn(body ast.Body, fields map[string][]string) {
	// The compiler reads a field into a variable where it is an argument.
	alias := map[ast.Var]ast.Ref{}
	for _, expr := range body {
		if a, b, ok := equation(expr); ok {
			if v, isVar := a.(ast.Var); isVar {
				alias[v], _ = b.(ast.Ref)
			}
		}
	}
	for _, expr := range body {
		if expr.IsCall() && len(expr.Operands()) >= 2 && compares(expr.Operator()) {
			for i := range 2 {
				field, _ := expr.Operand(i).Value.(ast.Ref)
				if v, isVar := expr.Operand(i).Value.(ast.Var); isVar {
					field = alias[v]
				}
				l.checkWord(fields, field, expr.Operand(1-i))
			}
		}
	}
}

func compares(op ast.Ref) bool {
	return op.Equal(ast.Equality.Ref()) || op.Equal(ast.Equal.Ref()) || op.Equal(ast.NotEqual.Ref())
}

func (l *loader) checkWord(fields map[string][]string, field ast.Ref, word *ast.Term) {
	text, isText := word.Value.(ast.String)
	known, ok := fields[field.String()]
	if !isText || !ok || slices.Contains(known, string(text)) {
		return
	}
	l.fail("", word.Location, policy.ProblemType, "%s is never %q, but %s%s", field, string(text), strings.Join(known, " or "), didYouMean(string(text), known))
}

// didYouMean leaves out the list of words, which is in the message already.
func didYouMean(got string, known []string) string {
	if hint := nearmiss.Hint(got, known); strings.HasPrefix(hint, ": did") {
		return hint
	}
	return ""
}
