package opa

import (
	"context"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/rules"
	"github.com/writ-dev/writ/rego"
)

// RunOwnTests tests the root rule alone.
func RunOwnTests(ctx context.Context) (*TestReport, error) {
	p, err := Load(bundle.Content{})
	if err != nil {
		return nil, err
	}
	// All of it, what is left out of a policy without YAML rules, too.
	if p.parsed, err = ownModules(); err != nil {
		return nil, err
	}
	for name, text := range rego.Tests() {
		if p.tests[name], err = ast.ParseModuleWithOpts(name, text, parserOptions()); err != nil {
			return nil, err
		}
	}
	return p.Test(ctx, TestOptions{})
}

// InputValue is the input as a policy that reads everything sees it.
func InputValue(in *policy.Input) (ast.Value, error) {
	return (&reads{allHeaders: true, allQuery: true, tokens: true}).value(in)
}

// WithRoot is the snapshot of a policy under another root rule, to see what
// becomes of results that ours does not give.
func WithRoot(root string, timeout time.Duration) (*policy.Snapshot, error) {
	compiler, err := (&Program{}).newCompiler()
	if err != nil {
		return nil, err
	}
	m, err := ast.ParseModuleWithOpts("root.rego", root, parserOptions())
	if err != nil {
		return nil, err
	}
	modules := map[string]*ast.Module{"root.rego": m}
	if compiler.Compile(modules); compiler.Failed() {
		return nil, compiler.Errors
	}
	p := &Program{data: ast.NewObject(), compiler: compiler, parsed: modules, written: &rules.Set{}, rules: ruleIndex{}}
	return p.Snapshot(SnapshotConfig{Timeout: timeout})
}

// Within is how a test run is held to its time.
var Within = within

// Cached reports whether the compiled pattern is kept between decisions.
func Cached(s *policy.Snapshot, pattern string) bool {
	_, ok := s.Decider.(*decider).valueCache.Get(ast.String(pattern))
	return ok
}

// HoldsInTests reports whether body holds for data.writ_test.example_input.
func HoldsInTests(ctx context.Context, imports, body string) (bool, error) {
	m, err := ast.ParseModuleWithOpts("example_test.rego", "package example_test\n"+imports+"\n"+
		"test_example if { holds with input as data.writ_test.example_input }\nholds if { "+body+" }\n", parserOptions())
	if err != nil {
		return false, err
	}
	p, err := Load(bundle.Content{})
	if err != nil {
		return false, err
	}
	name := "writ/library_test.rego"
	input, err := ast.ParseModuleWithOpts(name, rego.Tests()[name], parserOptions())
	if err != nil {
		return false, err
	}
	p.tests = map[string]*ast.Module{name: input, "example_test.rego": m}
	report, err := p.Test(ctx, TestOptions{})
	if err != nil {
		return false, err
	}
	for _, c := range report.Cases {
		if c.Name == "test_example" {
			return c.Outcome == Passed, nil
		}
	}
	return false, nil
}

// LibraryReads are the kinds that each name of the library reads by what is
// written there, and by libraryReads.
func LibraryReads() (got, said map[string]string, err error) {
	modules, err := ownModules()
	if err != nil {
		return nil, nil, err
	}
	got = map[string]string{}
	for _, m := range modules {
		pkg := libraryOf(m.Package.Path)
		if pkg == "" {
			continue
		}
		for _, rule := range m.Rules {
			r := &reads{headers: map[string]bool{}, query: map[string]bool{}}
			ast.NewGenericVisitor(r.visit).Walk(rule)
			name := pkg + "." + rule.Head.Ref()[0].Value.String()
			switch {
			case r.allHeaders:
				got[name] = "headers"
			case r.allQuery:
				got[name] = "query"
			case r.tokens:
				got[name] = "tokens"
			}
		}
	}
	return got, libraryReads, nil
}

// PathMatches are the pairs of patterns and segments for which path_match of
// the library holds.
func PathMatches(ctx context.Context, patterns []string, segments [][]string) (map[string]bool, error) {
	p, err := Load(bundle.Content{})
	if err != nil {
		return nil, err
	}
	query, err := p.compiler.QueryCompiler().Compile(ast.MustParseBody(
		`matches = {json.marshal([p, s]) | p = input.request.query.p[_]; s = input.tokens[0].claims.s[_]; data.writ.http.path_match(p, s)}`))
	if err != nil {
		return nil, err
	}
	input, err := ast.InterfaceToValue(map[string]any{
		"request": map[string]any{"query": map[string]any{"p": patterns}},
		"tokens":  []any{map[string]any{"claims": map[string]any{"s": segments}}},
	})
	if err != nil {
		return nil, err
	}
	matches := map[string]bool{}
	err = topdown.NewQuery(query).WithCompiler(p.compiler).WithInput(ast.NewTerm(input)).WithStrictBuiltinErrors(true).
		Iter(ctx, func(qr topdown.QueryResult) error {
			set, _ := qr["matches"].Value.(ast.Set)
			set.Foreach(func(t *ast.Term) { matches[string(t.Value.(ast.String))] = true })
			return nil
		})
	return matches, err
}
