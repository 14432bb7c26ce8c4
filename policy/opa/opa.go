// Package opa decides with OPA. It is the only importer of OPA's evaluator.
//
// Check turns a publisher's content into a Program or into Problems with file
// and line; Program.Test runs its tests; Program.Snapshot makes it ready to
// decide. A sidecar, whose slice was checked where it was cut, calls Load.
//
// What publishers may write is narrower than Rego, so that a decision depends
// on its Input alone and can be replayed, and so that a slice means what the
// whole means: see Check. A decision looks further only where the signed data
// and the one who runs it say so: see Outside.
package opa

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/rules"
	"github.com/writ-dev/writ/rego"
)

const (
	// Bytes of one .rego file.
	maxModuleBytes = 1 << 20
	// Nesting of terms and bodies in Rego.
	maxRegoDepth = 200
	maxProblems  = 100
	// Modules of package writ carry this before their file name, which no
	// file of a publisher can.
	ownPrefix = "<writ>/"
)

// Program is a content that compiled. It is immutable.
type Program struct {
	content   bundle.Content
	catalogue bundle.Catalogue
	data      ast.Object
	compiler  *ast.Compiler
	// parsed are the modules as written, without tests, our own included.
	parsed map[string]*ast.Module
	// tests are the modules with tests.
	tests map[string]*ast.Module
	// written are the YAML rules, which are in data, too.
	written *rules.Set
	rules   ruleIndex
}

// Load compiles what decides: rules and data, without tests. What is wrong is
// a policy.Refused.
func Load(content bundle.Content) (*Program, error) {
	l := loader{content: content, program: &Program{content: content}}
	l.load()
	if len(l.problems) > 0 {
		return nil, policy.Refused(l.problems)
	}
	return l.program, nil
}

// Check compiles rules, data and tests, and finds what is wrong with them:
//
//   - what does not parse or does not type-check; `input` has the type of
//     rego/schemas/input.json, so a misspelt field is found;
//   - builtins that look outside of the input: rego.parse_module, random numbers
//     and the like, and, unless data.writ.outside admits them, http.send,
//     net.lookup_ip_addr and opa.runtime; and those whose time or memory has no
//     bound;
//   - requests of http.send that it would refuse, as far as they are written out;
//   - packages that are not a publisher's (writ, system), and rules of a
//     service that is not in the catalogue;
//   - rules of services and guardrails whose name is nearly allow, deny or
//     deny_overridable, so that they would decide nothing;
//   - allow and deny that are neither partial sets of ids nor booleans;
//   - references from one service to another, to all of data, or to data.writ,
//     but for its library;
//   - guardrails that read input.request without testing input.layer;
//   - comparisons of a field such as input.layer with a word it never holds, and
//     lists, such as the values of a header, taken for a text;
//   - references to what nothing defines;
//   - a `not` that does not hold when what it asks about is absent;
//   - inputs in tests that no request could make;
//   - a catalogue that is not well formed;
//   - data that is too large for a slice;
//   - tests that define rules of the policy;
//   - rules files that package rules does not accept, or for services that are
//     not in the catalogue.
//
// With problems there is no Program.
func Check(content bundle.Content) (*Program, []policy.Problem) {
	l := loader{content: content, program: &Program{content: content}}
	l.load()
	if len(l.problems) == 0 {
		all := func(string) bool { return true }
		l.checkFields(l.program.compiler, all)
		l.checkUnknown(l.program.compiler, all)
		l.checkRuleFiles()
		l.checkNegations()
		l.checkOutside()
		l.checkTests()
	}
	if len(l.problems) > 0 {
		slices.SortStableFunc(l.problems, comparePlace)
		l.problems = slices.Compact(l.problems) // What is used twice is looked at twice.
		return nil, l.problems[:min(len(l.problems), maxProblems)]
	}
	return l.program, nil
}

// Catalogue is the service catalogue of the content.
func (p *Program) Catalogue() bundle.Catalogue { return p.catalogue }

// Rules are the YAML rules of the content, in their normal form.
func (p *Program) Rules() *rules.Set { return p.written }

// Digest is the content's.
func (p *Program) Digest() [32]byte { return p.content.Digest() }

type loader struct {
	content  bundle.Content
	program  *Program
	problems []policy.Problem
}

