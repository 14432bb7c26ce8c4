package opa

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/rules"
)

// maxRuleID bounds the ids that a policy names, bytes.
const maxRuleID = 128

// checkManifest holds a publisher's .manifest to what it says of itself.
func (l *loader) checkManifest(data map[string]any) {
	raw, ok := l.content.File(".manifest")
	if !ok {
		return
	}
	const file = ".manifest"
	var m opabundle.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		l.fail(file, nil, policy.ProblemParse, "%v", err)
		return
	}
	if m.RegoVersion != nil && *m.RegoVersion != 1 || len(m.FileRegoVersions) > 0 {
		l.fail(file, nil, policy.ProblemParse, "rego_version: want 1 for all files")
	}
	if len(m.WasmResolvers) > 0 {
		l.fail(file, nil, policy.ProblemParse, "wasm: not supported")
	}
	if m.Roots == nil {
		return
	}
	inRoots := func(path string) bool { return opabundle.RootPathsContain(*m.Roots, path) }
	for _, name := range slices.Sorted(maps.Keys(data)) {
		if writ, _ := data[name].(map[string]any); name == "writ" && len(writ) == 1 && writ["rules"] != nil {
			continue // Made of rules files, which are not data of the bundle.
		}
		if !inRoots(name) && !slices.ContainsFunc(*m.Roots, func(r string) bool { return strings.HasPrefix(strings.Trim(r, "/"), name+"/") }) {
			l.fail(file, nil, policy.ProblemParse, "roots do not hold data.%s", name)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(l.program.parsed)) {
		module := l.program.parsed[path]
		names := make([]string, 0, len(module.Package.Path))
		for _, term := range module.Package.Path[1:] {
			names = append(names, strings.Trim(term.String(), `"`))
		}
		if !inRoots(strings.Join(names, "/")) {
			l.fail(path, module.Package.Location, policy.ProblemParse, "the roots in .manifest do not hold %s", module.Package.Path)
		}
	}
}

// checkPackages checks who defines what, before anything is compiled.
func (l *loader) checkPackages() {
	services := slices.Collect(maps.Keys(l.program.catalogue.Services))
	for _, modules := range []map[string]*ast.Module{l.program.parsed, l.program.tests} {
		for _, path := range slices.Sorted(maps.Keys(modules)) {
			pkg := modules[path].Package
			if len(pkg.Path) < 2 {
				continue // The parser's own error.
			}
			root, _ := pkg.Path[1].Value.(ast.String)
			switch {
			case root == "writ" || root == "system":
				l.fail(path, pkg.Location, policy.ProblemType, "package %s is reserved", root)
			case root != "services" && root != "guardrails" || (bundle.File{Path: path}).IsTest():
			case len(pkg.Path) != 3:
				l.fail(path, pkg.Location, policy.ProblemType, `package %s: want package services["<name>"] or guardrails.<name>, nothing above or below it`, packageName(pkg))
			case root == "services":
				name := bundle.ServiceOf(pkg.Path)
				if _, ok := l.program.catalogue.Services[name]; !ok {
					l.fail(path, pkg.Location, policy.ProblemCatalogue, "service %q is not in the catalogue (data.writ.services)%s", name, nearmiss.Hint(name, services))
				}
			}
		}
	}
}

// checkRuleFiles checks what concerns rules files beside others: their services
// are in the catalogue, and their ids are not those of Rego rules.
func (l *loader) checkRuleFiles() {
	p := l.program
	for _, f := range p.written.Files {
		for i, name := range f.Services {
			if _, ok := p.catalogue.Services[name]; !ok {
				line, column := f.Place(i)
				l.problems = append(l.problems, policy.Problem{File: f.Path, Line: line, Column: column, Code: policy.ProblemCatalogue,
					Message: fmt.Sprintf("service %q is not in the catalogue (data.writ.services)%s", name, nearmiss.Hint(name, slices.Collect(maps.Keys(p.catalogue.Services))))})
			}
		}
	}
	check := func(service string, list []rules.Rule) {
		for _, r := range list {
			if have := p.rules.find(r.Tier, service, r.ID); have.File != r.File {
				l.problems = append(l.problems, policy.Problem{File: r.File, Line: r.Line, Column: r.Column, Code: policy.ProblemType,
					Message: fmt.Sprintf("id %q is used in %s:%d, too: ids must tell rules apart", r.ID, have.File, have.Line)})
			}
		}
	}
	check("", p.written.Guardrails)
	for _, service := range slices.Sorted(maps.Keys(p.written.Services)) {
		check(service, p.written.Services[service])
	}
}

