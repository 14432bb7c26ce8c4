package opa

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// checkUnknown finds references to what nothing in the content defines: a rule
// that a package does not have (data.shop.callr), a package or a data document
// that does not exist (data.shp). In Rego they are undefined, and a deny with
// one is silent.
//
// A key that is missing in an object of data is no problem: which keys are
// there may change with every push, and a rule may ask for one that is optional.
// Nothing is said either after a name that is computed, beyond a rule, and about
// allow and deny, which a package may leave out.
func (l *loader) checkUnknown(compiler *ast.Compiler, report func(file string) bool) {
	c := &nameChecker{loader: l, rules: compiler.RuleTree}
	for _, path := range slices.Sorted(maps.Keys(compiler.Modules)) {
		if !report(path) || strings.HasPrefix(path, ownPrefix) {
			continue
		}
		m := compiler.Modules[path]
		bad := map[string]bool{}
		for _, imp := range l.module(path).Imports { // Compiling removes them.
			if ref, ok := imp.Path.Value.(ast.Ref); ok && c.unknown(ref) != "" {
				bad[ref.String()] = true
				l.fail("", imp.Path.Location, policy.ProblemType, "%s", c.unknown(ref))
			}
		}
		for _, rule := range m.Rules {
			eachRef(rule, func(ref ast.Ref, at *ast.Location) {
				for i := range ref {
					if bad[ref[:i+1].String()] {
						return // The import is where it is said.
					}
				}
				if problem := c.unknown(ref); problem != "" {
					l.fail("", at, policy.ProblemType, "%s", problem)
				}
			})
		}
	}
}

// eachRef calls f for each reference in a rule, with the place of the term.
func eachRef(rule *ast.Rule, f func(ref ast.Ref, at *ast.Location)) {
	at := rule.Location
	var visit func(x any) bool
	visit = func(x any) bool {
		if term, ok := x.(*ast.Term); ok && term.Location != nil {
			// What an import stands for has the place of its last use.
			at = term.Location
		}
		if term, ok := x.(*ast.Term); ok && term.Equal(ast.DefaultRootDocument) {
			f(ast.Ref{term}, at)
		}
		ref, ok := x.(ast.Ref)
		if !ok {
			return false
		}
		f(ref, at)
		for _, t := range ref[1:] {
			ast.NewGenericVisitor(visit).Walk(t)
		}
		return true
	}
	ast.NewGenericVisitor(visit).Walk(rule)
}

type nameChecker struct {
	*loader
	rules *ast.TreeNode
}

// unknown says what is wrong with a reference into data, "" when nothing is.
func (c *nameChecker) unknown(ref ast.Ref) string {
	if !ref[0].Equal(ast.DefaultRootDocument) {
		return ""
	}
	rules := c.rules.Child(ast.DefaultRootDocument.Value)
	var data ast.Value = c.program.data
	for i, term := range ref[1:] {
		name, literal := term.Value.(ast.String)
		if !literal {
			return ""
		}
		parent := rules
		if rules = child(parent, name); rules != nil && len(rules.Values) > 0 {
			return ""
		}
		object, _ := data.(ast.Object)
		data = nil
		if object != nil {
			if value := object.Get(term); value != nil {
				data = value.Value
			}
		}
		if rules != nil || data != nil {
			continue
		}
		if parent == nil || optional(ref[:i+1], string(name)) {
			return ""
		}
		at := ref[:i+1].String()
		if i == 0 {
			return "nothing defines data." + string(name) + didYouMean(string(name), namesIn(parent, object))
		}
		return at + " has no " + string(name) + nearmiss.Hint(string(name), namesIn(parent, object))
	}
	return ""
}

func child(n *ast.TreeNode, name ast.String) *ast.TreeNode {
	if n == nil {
		return nil
	}
	return n.Child(name)
}

// optional are names that may be missing: those that the root rule asks for.
func optional(parent ast.Ref, name string) bool {
	switch {
	case len(parent) == 1:
		return name == "services" || name == "guardrails"
	case parent[1].Equal(ast.StringTerm("writ")):
		return len(parent) == 2 && (name == "services" || name == "break_glass" || name == "rules")
	case len(parent) == 2:
		return parent[1].Equal(ast.StringTerm("services")) || parent[1].Equal(ast.StringTerm("guardrails"))
	}
	return tierOf(parent, name) != 0
}

// namesIn are the names that may follow.
func namesIn(rules *ast.TreeNode, data ast.Object) []string {
	var names []string
	for key := range rules.Children {
		if s, ok := key.(ast.String); ok && !strings.HasPrefix(string(s), "test_") {
			names = append(names, string(s))
		}
	}
	if data != nil {
		data.Foreach(func(key, _ *ast.Term) {
			if s, ok := key.Value.(ast.String); ok {
				names = append(names, string(s))
			}
		})
	}
	return names
}

// compileProblems are the compiler's errors. For a function that does not
// exist the publisher's own are looked at, too.
func (l *loader) compileProblems(err error) []policy.Problem {
	problems := problemsOf(err)
	for i, p := range problems {
		message, ok := strings.CutPrefix(p.Message, "undefined function ")
		if !ok {
			continue
		}
		function, _, _ := strings.Cut(message, ": ")
		if slices.Contains(bundle.OutsideBuiltins(), function) {
			problems[i].Message += "; data.writ.outside can admit it, with bounds"
			continue
		}
		pkg, name := "", function
		if strings.HasPrefix(function, "data.") {
			at := strings.LastIndex(function, ".")
			pkg, name = function[:at], function[at+1:]
		} else if m := l.module(p.File); m != nil {
			pkg = m.Package.Path.String()
		}
		if hint := didYouMean(name, l.functionsOf(pkg)); hint != "" {
			problems[i].Message = "undefined function " + function + hint
		}
	}
	return problems
}

// module is a module of the publisher as it was written.
func (l *loader) module(path string) *ast.Module {
	if m := l.program.parsed[path]; m != nil {
		return m
	}
	return l.program.tests[path]
}

func (l *loader) functionsOf(pkg string) []string {
	var names []string
	for path, m := range l.program.parsed {
		if m.Package.Path.String() != pkg || strings.HasPrefix(path, ownPrefix) {
			continue
		}
		for _, rule := range m.Rules {
			if len(rule.Head.Args) > 0 {
				names = append(names, rule.Head.Ref()[0].Value.String())
			}
		}
	}
	return names
}
