package opa

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
)

// checkName finds a rule that was meant to speak for a tier and is a helper
// instead, because of its spelling or because its package has no such tier.
// It reports whether it found something.
func (l *loader) checkName(path string, rule *ast.Rule, pkg ast.Ref) bool {
	root, _ := pkg[1].Value.(ast.String)
	known := map[ast.String][]string{"services": {"allow", "deny"}, "guardrails": {"deny", "deny_overridable"}}[root]
	name := rule.Head.Ref()[0].Value.String()
	if len(rule.Head.Args) > 0 {
		return false // Functions have names of their own.
	}
	if known == nil {
		return l.checkRoot(path, rule, pkg, name)
	}
	for _, meant := range known {
		if misspells(name, meant) {
			l.fail(path, rule.Location, policy.ProblemType, "%s decides nothing: did you mean %q?", name, meant)
			return true
		}
	}
	for _, other := range []string{"allow", "deny_overridable"} {
		if misspells(name, other) || name == other {
			l.fail(path, rule.Location, policy.ProblemType, "%s decides nothing in %s: there, %s do", name, root, strings.Join(known, " and "))
			return true
		}
	}
	return false
}

// checkRoot finds a tier's rule in a package such as guardrail.x, which would
// be a shared one that nobody asks. Shared packages have names of their own.
func (l *loader) checkRoot(path string, rule *ast.Rule, pkg ast.Ref, name string) bool {
	root, _ := pkg[1].Value.(ast.String)
	for meant, names := range map[string][]string{"services": {"allow", "deny"}, "guardrails": {"deny", "deny_overridable"}} {
		if len(pkg) > 2 && misspells(string(root), meant) && slices.Contains(names, name) {
			l.fail(path, rule.Location, policy.ProblemType, "%s decides nothing in %v: did you mean %v?", name, &ast.Package{Path: pkg},
				&ast.Package{Path: append(ast.Ref{pkg[0], ast.StringTerm(meant)}, pkg[2:]...)})
			return true
		}
	}
	return false
}

// misspells reports whether name is nearly the word: other case or
// underscores, two letters swapped, or one letter in eight wrong, too many or
// missing, and at least one.
func misspells(name, word string) bool {
	if name == word || len(name) > 2*len(word) {
		return false
	}
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
	a, b := plain(name), plain(word)
	return levenshtein.ComputeDistance(a, b) <= max(1, len(b)/8) || slices.Equal(letters(a), letters(b))
}

func letters(s string) []rune {
	r := []rune(s)
	slices.Sort(r)
	return r
}
