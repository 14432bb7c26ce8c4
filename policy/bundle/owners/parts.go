package owners

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/rules"
)

const (
	manifestFile = ".manifest"
	// As in package opa, which reads the rest of a module.
	maxRegoDepth = 200
)

// Check finds what content defines outside of the grants of o, with the grant
// that it would take. Tests may be in any package: what they may define is
// checked with the policy as a whole.
func (o *Owner) Check(content bundle.Content) []policy.Problem {
	if o.everything {
		return nil
	}
	var problems []policy.Problem
	for _, f := range content {
		if f.Path == manifestFile {
			problems = append(problems, problem(f.Path, 0, 0, "a .manifest speaks for the whole policy: only a publisher that owns everything may push one"))
			continue
		}
		if f.IsTest() {
			continue
		}
		_, outside, found := o.look(f)
		problems = append(append(problems, found...), outside...)
	}
	return problems
}

// look tells whether o owns some of what a file defines, and what of it o does
// not. found is what is wrong with the file in itself.
func (o *Owner) look(f bundle.File) (owned bool, outside, found []policy.Problem) {
	switch {
	case f.IsModule():
		return o.lookModule(f)
	case f.IsData():
		root, problems := bundle.Content{f}.Data()
		if len(problems) > 0 {
			return false, nil, problems
		}
		owned, outside = o.lookData(f, root, nil)
	case f.IsRules():
		return o.lookRules(f)
	}
	return owned, outside, nil
}

// lookRules looks at the services of a rules file. YAML guardrails have no
// names of their own, so that they take a grant of all guardrails.
func (o *Owner) lookRules(f bundle.File) (owned bool, outside, found []policy.Problem) {
	file, problems := rules.Parse(f.Path, f.Content)
	if len(problems) > 0 {
		return false, nil, problems
	}
	if len(file.Services) == 0 {
		may := func(o *Owner) bool { return o.mayPackage([]string{"guardrails"}) }
		if may(o) {
			return true, nil, nil
		}
		return false, []policy.Problem{problem(f.Path, 1, 1,
			"guardrails in YAML are not publisher %q's: that takes packages: [guardrails]%s", o.name, o.hint(may))}, nil
	}
	for i, service := range file.Services {
		may := func(o *Owner) bool { return o.mayRule(service) }
		if may(o) {
			owned = true
			continue
		}
		line, column := file.Place(i)
		outside = append(outside, problem(f.Path, line, column,
			"rules of service %q are not publisher %q's: that takes rules: [%s]%s", service, o.name, service, o.hint(may)))
	}
	return owned, outside, nil
}

func (o *Owner) lookModule(f bundle.File) (owned bool, outside, found []policy.Problem) {
	pkg, err := packageOf(f)
	if err != nil {
		return false, nil, []policy.Problem{*err}
	}
	at := make([]string, 0, len(pkg.Path))
	for _, term := range pkg.Path[1:] {
		name, _ := term.Value.(ast.String)
		at = append(at, string(name))
	}
	may := func(o *Owner) bool { return o.mayPackage(at) }
	if may(o) {
		return true, nil, nil
	}
	return false, []policy.Problem{problem(f.Path, pkg.Location.Row, pkg.Location.Col,
		"package %s is not publisher %q's: that takes packages: [%s]%s", area(at), o.name, area(at), o.hint(may))}, nil
}

// packageOf reads the package of a module, whose depth is bounded.
func packageOf(f bundle.File) (*ast.Package, *policy.Problem) {
	statements, _, errs := ast.NewParser().WithFilename(f.Path).WithReader(bytes.NewReader(f.Content)).
		WithRegoVersion(ast.RegoV1).WithMaxRecursionDepth(maxRegoDepth).Parse()
	for _, s := range statements {
		if pkg, ok := s.(*ast.Package); ok && len(errs) == 0 && len(pkg.Path) > 1 {
			return pkg, nil
		}
	}
	p := policy.Problem{File: f.Path, Code: policy.ProblemParse, Message: "no package"}
	if len(errs) > 0 {
		p.Message = errs[0].Message
		if errs[0].Location != nil {
			p.Line, p.Column = errs[0].Location.Row, errs[0].Location.Col
		}
	}
	return nil, &p
}

