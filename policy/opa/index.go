package opa

import (
	"context"
	"strings"

	"github.com/gobwas/glob"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown/cache"
)

// patternCache keeps compiled patterns between decisions, but not globs whose
// name in it could be that of another: OPA's is pattern, "-" and delimiters,
// so "*-" with "." and "*" with "-" and "." are one.
type patternCache struct{ cache.InterQueryValueCache }

func newPatternCache() cache.InterQueryValueCache {
	patterns := maxPatterns
	return patternCache{cache.NewInterQueryValueCache(context.Background(), &cache.Config{
		InterQueryBuiltinValueCache: cache.InterQueryBuiltinValueCacheConfig{MaxNumEntries: &patterns},
	})}
}

// Insert implements cache.InterQueryValueCacheBucket.
func (c patternCache) Insert(key ast.Value, value any) int {
	if name, ok := key.(ast.String); ok && strings.Count(string(name), "-") > 1 {
		if _, isGlob := value.(*glob.Pattern); isGlob {
			return 0
		}
	}
	return c.InterQueryValueCache.Insert(key, value)
}

// hideMisread keeps OPA from finding rules by what its index misreads, because
// it then leaves out rules that hold: a backslash in a value or a pattern of
// glob.match, and a member of a literal set or list that is not constant. While
// the index is built, the delimiters, or the set, are a variable, which it does
// not understand.
func hideMisread(c *ast.Compiler) *ast.Compiler {
	hidden, stand := map[*ast.Expr]*ast.Term{}, ast.VarTerm("__writ_delimiters__")
	hide := func(c *ast.Compiler) *ast.Error {
		for _, m := range c.Modules {
			ast.WalkExprs(m, func(e *ast.Expr) bool {
				if terms, ok := e.Terms.([]*ast.Term); ok && len(terms) > 2 && terms[2] != stand && misread(terms) {
					hidden[e], terms[2] = terms[2], stand
				}
				return false
			})
		}
		return nil
	}
	show := func(*ast.Compiler) *ast.Error {
		for e, delimiters := range hidden {
			e.Terms.([]*ast.Term)[2] = delimiters
		}
		clear(hidden)
		return nil
	}
	return c.
		WithStageAfterID(lastBeforeIndices, ast.CompilerStageDefinition{Name: "HideMisread", MetricName: "hide_misread", Stage: hide}).
		WithStageAfterID(ast.StageBuildRuleIndices, ast.CompilerStageDefinition{Name: "ShowMisread", MetricName: "show_misread", Stage: show})
}

// misread reports whether the index misreads the call.
func misread(terms []*ast.Term) bool {
	switch {
	case terms[0].Value.Compare(ast.GlobMatch.Ref()) == 0:
		return true
	case terms[0].Value.Compare(ast.Member.Ref()) != 0:
		return false
	}
	switch terms[2].Value.(type) {
	case *ast.Array, ast.Set, ast.Object:
	default:
		return false
	}
	constant := true
	ast.WalkTerms(terms[2], func(t *ast.Term) bool {
		switch t.Value.(type) {
		case ast.Null, ast.Boolean, ast.Number, ast.String, *ast.Array, ast.Set, ast.Object:
		default:
			constant = false
		}
		return !constant
	})
	return !constant
}

// lastBeforeIndices is the stage of OPA's compiler before its rule indices.
const lastBeforeIndices = ast.StageCheckDeprecatedBuiltins
