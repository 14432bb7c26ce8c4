package lint

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// missingTest finds services and guardrails that no test asks: neither their
// rules, nor the whole decision for the service.
func (s *pass) missingTest() {
	var asked []string // full names that tests refer to
	var words []string // texts in tests
	for _, path := range sortedKeys(s.resolved) {
		if !isTest(path) {
			continue
		}
		for _, ref := range refs(s.resolved[path]) {
			asked = append(asked, ref.ConstantPrefix().String())
		}
		for _, rule := range s.resolved[path].Rules {
			ast.WalkTerms(rule, func(t *ast.Term) bool {
				if text, ok := constant(t); ok {
					words = append(words, text)
				}
				return false
			})
		}
	}
	whole := slices.ContainsFunc(asked, func(name string) bool {
		return isBelow(name, "data.writ.decision") || isBelow("data.writ.decision", name)
	})
	told := map[string]bool{}
	for _, service := range sortedKeys(s.yaml.Services) {
		if list := s.yaml.Services[service]; !(whole && slices.Contains(words, service)) && len(list) > 0 {
			s.found(&ast.Location{File: list[0].File, Row: list[0].Line, Col: list[0].Column}, "no test asks for a decision of %s: add one to a _test.rego file", service)
		}
	}
	for _, path := range sortedKeys(s.resolved) {
		pkg := s.resolved[path].Package
		name := pkg.Path.String()
		guardrail := isBelow(name, "data.guardrails")
		if isTest(path) || opa.IsOwn(path) || told[name] || !guardrail && !isBelow(name, "data.services") {
			continue
		}
		told[name] = true
		if slices.ContainsFunc(asked, func(a string) bool { return isBelow(a, name) }) {
			continue
		}
		if whole && (guardrail || slices.Contains(words, bundle.ServiceOf(pkg.Path))) {
			continue
		}
		s.found(pkg.Location, "no test asks the rules of %s: add one to a _test.rego file", strings.TrimPrefix(name, "data."))
	}
}

func (s *pass) unusedRule() {
	used := map[string]bool{}
	var whole []string // names that were used as a whole
	for rule := range s.each {
		for _, ref := range refs(rule) {
			if ref[0].Equal(ast.DefaultRootDocument) {
				prefix := ref.ConstantPrefix()
				whole = append(whole, prefix.String())
				for n := range len(prefix) {
					used[prefix[:n+1].String()] = true
				}
			}
		}
	}
	for _, name := range sortedKeys(s.rules) {
		rule := s.rules[name][0]
		if isOwn(rule) || kind(rule) != "" || used[name] || slices.ContainsFunc(whole, func(w string) bool { return isBelow(name, w) }) {
			continue
		}
		s.found(rule.Location, "nothing uses %s, tests aside", strings.TrimPrefix(name, "data."))
	}
}

func (s *pass) unusedImport() {
	for _, path := range sortedKeys(s.written) {
		m := s.written[path]
		used := map[ast.Var]bool{}
		for _, rule := range m.Rules {
			ast.WalkVars(rule, func(v ast.Var) bool {
				used[v] = true
				return false
			})
		}
		for _, imp := range m.Imports {
			if ref, ok := imp.Path.Value.(ast.Ref); ok && (ref[0].Equal(ast.InputRootDocument) || ref[0].Equal(ast.DefaultRootDocument)) && !used[imp.Name()] {
				s.found(imp.Location, "nothing uses the import %s", imp.Path)
			}
		}
	}
}

func (s *pass) noDefault() {
	for _, name := range sortedKeys(s.rules) {
		rule := s.rules[name][0]
		if kind(rule) == "" || rule.Head.RuleKind() == ast.MultiValue {
			continue
		}
		if !slices.ContainsFunc(s.rules[name], func(r *ast.Rule) bool { return bool(r.Default) }) {
			s.found(rule.Location, "%s is undefined rather than false where no rule holds: add `default %s := false`", strings.TrimPrefix(name, "data."), rule.Head.Ref())
		}
	}
}