// lookData walks down to what o owns, and names the rest as high up as nothing
// of o's is below it and a grant is not more than it takes.
func (o *Owner) lookData(f bundle.File, value any, at []string) (owned bool, outside []policy.Problem) {
	may := func(o *Owner) bool { return o.mayData(at) }
	if may(o) {
		return true, nil
	}
	object, _ := value.(map[string]any)
	below := len(at) == 0 || wide(at, object) || slices.ContainsFunc(o.data, func(a area) bool { return area(at).holds(a) })
	if below && (len(object) > 0 || len(at) == 0) {
		for _, name := range slices.Sorted(maps.Keys(object)) {
			some, rest := o.lookData(f, object[name], append(slices.Clone(at), name))
			owned = owned || some
			outside = append(outside, rest...)
		}
		return owned, outside
	}
	_, line, column := bundle.Content{f}.Locate(at...)
	if at[0] == "writ" && (len(at) == 1 || at[1] != "services" && at[1] != "break_glass" && at[1] != "outside") {
		return owned, []policy.Problem{problem(f.Path, line, column, "data.%s is nobody's: data.writ has services, break_glass and outside", area(at))}
	}
	return owned, []policy.Problem{problem(f.Path, line, column,
		"data.%s is not publisher %q's: that takes data: [%s]%s", area(at), o.name, area(at), o.hint(may))}
}

// wide reports whether a grant of at is more than object, which is there, takes:
// all of data.writ, or all services for one.
func wide(at []string, object map[string]any) bool {
	return slices.Equal(at, []string{"writ"}) || slices.Equal(at, []string{"writ", "services"}) && len(object) == 1
}

// Merge replaces the part of o in parts, which are in force, and gives the
// content of all. A publisher without files has no part.
//
// What is o's now and was another's before the configuration changed goes over
// to o: files that define nothing else are dropped from the other part, whose
// signature then covers more than there is and is dropped as well. A publisher
// that is not in the set any more loses its tests with the first such file.
// Nothing else of its part is lost: a guardrail stays until somebody owns it.
func (o *Owner) Merge(parts []bundle.Part, pushed bundle.Part) (bundle.Content, []bundle.Part, []policy.Problem) {
	var merged []bundle.Part
	var problems []policy.Problem
	for _, p := range parts {
		if p.Publisher == o.name {
			continue
		}
		left, found := o.takeOver(p)
		problems = append(problems, found...)
		if len(left.Content) > 0 {
			merged = append(merged, left)
		}
	}
	if len(pushed.Content) > 0 {
		merged = append(merged, pushed)
	}
	slices.SortFunc(merged, func(a, b bundle.Part) int { return strings.Compare(a.Publisher, b.Publisher) })
	content, found := union(merged, o.name)
	if problems = append(problems, found...); len(problems) > 0 {
		return nil, nil, problems
	}
	return content, merged, nil
}

func (o *Owner) takeOver(p bundle.Part) (bundle.Part, []policy.Problem) {
	if o.everything {
		return bundle.Part{}, nil
	}
	var problems []policy.Problem
	var left bundle.Content
	for _, f := range p.Content {
		if f.IsTest() {
			left = append(left, f)
			continue
		}
		owned, outside, _ := o.look(f)
		switch {
		case !owned:
			left = append(left, f)
		case len(outside) > 0:
			problems = append(problems, problem(f.Path, outside[0].Line, outside[0].Column,
				"came from publisher %q and holds things of %q beside others: %s", p.Publisher, o.name, outside[0].Message))
		}
	}
	if len(left) == len(p.Content) {
		return p, problems
	}
	if o.set.ByName(p.Publisher) == nil {
		left = slices.DeleteFunc(left, bundle.File.IsTest)
	}
	p.Content, p.Signatures = left, nil
	return p, problems
}

// union joins the parts; a path that two of them have is reported for the one
// who pushes.
func union(parts []bundle.Part, pusher string) (bundle.Content, []policy.Problem) {
	owner := map[string]string{}
	var content bundle.Content
	var problems []policy.Problem
	for _, p := range parts {
		for _, f := range p.Content {
			if other, taken := owner[f.Path]; taken {
				if other == pusher {
					other = p.Publisher
				}
				problems = append(problems, problem(f.Path, 0, 0, "publisher %q has a file of this path: choose another", other))
				continue
			}
			owner[f.Path] = p.Publisher
			content = append(content, f)
		}
	}
	slices.SortFunc(content, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	size := 0
	for _, f := range content {
		size += len(f.Content)
	}
	if len(content) > bundle.MaxFiles || size > bundle.MaxContentBytes {
		problems = append(problems, policy.Problem{Code: policy.ProblemLimit, Message: fmt.Sprintf(
			"all publishers together have %d files and %d bytes: at most %d and %d", len(content), size, bundle.MaxFiles, bundle.MaxContentBytes)})
	}
	return content, problems
}

func problem(file string, line, column int, format string, args ...any) policy.Problem {
	return policy.Problem{File: file, Line: line, Column: column, Code: policy.ProblemOwner, Message: fmt.Sprintf(format, args...)}
}
