package opa

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/bundle"
)

// IsOwn reports whether a module is ours: the root rule, or of its library.
func IsOwn(path string) bool { return strings.HasPrefix(path, ownPrefix) }

// Resolved are the publisher's modules as they were written, with every
// reference by its full name: `shop.caller` is data.shop.caller. Nothing else
// is rewritten, so that a finding or an explanation speaks of what the author
// wrote. Tests are included when they are wanted. The root rule and its library
// are there, too; IsOwn tells them apart. The caller may change what it gets.
func (p *Program) Resolved(withTests bool) (map[string]*ast.Module, error) {
	modules := maps.Clone(p.parsed)
	if withTests {
		maps.Copy(modules, p.tests)
	}
	compiler, err := p.newCompiler()
	if err != nil {
		return nil, err
	}
	resolved := map[string]*ast.Module{}
	compiler.WithStageAfterID(ast.StageResolveRefs, ast.CompilerStageDefinition{
		Name:       "CopyResolved",
		MetricName: "copy_resolved",
		Stage: func(c *ast.Compiler) *ast.Error {
			for path, m := range c.Modules {
				resolved[path] = m.Copy()
			}
			return nil
		},
	}).Compile(modules)
	if compiler.Failed() {
		return nil, compiler.Errors
	}
	return resolved, nil
}

// resolvedRules are rules by their full name.
type resolvedRules map[string][]*ast.Rule

func indexResolved(modules map[string]*ast.Module) resolvedRules {
	index := resolvedRules{}
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		m := modules[path]
		for _, rule := range m.Rules {
			name := m.Package.Path.Extend(rule.Head.Ref().GroundPrefix()).String()
			index[name] = append(index[name], rule)
		}
	}
	return index
}

// find is the rules that a reference leads to, and the reference's part that
// names them.
func (x resolvedRules) find(ref ast.Ref) []*ast.Rule {
	if len(ref) < 2 || !ref[0].Equal(ast.DefaultRootDocument) {
		return nil
	}
	ref = ref.ConstantPrefix()
	for n := len(ref); n > 1; n-- {
		if rules := x[ref[:n].String()]; rules != nil {
			return rules
		}
	}
	return nil
}

// Written are the publisher's modules as they were parsed, tests included. The
// caller must not change them.
func (p *Program) Written() map[string]*ast.Module {
	written := maps.Clone(p.tests)
	for path, m := range p.parsed {
		if !IsOwn(path) {
			written[path] = m
		}
	}
	return written
}

// Content is what the program was made of. The caller must not change it.
func (p *Program) Content() bundle.Content { return p.content }
