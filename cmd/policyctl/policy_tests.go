package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

func newPolicyTestCmd(a *app) *cobra.Command {
	t := testRun{app: a}
	var watch bool
	cmd := &cobra.Command{
		Use:   "test SOURCE",
		Short: "Run the tests of a policy directory",
		Long: `Check a policy directory and run its _test.rego files as the control plane
does before activation. A test may ask the rules of a service
(data.services.orders.allow) or the whole decision (data.writ.decision). Of a
test that failed, the condition that was not true is shown.

--run runs the tests whose full name, such as data.orders_test.test_reads,
matches. --watch runs them again whenever something in the directory changes,
until it is interrupted; a mesh file is read again then.

` + sourceHelp,
		Example: `  policyctl policy test policy/
  policyctl policy test --watch --run orders policy/
  policyctl policy test --coverage-min 90 --junit report.xml policy/`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			t.source = args[0]
			if err := t.complete(); err != nil {
				return err
			}
			if watch {
				return t.watch(cmd.Context())
			}
			return t.once(cmd.Context())
		},
	}
	t.from.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&t.coverage, "coverage", false, "show which share of each file the tests evaluate, and which lines they do not")
	f.Float64Var(&t.coverageMin, "coverage-min", 0, "end with exit code 2 when less than this share of all lines is evaluated, percent")
	f.StringVar(&t.run, "run", "", "run the tests that match this regular expression")
	f.StringVar(&t.junit, "junit", "", "also write the results to this file, as JUnit XML")
	f.BoolVarP(&t.verbose, "verbose", "v", false, "also show what tests that passed print")
	f.BoolVar(&watch, "watch", false, "run again after each change")
	_ = cmd.MarkFlagFilename("junit", "xml")
	for _, name := range []string{"coverage-min", "run"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// testRun is how tests are run.
type testRun struct {
	*app
	source      string
	from        sourceFlags
	coverage    bool
	coverageMin float64
	run, junit  string
	matches     *regexp.Regexp
	verbose     bool
}

func (t *testRun) complete() (err error) {
	if t.coverageMin < 0 || t.coverageMin > 100 {
		return fmt.Errorf("--coverage-min %v: want 0 to 100", t.coverageMin)
	}
	t.coverage = t.coverage || t.coverageMin > 0
	if t.run != "" {
		if t.matches, err = regexp.Compile(t.run); err != nil {
			return fmt.Errorf("--run: %w", err)
		}
	}
	return nil
}

// once runs the tests once, and shows the result.
func (t *testRun) once(ctx context.Context) error {
	_, program, problems, err := t.from.check(ctx, t.source)
	if err != nil {
		return err
	}
	report := &opa.TestReport{Cases: []opa.TestCase{}}
	if len(problems) == 0 {
		if report, err = program.Test(ctx, opa.TestOptions{Coverage: t.coverage, Run: t.matches}); err != nil {
			return err
		}
		if len(report.Cases) == 0 && t.matches != nil {
			return fmt.Errorf("--run %s: no test has such a name", t.run)
		}
	}
	if t.junit != "" {
		if err := writeJUnit(t.junit, t.source, problems, report); err != nil {
			return fmt.Errorf("--junit: %w", err)
		}
	}
	covered := report.Coverage == nil || report.Coverage.Percent >= t.coverageMin
	result := struct {
		OK       bool             `json:"ok"`
		Problems []policy.Problem `json:"problems"`
		*opa.TestReport
	}{len(problems) == 0 && report.Failed == 0 && covered, problems, report}
	err = t.emit(result, func(w io.Writer) error {
		if len(problems) > 0 {
			return writeProblems(w, t.source, problems)
		}
		return t.write(w, report)
	})
	if err == nil && !result.OK {
		return &exitError{code: 2}
	}
	return err
}

// watch runs the tests after each change, until ctx ends. What is wrong is
// shown, and mended by the next change.
func (t *testRun) watch(ctx context.Context) error {
	if t.output == "json" {
		return errors.New("--watch: --output json is one document, and there are many results")
	}
	dir, err := filepath.Abs(t.source)
	if err != nil {
		return err
	}
	if info, err := os.Stat(dir); err != nil {
		return err
	} else if !info.IsDir() || t.from.gitRef != "" {
		return fmt.Errorf("--watch: %s is not a directory that changes", t.source)
	}
	return followDir(ctx, dirFollower{
		dir: dir, rescan: rescan,
		changed: func() {
			var seen *exitError
			if err := t.once(ctx); err != nil && !errors.As(err, &seen) && ctx.Err() == nil {
				fmt.Fprintf(t.stderr, "policyctl: %v\n", err)
			}
			fmt.Fprintln(t.stdout, "waiting for changes")
		},
		warn: func(err error) { fmt.Fprintf(t.stderr, "policyctl: watch of %s: %v\n", t.source, err) },
	})
}

func (t *testRun) write(w io.Writer, report *opa.TestReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range report.Cases {
		fmt.Fprintf(tw, "%s\t%s.%s\t%s:%d\t%dµs\n", c.Outcome, terminalSafe(c.Package), terminalSafe(c.Name), fileIn(t.source, c.File), c.Line, c.DurationUS)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, c := range report.Cases {
		if (c.Outcome == opa.Failed || t.verbose) && c.Output != "" {
			fmt.Fprintf(w, "\n%s printed:\n", terminalSafe(c.Name))
			for line := range strings.Lines(c.Output) {
				fmt.Fprintln(w, "  "+terminalSafe(strings.TrimSuffix(line, "\n")))
			}
		}
	}
	p := printer{w: w, dir: t.source}
	for _, c := range report.Cases {
		if c.Outcome != opa.Failed {
			continue
		}
		p.line("%s:%d:1: test: %s", fileIn(t.source, c.File), c.Line, failureText(c))
		if at := c.FailedAt; at != nil {
			condition := conditionInfo{File: at.File, Line: at.Line, Text: at.Text}
			for _, v := range at.Values {
				condition.Values = append(condition.Values, valueInfo(v))
			}
			p.condition(condition, "  ")
		}
	}
	p.line("%d passed, %d failed, %d skipped", report.Passed, report.Failed, report.Skipped)
	if p.err != nil || report.Coverage == nil {
		return p.err
	}
	return t.writeCoverage(tw, report.Coverage)
}

func failureText(c opa.TestCase) string {
	if c.Message == "" {
		return c.Name + " failed"
	}
	return c.Name + " failed: " + c.Message
}

func (t *testRun) writeCoverage(tw *tabwriter.Writer, c *opa.Coverage) error {
	short := ""
	if c.Percent < t.coverageMin {
		short = fmt.Sprintf("\tless than %v %%", t.coverageMin)
	}
	fmt.Fprintf(tw, "coverage\t%.1f %%%s\n", c.Percent, short)
	for _, file := range slices.Sorted(maps.Keys(c.Files)) {
		missing := ""
		for i, lines := range c.Missing[file] {
			separator := ", "
			if i == 0 {
				separator = "\tnot lines "
			}
			missing += fmt.Sprintf("%s%d", separator, lines.From)
			if lines.To > lines.From {
				missing += fmt.Sprintf("-%d", lines.To)
			}
		}
		fmt.Fprintf(tw, "  %s\t%.1f %%%s\n", fileIn(t.source, file), c.Files[file], missing)
	}
	return tw.Flush()
}