func packageName(pkg *ast.Package) string {
	return strings.TrimPrefix(pkg.Path.String(), "data.")
}

// tierOf is the tier that a rule of a publisher speaks for, 0 for a helper.
func tierOf(pkg ast.Ref, rule string) policy.Tier {
	if len(pkg) != 3 {
		return 0
	}
	switch root, _ := pkg[1].Value.(ast.String); string(root) + " " + rule {
	case "services allow":
		return policy.ServiceAllow
	case "services deny":
		return policy.ServiceDeny
	case "guardrails deny":
		return policy.Guardrail
	case "guardrails deny_overridable":
		return policy.OverridableGuardrail
	}
	return 0
}

// checkRules checks the shape of the rules that the root rule reads.
func (l *loader) checkRules() {
	speaks := map[string]bool{} // packages with a rule that the root reads
	ids := map[string]ast.Ref{} // tier and id of guardrails → package
	for _, path := range slices.Sorted(maps.Keys(l.program.parsed)) {
		m := l.program.parsed[path]
		for _, rule := range m.Rules {
			tier := tierOf(m.Package.Path, rule.Head.Ref()[0].Value.String())
			if tier == 0 {
				if l.checkName(path, rule, m.Package.Path) {
					speaks[m.Package.Path.String()] = true // Once is enough.
				}
				continue
			}
			speaks[m.Package.Path.String()] = true
			l.checkRule(rule, m.Package.Path)
			id, literal := ruleID(rule)
			if !literal || m.Package.Path[1].Equal(ast.StringTerm("services")) {
				continue
			}
			key := tier.String() + " " + id
			if other, ok := ids[key]; ok && !other.Equal(m.Package.Path) {
				l.fail(path, rule.Location, policy.ProblemType, "id %q is used in %s, too: ids of guardrails must tell them apart", id, other)
			}
			ids[key] = m.Package.Path
		}
	}
	for _, path := range slices.Sorted(maps.Keys(l.program.parsed)) {
		pkg := l.program.parsed[path].Package
		root, _ := pkg.Path[1].Value.(ast.String)
		want := map[ast.String]string{"services": "allow nor deny", "guardrails": "deny nor deny_overridable"}[root]
		if want != "" && !speaks[pkg.Path.String()] {
			l.fail(path, pkg.Location, policy.ProblemType, "package %s defines neither %s", packageName(pkg), want)
		}
	}
}

func (l *loader) checkRule(rule *ast.Rule, pkg ast.Ref) {
	name := rule.Head.Ref()[0].Value.String()
	fail := func(format string, args ...any) {
		l.fail("", rule.Location, policy.ProblemType, name+": "+format, args...)
	}
	const shape = "want a partial set of ids (`%s contains \"id\" if …`) or a boolean"
	if len(rule.Head.Args) > 0 || len(rule.Head.Ref()) != 1 {
		fail(shape, name)
		return
	}
	if rule.Head.RuleKind() == ast.MultiValue {
		id, literal := ruleID(rule)
		switch {
		case rule.Head.Key.IsGround() && !literal && isConstant(rule.Head.Key.Value):
			fail("the id %s must be a text", rule.Head.Key)
		case literal && (id == "" || len(id) > maxRuleID || strings.ContainsFunc(id, unicode.IsControl)):
			fail("the id %q must have 1 to %d bytes and no control characters", id, maxRuleID)
		}
		return
	}
	for r := rule; r != nil; r = r.Else {
		value := r.Head.Value.Value
		if b, ok := value.(ast.Boolean); ok && rule.Default && bool(b) && name == "allow" {
			fail("a default of true would allow whatever the rules fail to decide; write `allow := true` to allow everything")
		} else if !ok && isConstant(value) {
			fail(shape, name)
			return
		}
	}
	if t := l.program.compiler.TypeEnv.GetByRef(pkg.Append(ast.StringTerm(name))); t != nil && types.Compare(t, types.B) != 0 && !types.Contains(t, types.B) {
		fail(shape+", not %s", name, t)
	}
}

