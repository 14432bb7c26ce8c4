package opa

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/rego"
)

// Bounds of a test run.
const (
	testTimeout    = 5 * time.Second
	allTestTimeout = 60 * time.Second
	// What a run may take to notice that its time is over.
	testGrace = time.Second
)

// TestOptions says how to run tests.
type TestOptions struct {
	// Coverage also measures which lines the tests evaluate.
	Coverage bool
	// Run, when not nil, matches the tests to run by their full names, such as
	// data.orders_test.test_web_reads.
	Run *regexp.Regexp
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
	Output string `json:"output,omitempty"`
	// FailedAt is the condition that was not true, nil when that is not known.
	FailedAt   *TestFailure `json:"failed_at,omitempty"`
	DurationUS int64        `json:"duration_us"`
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
	if len(p.tests) == 0 && !opts.Coverage {
		return &TestReport{Cases: []TestCase{}}, nil
	}
	timeout := cmp.Or(opts.Timeout, allTestTimeout)
	return within(ctx, timeout, func(ctx context.Context) (*TestReport, error) { return p.test(ctx, opts) })
}

// within ends when run does, and soon after the timeout at the latest. The
// evaluator does not look at its context within a step, such as a comparison
// of two values, and Go cannot end a goroutine from outside: one that is stuck
// there is left behind, so that at least no push waits for it forever.
func within(ctx context.Context, timeout time.Duration, run func(context.Context) (*TestReport, error)) (*TestReport, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type result struct {
		report *TestReport
		err    error
	}
	done := make(chan result, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- result{nil, fmt.Errorf("test policy: evaluation panicked: %v", r)}
			}
		}()
		report, err := run(ctx)
		done <- result{report, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		grace := time.NewTimer(testGrace)
		defer grace.Stop()
		select {
		case r = <-done:
		case <-grace.C:
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("test policy: not done within %v: %w", timeout, err)
	}
	return r.report, r.err
}

func (p *Program) test(ctx context.Context, opts TestOptions) (*TestReport, error) {
	report, coverage, err := p.runTests(ctx, opts, rego.InputSchema())
	if err != nil {
		return nil, fmt.Errorf("test policy: %w", err)
	}
	if err := p.explainTests(ctx, report); err != nil {
		return nil, fmt.Errorf("test policy: %w", err)
	}
	if opts.Coverage {
		report.Coverage = p.coverage(coverage)
	}
	return report, nil
}

func (p *Program) runTests(ctx context.Context, opts TestOptions, inputSchema []byte) (*TestReport, *cover.Cover, error) {
	report := &TestReport{Cases: []TestCase{}}
	compiler, err := p.newCompilerFor(inputSchema)
	if err != nil {
		return nil, nil, err
	}
	store := inmem.NewFromASTObject(p.data)
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, nil, err
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
	if opts.Run != nil {
		runner.Filter(opts.Run.String())
	}
	coverage := cover.New()
	if opts.Coverage {
		runner.SetCoverageQueryTracer(coverage)
	}
	results, err := runner.RunTests(ctx, txn)
	if err != nil {
		return nil, nil, err
	}
	for r := range results { // To the end, also when ctx ends: its goroutines wait for us.
		report.add(r)
	}
	slices.SortFunc(report.Cases, func(a, b TestCase) int {
		return comparePlace(policy.Problem{File: a.File, Line: a.Line}, policy.Problem{File: b.File, Line: b.Line})
	})
	return report, coverage, nil
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
