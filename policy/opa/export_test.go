package opa

import (
	"context"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/rego"
)

// RunOwnTests tests the root rule alone.
func RunOwnTests(ctx context.Context) (*TestReport, error) {
	p, err := Load(bundle.Content{})
	if err != nil {
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
	compiler, err := newCompiler()
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
	p := &Program{data: ast.NewObject(), compiler: compiler, parsed: modules, rules: ruleIndex{}}
	return p.Snapshot(SnapshotConfig{Timeout: timeout})
}

// Within is how a test run is held to its time.
var Within = within

// Cached reports whether the compiled pattern is kept between decisions.
func Cached(s *policy.Snapshot, pattern string) bool {
	_, ok := s.Decider.(*decider).valueCache.Get(ast.String(pattern))
	return ok
}
