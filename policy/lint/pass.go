package lint

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/rules"
)

// pass is one look at a policy.
type pass struct {
	// resolved are the modules with full names, tests included; written as
	// they were parsed.
	resolved, written map[string]*ast.Module
	// rules by their full name, the library's included, without tests.
	rules map[string][]*ast.Rule

	content bundle.Content
	yaml    *rules.Set

	rule     Rule // that is looked for
	findings []Finding
}

func newPass(p *opa.Program) (*pass, error) {
	resolved, err := p.Resolved(true)
	if err != nil {
		return nil, err
	}
	s := &pass{resolved: resolved, written: p.Written(), rules: map[string][]*ast.Rule{}, content: p.Content(), yaml: p.Rules()}
	for _, path := range sortedKeys(s.resolved) {
		for _, rule := range s.resolved[path].Rules {
			if !isTest(path) {
				s.rules[fullName(rule)] = append(s.rules[fullName(rule)], rule)
			}
		}
	}
	return s, nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func isTest(path string) bool { return bundle.File{Path: path}.IsTest() }

func fullName(rule *ast.Rule) string {
	return rule.Module.Package.Path.Extend(rule.Head.Ref().GroundPrefix()).String()
}

// isOwn reports whether a rule is of the library.
func isOwn(rule *ast.Rule) bool { return opa.IsOwn(rule.Location.File) }

// each gives every rule of the publisher that is not a test's.
func (s *pass) each(yield func(*ast.Rule) bool) {
	for _, path := range sortedKeys(s.resolved) {
		if isTest(path) || opa.IsOwn(path) {
			continue
		}
		for _, rule := range s.resolved[path].Rules {
			if !yield(rule) {
				return
			}
		}
	}
}

// Kinds of rules that decide.
const (
	serviceAllow = "services allow"
	serviceDeny  = "services deny"
)

// kind is "services allow" and the like, "" for a helper.
func kind(rule *ast.Rule) string {
	pkg := rule.Module.Package.Path
	if len(pkg) != 3 {
		return ""
	}
	root, _ := pkg[1].Value.(ast.String)
	switch k := string(root) + " " + rule.Head.Ref()[0].Value.String(); k {
	case serviceAllow, serviceDeny, "guardrails deny", "guardrails deny_overridable":
		return k
	}
	return ""
}

func isGuardrail(rule *ast.Rule) bool { return strings.HasPrefix(kind(rule), "guardrails ") }

// allows gives the rules that can allow.
func (s *pass) allows(yield func(*ast.Rule) bool) {
	for rule := range s.each {
		if kind(rule) == serviceAllow && !rule.Default && !isFalse(rule.Head.Value) && !yield(rule) {
			return
		}
	}
}

func isFalse(t *ast.Term) bool { return t != nil && t.Value.Compare(ast.Boolean(false)) == 0 }

// reach gives rule, and every rule that it uses.
func (s *pass) reach(rule *ast.Rule) []*ast.Rule {
	seen := map[*ast.Rule]bool{}
	var list []*ast.Rule
	var visit func(*ast.Rule)
	visit = func(r *ast.Rule) {
		if seen[r] {
			return
		}
		seen[r] = true
		list = append(list, r)
		for _, ref := range refs(r) {
			for _, used := range s.find(ref) {
				visit(used)
			}
		}
	}
	visit(rule)
	return list
}

// find is the rules that a reference leads to: by its name, and all below it
// where it names a package.
func (s *pass) find(ref ast.Ref) []*ast.Rule {
	if !ref[0].Equal(ast.DefaultRootDocument) {
		return nil
	}
	ref = ref.ConstantPrefix()
	for n := len(ref); n > 1; n-- {
		if rules := s.rules[ref[:n].String()]; rules != nil {
			return rules
		}
	}
	var below []*ast.Rule
	for _, name := range sortedKeys(s.rules) {
		if isBelow(name, ref.String()) {
			below = append(below, s.rules[name]...)
		}
	}
	return below
}

func isBelow(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// refs are the references of a rule, else included.
func refs(x any) []ast.Ref {
	var list []ast.Ref
	ast.WalkRefs(x, func(ref ast.Ref) bool {
		list = append(list, ref)
		return false
	})
	return list
}

// reads reports whether a rule, or what it uses, looks at the field of input:
// at it, at a part of it, or at something that it is a part of.
func (s *pass) reads(rule *ast.Rule, fields ...string) bool {
	for _, r := range s.reach(rule) {
		for _, ref := range refs(r) {
			for _, field := range fields {
				if readsField(ref, field) {
					return true
				}
			}
		}
	}
	return false
}

func readsField(ref ast.Ref, field string) bool {
	if !ref[0].Equal(ast.InputRootDocument) {
		return false
	}
	name := ref.ConstantPrefix().String()
	return isBelow(name, field) || isBelow(field, name)
}

// call is one call of a function, infix operators included.
type call struct {
	rule *ast.Rule
	// name of the builtin or of the rule.
	name string
	args []*ast.Term
	at   *ast.Location
}

// calls are the calls in one rule, else included.
func calls(rule *ast.Rule) []call {
	var list []call
	add := func(terms []*ast.Term, at *ast.Location) {
		if len(terms) > 1 {
			list = append(list, call{rule, terms[0].String(), terms[1:], at})
		}
	}
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.Expr:
			if terms, ok := x.Terms.([]*ast.Term); ok {
				add(terms, x.Location)
			}
		case *ast.Term:
			if terms, ok := x.Value.(ast.Call); ok {
				add(terms, x.Location)
			}
		}
		return false
	}).Walk(rule)
	return list
}

// eachCall gives the calls in all rules that are not a test's.
func (s *pass) eachCall(yield func(call) bool) {
	for rule := range s.each {
		for _, c := range calls(rule) {
			if !yield(c) {
				return
			}
		}
	}
}

// subject is what a term is about: the field of input that it is, through a
// variable or a helper that is nothing else. It is "" when it is none.
func (s *pass) subject(rule *ast.Rule, t *ast.Term) string {
	for range 4 { // Names of names end somewhere.
		switch v := t.Value.(type) {
		case ast.Ref:
			if v[0].Equal(ast.InputRootDocument) {
				return v.String()
			}
			rules := s.rules[v.String()]
			if len(rules) != 1 || rules[0].Head.Value == nil {
				return ""
			}
			rule, t = rules[0], rules[0].Head.Value
		case ast.Var:
			next := assigned(rule, v)
			if next == nil {
				return ""
			}
			t = next
		case ast.Call:
			// lower(x) is about x.
			if name := v[0].String(); len(v) != 2 || name != "lower" && name != "upper" && name != "trim_space" {
				return ""
			}
			t = v[1]
		default:
			return ""
		}
	}
	return ""
}

// assigned is what `v := term` gives a variable in the rule.
func assigned(rule *ast.Rule, v ast.Var) *ast.Term {
	var found *ast.Term
	for _, c := range calls(rule) {
		if (c.name == "assign" || c.name == "eq") && len(c.args) == 2 && found == nil {
			if c.args[0].Value.Compare(v) == 0 {
				found = c.args[1]
			}
		}
	}
	return found
}

// constants are the texts that a term holds as it stands, in a list or a set.
func constants(t *ast.Term) []string {
	var texts []string
	ast.WalkTerms(t, func(t *ast.Term) bool {
		if text, ok := t.Value.(ast.String); ok {
			texts = append(texts, string(text))
		}
		_, ref := t.Value.(ast.Ref)
		return ref
	})
	return texts
}

func constant(t *ast.Term) (string, bool) {
	text, ok := t.Value.(ast.String)
	return string(text), ok
}