func isConstant(v ast.Value) bool {
	switch v.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String, *ast.Array, ast.Object, ast.Set:
		return true
	}
	return false
}

// ruleID is the id of a rule that the root reads; literal is false when it is
// computed.
func ruleID(rule *ast.Rule) (id string, literal bool) {
	if rule.Head.RuleKind() == ast.MultiValue {
		s, ok := rule.Head.Key.Value.(ast.String)
		return string(s), ok
	}
	pkg := rule.Module.Package.Path
	names := make([]string, 0, 3)
	for _, term := range pkg[1:].Append(rule.Head.Ref()[0]) {
		switch v := term.Value.(type) {
		case ast.String:
			names = append(names, string(v))
		case ast.Var:
			names = append(names, string(v))
		}
	}
	return strings.Join(names, "."), true
}

// checkReferences keeps services apart. A slice holds one service's rules and
// catalogue entry; what reaches beyond them would mean something else there.
//
// It is done before compiling, where a reference to too much would be reported
// as a recursion, and again after, when imports are resolved.
func (l *loader) checkReferences(modules map[string]*ast.Module) {
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		if strings.HasPrefix(path, ownPrefix) {
			continue
		}
		m := modules[path]
		own := bundle.ServiceOf(m.Package.Path)
		for _, rule := range m.Rules {
			eachRef(rule, func(ref ast.Ref, at *ast.Location) { l.checkReference(ref, at, own) })
		}
	}
}

// checkReference checks one reference in a rule of the service own.
func (l *loader) checkReference(ref ast.Ref, at *ast.Location, own string) {
	fail := func(format string, args ...any) {
		l.fail("", at, policy.ProblemType, format, args...)
	}
	if header := headerName(ref); header != strings.ToLower(header) {
		fail("header names are lower case: %q never matches; did you mean %q?", header, strings.ToLower(header))
	}
	if !ref[0].Equal(ast.DefaultRootDocument) {
		return
	}
	root := ast.String("")
	if len(ref) > 1 {
		root, _ = ref[1].Value.(ast.String)
	}
	switch {
	case root == "":
		fail("a reference to all of data reaches into other services: name what is meant")
	case root == "writ":
		if problem := libraryProblem(ref); problem != "" {
			fail("%s: %s", ref.ConstantPrefix(), problem)
		}
	case root == "services" && (own == "" || bundle.ServiceOf(ref) != own):
		fail("%s: the rules of a service can be used by that service only; put what is shared into a package of its own", ref)
	}
}

// headerName is the literal name in input.request.headers[name], or "".
func headerName(ref ast.Ref) string {
	if len(ref) < 4 || !readsRequest(ref) || !ref[2].Equal(keyHeaders) {
		return ""
	}
	name, _ := ref[3].Value.(ast.String)
	return string(name)
}

// checkTests compiles everything again, with the tests.
func (l *loader) checkTests() {
	p := l.program
	defined := map[string]bool{}
	for _, m := range p.parsed {
		for _, rule := range m.Rules {
			defined[rule.Ref().GroundPrefix().String()] = true
		}
	}
	for _, path := range slices.Sorted(maps.Keys(p.tests)) {
		for _, rule := range p.tests[path].Rules {
			name := rule.Ref().GroundPrefix().String()
			if defined[name] || tierOf(p.tests[path].Package.Path, rule.Head.Ref()[0].Value.String()) != 0 {
				l.fail(path, rule.Location, policy.ProblemType, "a test file may not define %s: it would decide in tests only", name)
			}
		}
	}
	if len(l.problems) > 0 {
		return
	}
	all := maps.Clone(p.parsed)
	maps.Copy(all, p.tests)
	l.checkInputs(all)
	if len(p.tests) == 0 {
		return
	}
	compiler, err := l.compile(all)
	if err != nil {
		l.problems = append(l.problems, l.compileProblems(err)...)
		return
	}
	ofTests := func(file string) bool { return p.tests[file] != nil }
	l.checkFields(compiler, ofTests)
	l.checkUnknown(compiler, ofTests)
}
