package opa

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"

	"github.com/writ-dev/writ/policy"
)

// Bounds of a test run.
const (
	testTimeout    = 5 * time.Second
	allTestTimeout = 60 * time.Second
)

// TestOptions says how to run tests.
type TestOptions struct {
	// Coverage also measures which lines the tests evaluate.
	Coverage bool
	// Timeout of all tests together; 60 s when 0. One test has 5 s.
	Timeout time.Duration
}

// Outcomes of a test.
const (
	Passed  = "passed"
	Failed  = "failed"
	Skipped = "skipped"
)

// TestCase is the result of one test rule.
type TestCase struct {
	Package string `json:"package"`
	Name    string `json:"name"`
	File    string `json:"file"`
	Line    int    `json:"line"`
	// Outcome is passed, failed or skipped (todo_test_).
	Outcome string `json:"outcome"`
	// Message is the error that made it fail, if there was one.
	Message string `json:"message,omitempty"`
	// Output is what it printed.
	Output     string `json:"output,omitempty"`
	DurationUS int64  `json:"duration_us"`
}

// TestReport is the result of all tests.
type TestReport struct {
	Passed  int        `json:"passed"`
	Failed  int        `json:"failed"`
	Skipped int        `json:"skipped"`
	Cases   []TestCase `json:"cases"`
	// Coverage of the publisher's rules in percent, and per file; nil when it
	// was not asked for.
	Coverage *Coverage `json:"coverage,omitempty"`
}

// Coverage is the share of lines that tests evaluated, in percent.
type Coverage struct {
	Percent float64            `json:"percent"`
	Files   map[string]float64 `json:"files"`
}

// Problems are the failed tests.
func (r *TestReport) Problems() []policy.Problem {
	var problems []policy.Problem
	for _, c := range r.Cases {
		if c.Outcome == Failed {
			message := c.Name + " failed"
			if c.Message != "" {
				message += ": " + c.Message
			}
			problems = append(problems, policy.Problem{File: c.File, Line: c.Line, Column: 1, Code: policy.ProblemTest, Message: message})
		}
	}
	return problems
}

// Test runs the _test.rego files against the rules, the root rule among them.
// As in a decision, an error in a builtin is an error. A test that does not
// end in time has failed.
func (p *Program) Test(ctx context.Context, opts TestOptions) (*TestReport, error) {
	report := &TestReport{Cases: []TestCase{}}
	if len(p.tests) == 0 && !opts.Coverage {
		return report, nil
	}
	timeout := opts.Timeout
	if timeout == 0 {
		timeout = allTestTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	compiler, err := newCompiler()
	if err != nil {
		return nil, fmt.Errorf("test policy: %w", err)
	}
	store := inmem.NewFromASTObject(p.data)
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("test policy: %w", err)
	}
	defer store.Abort(ctx, txn)
	all := maps.Clone(p.parsed)
	maps.Copy(all, p.tests)
	runner := tester.NewRunner().
		SetCompiler(compiler.WithEnablePrintStatements(true)).
		SetDefaultRegoVersion(ast.RegoV1).
		SetStore(store).
		SetModules(all).
		CapturePrintOutput(true).
		RaiseBuiltinErrors(true).
		SetTimeout(testTimeout)
	coverage := cover.New()
	if opts.Coverage {
		runner.SetCoverageQueryTracer(coverage)
	}
	results, err := runner.RunTests(ctx, txn)
	if err != nil {
		return nil, fmt.Errorf("test policy: %w", err)
	}
	for r := range results { // To the end, also when ctx ends: its goroutines wait for us.
		report.add(r)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("test policy: not done within %v: %w", timeout, err)
	}
	slices.SortFunc(report.Cases, func(a, b TestCase) int {
		return comparePlace(policy.Problem{File: a.File, Line: a.Line}, policy.Problem{File: b.File, Line: b.Line})
	})
	if opts.Coverage {
		report.Coverage = p.coverage(coverage)
	}
	return report, nil
}

func (r *TestReport) add(result *tester.Result) {
	c := TestCase{
		Package:    strings.TrimPrefix(result.Package, "data."),
		Name:       result.Name,
		Outcome:    Passed,
		Output:     string(result.Output),
		DurationUS: result.Duration.Microseconds(),
	}
	if result.Location != nil {
		c.File, c.Line = result.Location.File, result.Location.Row
	}
	switch {
	case result.Skip:
		c.Outcome = Skipped
		r.Skipped++
	case result.Error != nil:
		c.Outcome, c.Message = Failed, result.Error.Error()
		r.Failed++
	case result.Fail:
		c.Outcome = Failed
		r.Failed++
	default:
		r.Passed++
	}
	r.Cases = append(r.Cases, c)
}

func (p *Program) coverage(c *cover.Cover) *Coverage {
	modules := maps.Clone(p.parsed)
	maps.DeleteFunc(modules, func(path string, _ *ast.Module) bool { return strings.HasPrefix(path, ownPrefix) })
	report := c.Report(modules)
	out := &Coverage{Files: map[string]float64{}}
	covered, lines := 0, 0
	for path := range modules {
		f := report.Files[path]
		if f == nil {
			continue
		}
		out.Files[path] = f.Coverage
		covered += f.CoveredLines
		lines += f.CoveredLines + f.NotCoveredLines
	}
	if lines > 0 {
		out.Percent = float64(covered) / float64(lines) * 100
	}
	return out
}
