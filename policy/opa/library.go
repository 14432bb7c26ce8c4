package opa

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/internal/nearmiss"
)

// library is what publishers may import: by package below data.writ the names
// in it. A name that begins with "_" is the package's own.
var library = sync.OnceValue(func() map[string][]string {
	modules, err := ownModules()
	if err != nil {
		return nil // Every Load says so.
	}
	names := map[string][]string{}
	for _, m := range modules {
		pkg := libraryOf(m.Package.Path)
		if pkg == "" {
			continue
		}
		for _, rule := range m.Rules {
			name := rule.Head.Ref()[0].Value.String()
			if !strings.HasPrefix(name, "_") && !slices.Contains(names[pkg], name) {
				names[pkg] = append(names[pkg], name)
			}
		}
	}
	return names
})

// libraryOf is the package below data.writ that a reference reaches, or "".
func libraryOf(ref ast.Ref) string {
	if len(ref) < 3 || !ref[0].Equal(ast.DefaultRootDocument) || !ref[1].Equal(ast.StringTerm("writ")) {
		return ""
	}
	name, _ := ref[2].Value.(ast.String)
	return string(name)
}

// libraryName is a reference into the library as package and name, "" for any
// other.
func libraryName(ref ast.Ref) string {
	if pkg := libraryOf(ref); pkg != "" && len(ref) > 3 {
		if name, ok := ref[3].Value.(ast.String); ok {
			return pkg + "." + string(name)
		}
	}
	return ""
}

// libraryProblem is what is wrong with a reference into data.writ, "" when it
// names something in the library.
func libraryProblem(ref ast.Ref) string {
	pkg := libraryOf(ref)
	names, ok := library()[pkg]
	if !ok {
		known := slices.Collect(maps.Keys(library()))
		if hint := didYouMean(pkg, known); hint != "" {
			return "there is no library data.writ." + pkg + hint
		}
		return "data.writ is for the root rule and for tests only, except its library: " + strings.Join(slices.Sorted(slices.Values(known)), ", ")
	}
	if len(ref) == 3 {
		return "name what is meant of the library data.writ." + pkg
	}
	name, literal := ref[3].Value.(ast.String)
	switch {
	case !literal:
		return "name what is meant of the library data.writ." + pkg
	case !slices.Contains(names, string(name)):
		return missingInLibrary(pkg, string(name))
	}
	return ""
}

func missingInLibrary(pkg, name string) string {
	if strings.HasPrefix(name, "_") {
		return "data.writ." + pkg + "." + name + " is not for others"
	}
	if b := ast.BuiltinMap[pkg+"."+name]; b != nil {
		return "the import of data.writ." + pkg + " hides " + b.Name + ": import it under another name (`import data.writ." + pkg + " as writ_" + pkg + "`)"
	}
	return "data.writ." + pkg + " has no " + name + nearmiss.Hint(name, library()[pkg])
}
