package opa

import (
	"context"
	"maps"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
)

// maxExplainedTests bounds how many failed tests are explained.
const maxExplainedTests = 20

// TestFailure is the condition of a test that was not true, and what it
// compared.
type TestFailure struct {
	File   string       `json:"file"`
	Line   int          `json:"line"`
	Text   string       `json:"text"`
	Values []ShownValue `json:"values,omitempty"`
}

// explainTests says of failed tests which condition failed.
func (p *Program) explainTests(ctx context.Context, report *TestReport) error {
	if report.Failed == 0 {
		return nil
	}
	all := maps.Clone(p.parsed)
	maps.Copy(all, p.tests)
	l := loader{program: p}
	compiler, err := l.compile(all)
	if err != nil {
		return err
	}
	resolved, err := p.Resolved(true)
	if err != nil {
		return err
	}
	withTests := *p
	withTests.compiler = compiler
	// A test brings its input along; there is a time, as there is in a test.
	asker, err := withTests.ask(&policy.Input{Time: time.Now()}, explainTimeout)
	if err != nil {
		return err
	}
	asker.input = nil
	e := &explainer{asker: asker, rules: indexResolved(resolved)}
	explained := 0
	for i := range report.Cases {
		c := &report.Cases[i]
		if c.Outcome != Failed || explained == maxExplainedTests {
			continue
		}
		explained++
		c.FailedAt = e.test(ctx, resolved[c.File], c)
	}
	return nil
}

func (e *explainer) test(ctx context.Context, m *ast.Module, c *TestCase) *TestFailure {
	if m == nil {
		return nil
	}
	for _, rule := range m.Rules {
		if rule.Location.Row != c.Line || rule.Head.RuleKind() != ast.SingleValue || len(rule.Head.Ref()) != 1 {
			continue
		}
		for _, o := range e.rule(ctx, rule, maxBecause) {
			if len(o.Conditions) > 0 {
				first := o.Conditions[0]
				return &TestFailure{File: first.File, Line: first.Line, Text: first.Text, Values: first.Values}
			}
		}
	}
	return nil
}
