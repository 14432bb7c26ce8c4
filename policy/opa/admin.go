package opa

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/rego"
)

// adminLibrary is what an admin policy may use of package writ: what looks at
// its arguments only.
const adminLibrary = ownPrefix + "writ/spiffe.rego"

// AdminPolicy says who may call which method of the control plane over the
// network. It is immutable.
type AdminPolicy struct {
	program    *Program
	query      ast.Body
	store      storage.Store
	valueCache cache.InterQueryValueCache
}

// AdminCall is what an admin policy is asked about: rego/schemas/admin.json.
type AdminCall struct {
	// Caller's SPIFFE ID, verified.
	CallerID, CallerTrustDomain, CallerPath string
	// Method is the full name, /package.Service/Method.
	Method string
	// Targets are the SPIFFE IDs that the call reads or changes; "/" is
	// everything. Never empty.
	Targets []string
	// Parents are the SPIFFE IDs that entries hang on.
	Parents []string
	// Request as JSON's Go values; nil for streams.
	Request any
	Time    time.Time
}

// CheckAdmin compiles an admin policy: modules of package admin, with tests,
// and data. `allow` in package admin is a boolean or a partial set of ids; what
// it does not allow is denied. With problems there is no policy.
func CheckAdmin(content bundle.Content) (*AdminPolicy, []policy.Problem) {
	l := loader{content: content, program: &Program{content: content}}
	l.loadAdmin()
	if len(l.problems) > 0 {
		slices.SortStableFunc(l.problems, comparePlace)
		return nil, l.problems[:min(len(l.problems), maxProblems)]
	}
	p := l.program
	query, err := p.compiler.QueryCompiler().Compile(ast.MustParseBody("data.admin.allow = decision"))
	if err != nil {
		return nil, problemsOf(err)
	}
	return &AdminPolicy{program: p, query: query, store: inmem.NewFromASTObject(p.data), valueCache: newPatternCache()}, nil
}

func (l *loader) loadAdmin() {
	p := l.program
	data, problems := l.content.Data()
	l.problems = append(l.problems, problems...)
	p.parsed, p.tests = map[string]*ast.Module{}, map[string]*ast.Module{}
	allows := false
	for _, f := range l.content {
		if !f.IsModule() {
			continue
		}
		m := l.parse(f)
		switch {
		case m == nil:
		case f.IsTest():
			p.tests[f.Path] = m
		case packageName(m.Package) != "admin":
			l.fail(f.Path, m.Package.Location, policy.ProblemType, "package %s: an admin policy is package admin", packageName(m.Package))
		default:
			p.parsed[f.Path] = m
			allows = allows || slices.ContainsFunc(m.Rules, func(r *ast.Rule) bool {
				return r.Head.Name == "allow" || r.Head.Ref()[0].Value.Compare(ast.Var("allow")) == 0
			})
		}
	}
	if len(l.problems) == 0 && !allows {
		l.problems = append(l.problems, policy.Problem{Code: policy.ProblemType, Message: "package admin has no rule allow: nobody could administer over the network"})
	}
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
	// What it says of "our own" means the destination of a request, which an
	// admin call has not.
	library := own[adminLibrary].Copy()
	library.Rules = slices.DeleteFunc(library.Rules, func(r *ast.Rule) bool {
		name := string(r.Head.Name)
		return name != "trust_domain" && name != "segments" && name != "under" && name != "matches"
	})
	library.Annotations = nil
	p.parsed[adminLibrary] = library
	compile := func(modules map[string]*ast.Module) (*ast.Compiler, error) {
		compiler, err := p.newCompilerFor(rego.AdminSchema())
		if err != nil {
			return nil, err
		}
		if compiler.Compile(modules); compiler.Failed() {
			return nil, compiler.Errors
		}
		return compiler, nil
	}
	if p.compiler, err = compile(p.parsed); err != nil {
		l.problems = append(l.problems, problemsOf(err)...)
		return
	}
	withTests := maps.Clone(p.parsed)
	maps.Copy(withTests, p.tests)
	if _, err := compile(withTests); err != nil {
		l.problems = append(l.problems, problemsOf(err)...)
	}
}

// Test runs the tests of an admin policy.
func (p *AdminPolicy) Test(ctx context.Context) (*TestReport, error) {
	return within(ctx, allTestTimeout, func(ctx context.Context) (*TestReport, error) {
		report, _, err := p.program.runTests(ctx, TestOptions{}, rego.AdminSchema())
		if err != nil {
			return nil, fmt.Errorf("test admin policy: %w", err)
		}
		return report, nil
	})
}

// Allow gives the ids of the rules that allow a call, "allow" for a boolean;
// none denies. An error denies, too.
func (p *AdminPolicy) Allow(ctx context.Context, call AdminCall) (rules []string, err error) {
	defer func() {
		if r := recover(); r != nil {
			rules, err = nil, fmt.Errorf("admin policy panicked: %v", r)
		}
	}()
	input, err := call.value()
	if err != nil {
		return nil, err
	}
	txn, err := p.store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer p.store.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(adminTimeout, cancel.Cancel)
	defer timer.Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	err = topdown.NewQuery(p.query).
		WithCompiler(p.program.compiler).WithStore(p.store).WithTransaction(txn).
		WithInput(ast.NewTerm(input)).WithTime(call.Time).WithCancel(cancel).
		WithInterQueryBuiltinValueCache(p.valueCache).
		WithStrictBuiltinErrors(true).
		Iter(ctx, func(result topdown.QueryResult) (err error) {
			rules, err = allowing(result[resultVar])
			return err
		})
	if topdown.IsCancel(err) {
		err = errTooLong
	}
	if err != nil {
		return nil, fmt.Errorf("admin policy: %w", err)
	}
	return rules, nil
}

// adminTimeout bounds one decision; a person waits for it.
const adminTimeout = 2 * time.Second

func allowing(value *ast.Term) ([]string, error) {
	if value == nil {
		return nil, nil
	}
	switch v := value.Value.(type) {
	case ast.Boolean:
		if v {
			return []string{"allow"}, nil
		}
		return nil, nil
	case ast.Set:
		var ids []string
		err := v.Iter(func(t *ast.Term) error {
			id, ok := t.Value.(ast.String)
			if !ok {
				return errors.New("allow holds something else than texts")
			}
			ids = append(ids, string(id))
			return nil
		})
		return ids, err
	}
	return nil, fmt.Errorf("allow is %s, want a boolean or a set of ids", ast.ValueName(value.Value))
}

func (c *AdminCall) value() (ast.Value, error) {
	if c.Time.IsZero() || len(c.Targets) == 0 {
		return nil, errors.New("admin policy: the call has no time or no targets")
	}
	service, rpc, _ := strings.Cut(strings.TrimPrefix(c.Method, "/"), "/")
	input := map[string]any{
		"version": 1,
		"caller":  map[string]any{"id": c.CallerID, "trust_domain": c.CallerTrustDomain, "path": c.CallerPath},
		"method":  c.Method, "service": service, "rpc": rpc,
		"targets": c.Targets, "parents": append([]string{}, c.Parents...),
		"time": c.Time.UTC().Format(time.RFC3339Nano),
	}
	if c.Request != nil {
		input["request"] = c.Request
	}
	return ast.InterfaceToValue(input)
}
