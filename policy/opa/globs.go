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

// hideGlobs keeps OPA from finding rules by the pattern of a glob.match: its
// index takes a backslash in a value, or before a literal in a pattern, for
// something else than glob.match does, and leaves out rules that hold. While
// the index is built, the delimiters are a variable, which it does not
// understand.
func hideGlobs(c *ast.Compiler) *ast.Compiler {
	hidden, stand := map[*ast.Expr]*ast.Term{}, ast.VarTerm("__writ_delimiters__")
	hide := func(c *ast.Compiler) *ast.Error {
		for _, m := range c.Modules {
			ast.WalkExprs(m, func(e *ast.Expr) bool {
				if terms, ok := e.Terms.([]*ast.Term); ok && len(terms) > 2 && terms[0].Value.Compare(ast.GlobMatch.Ref()) == 0 && terms[2] != stand {
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
		WithStageAfterID(lastBeforeIndices, ast.CompilerStageDefinition{Name: "HideGlobs", MetricName: "hide_globs", Stage: hide}).
		WithStageAfterID(ast.StageBuildRuleIndices, ast.CompilerStageDefinition{Name: "ShowGlobs", MetricName: "show_globs", Stage: show})
}

// lastBeforeIndices is the stage of OPA's compiler before its rule indices.
const lastBeforeIndices = ast.StageCheckDeprecatedBuiltins