// load stops at the first step that finds something: what follows would only
// report the same again.
func (l *loader) load() {
	p := l.program
	data, problems := l.content.Data()
	catalogue, more := l.content.Catalogue(data)
	l.problems = append(append(l.problems, problems...), more...)
	l.problems = append(l.problems, l.content.SliceProblems(data)...)
	p.catalogue = catalogue
	if len(problems) == 0 {
		p.written, _ = l.content.Rules(data) // Data has read them.
	} else {
		p.written = &rules.Set{}
	}
	p.parsed, p.tests = map[string]*ast.Module{}, map[string]*ast.Module{}
	for _, f := range l.content {
		if !f.IsModule() {
			continue
		}
		if m := l.parse(f); m != nil && f.IsTest() {
			p.tests[f.Path] = m
		} else if m != nil {
			p.parsed[f.Path] = m
		}
	}
	l.checkManifest(data)
	l.checkPackages()
	l.checkReferences(p.parsed)
	if len(l.problems) > 0 {
		return
	}
	value, err := ast.InterfaceToValue(data)
	if err != nil {
		l.problems = append(l.problems, policy.Problem{Code: policy.ProblemParse, Message: fmt.Sprintf("data: %v", err)})
		return
	}
	p.data, _ = value.(ast.Object)
	own, err := parsedOwn()
	if err != nil {
		l.problems = append(l.problems, problemsOf(err)...)
		return
	}
	maps.Copy(p.parsed, own) // The parsed modules are everybody's.
	if p.written.Data() == nil {
		delete(p.parsed, interpreter) // It would cost each decision something, and say nothing.
	}
	if p.compiler, err = l.compile(p.parsed); err != nil {
		l.problems = append(l.problems, l.compileProblems(err)...)
		return
	}
	l.checkRules()
	l.checkReferences(p.compiler.Modules)
	l.checkLayers()
	l.checkWords()
	p.rules = indexRules(p)
}

func (l *loader) parse(f bundle.File) *ast.Module {
	if len(f.Content) > maxModuleBytes {
		l.fail(f.Path, nil, policy.ProblemLimit, "larger than %d bytes", maxModuleBytes)
		return nil
	}
	// The depth is bounded first, because everything after this recurses.
	_, _, errs := ast.NewParser().WithFilename(f.Path).WithReader(newReader(f.Content)).WithRegoVersion(ast.RegoV1).
		WithCapabilities(capabilities()).WithMaxRecursionDepth(maxRegoDepth).Parse()
	if len(errs) > 0 {
		l.problems = append(l.problems, problemsOf(errs)...)
		return nil
	}
	m, err := ast.ParseModuleWithOpts(f.Path, string(f.Content), parserOptions())
	if err != nil {
		l.problems = append(l.problems, problemsOf(err)...)
		return nil
	}
	return m
}

func parserOptions() ast.ParserOptions {
	return ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: capabilities()}
}

// parsedOwn are the own modules, parsed once: a compiler works on copies.
var parsedOwn = sync.OnceValues(ownModules)

func ownModules() (map[string]*ast.Module, error) {
	modules := map[string]*ast.Module{}
	for name, text := range rego.Modules() {
		m, err := ast.ParseModuleWithOpts(ownPrefix+name, text, parserOptions())
		if err != nil {
			return nil, err
		}
		modules[ownPrefix+name] = m
	}
	return modules, nil
}

// newCompiler knows the type of input, and of the outside world what the data
// admits.
// Annotations are not read: they could change the type of input.
func (p *Program) newCompiler() (*ast.Compiler, error) { return p.newCompilerFor(rego.InputSchema()) }

// newCompilerFor takes the type of input from a JSON Schema.
func (p *Program) newCompilerFor(inputSchema []byte) (*ast.Compiler, error) {
	var schema any
	if err := json.Unmarshal(inputSchema, &schema); err != nil {
		return nil, fmt.Errorf("input schema: %w", err)
	}
	schemas := ast.NewSchemaSet()
	schemas.Put(ast.SchemaRootRef, schema)
	return hideMisread(ast.NewCompiler().
		WithCapabilities(capabilitiesFor(p.catalogue.Outside)).
		WithDefaultRegoVersion(ast.RegoV1).
		WithSchemas(schemas).
		SetErrorLimit(maxProblems)), nil
}

// compile also finds rules and data that define the same path.
func (l *loader) compile(modules map[string]*ast.Module) (*ast.Compiler, error) {
	ctx := context.Background() // The store is in memory.
	store := inmem.NewFromASTObject(l.program.data)
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Abort(ctx, txn)
	compiler, err := l.program.newCompiler()
	if err != nil {
		return nil, err
	}
	compiler.WithPathConflictsCheck(storage.NonEmpty(ctx, store, txn)).Compile(modules)
	if compiler.Failed() {
		return nil, compiler.Errors
	}
	return compiler, nil
}
