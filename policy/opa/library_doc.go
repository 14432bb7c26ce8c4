package opa

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/rego"
)

// LibraryPackage is a package that publishers may import, as its comments
// describe it.
type LibraryPackage struct {
	// Name is what follows data.writ.
	Name        string
	Title       string
	Description string
	Entries     []LibraryEntry
}

// LibraryEntry is a function or a rule of a LibraryPackage.
type LibraryEntry struct {
	// Signature is the name with its parameters, if it is a function.
	Signature   string
	Description string
	// Example is a body that holds for the input in rego/writ/library_test.rego.
	Example string
}

// Library describes the library in the order of its sources.
func Library() ([]LibraryPackage, error) {
	var packages []LibraryPackage
	modules := rego.Modules()
	for _, file := range slices.Sorted(maps.Keys(modules)) {
		opts := parserOptions()
		opts.ProcessAnnotation = true
		m, err := ast.ParseModuleWithOpts(file, modules[file], opts)
		if err != nil {
			return nil, err
		}
		if libraryOf(m.Package.Path) == "" {
			continue
		}
		p, err := describe(m)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		packages = append(packages, p)
	}
	return packages, nil
}

func describe(m *ast.Module) (LibraryPackage, error) {
	p := LibraryPackage{Name: libraryOf(m.Package.Path)}
	described := map[string]bool{}
	for _, a := range m.Annotations {
		if a.Scope == "package" {
			p.Title, p.Description = a.Title, strings.TrimSpace(a.Description)
		}
	}
	for _, rule := range m.Rules {
		name := rule.Head.Ref()[0].Value.String()
		if strings.HasPrefix(name, "_") || described[name] {
			continue
		}
		if len(rule.Annotations) != 1 {
			return p, fmt.Errorf("%s has no METADATA", name)
		}
		described[name] = true
		a := rule.Annotations[0]
		example, _ := a.Custom["example"].(string)
		if a.Description == "" || example == "" {
			return p, fmt.Errorf("%s has no description or no example", name)
		}
		p.Entries = append(p.Entries, LibraryEntry{Signature: signature(rule), Description: strings.TrimSpace(a.Description), Example: example})
	}
	return p, nil
}

func signature(rule *ast.Rule) string {
	name := rule.Head.Ref()[0].Value.String()
	if len(rule.Head.Args) == 0 {
		return name
	}
	args := make([]string, len(rule.Head.Args))
	for i, arg := range rule.Head.Args {
		args[i] = arg.String()
	}
	return name + "(" + strings.Join(args, ", ") + ")"
}
