package main

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

func newPolicyTestCmd(a *app) *cobra.Command {
	var (
		from     sourceFlags
		coverage bool
	)
	cmd := &cobra.Command{
		Use:   "test SOURCE",
		Short: "Run the tests of a policy directory",
		Long: `Check a policy directory and run its _test.rego files as the control plane
does before activation. A test may ask the rules of a service
(data.services.orders.allow) or the whole decision (data.writ.decision).

` + sourceHelp,
		Example: `  policyctl policy test policy/
  policyctl policy test --coverage policy/`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, program, problems, err := from.check(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			report := &opa.TestReport{Cases: []opa.TestCase{}}
			if len(problems) == 0 {
				if report, err = program.Test(cmd.Context(), opa.TestOptions{Coverage: coverage}); err != nil {
					return err
				}
			}
			result := struct {
				OK       bool             `json:"ok"`
				Problems []policy.Problem `json:"problems"`
				*opa.TestReport
			}{len(problems) == 0 && report.Failed == 0, problems, report}
			err = a.emit(result, func(w io.Writer) error {
				if len(problems) > 0 {
					return writeProblems(w, args[0], problems)
				}
				return writeTests(w, args[0], report)
			})
			if err != nil {
				return err
			}
			return refused(append(problems, report.Problems()...))
		},
	}
	from.add(cmd)
	cmd.Flags().BoolVar(&coverage, "coverage", false, "show which share of each file the tests evaluate")
	return cmd
}

func writeTests(w io.Writer, dir string, report *opa.TestReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range report.Cases {
		fmt.Fprintf(tw, "%s\t%s.%s\t%s:%d\t%dµs\n", c.Outcome, terminalSafe(c.Package), terminalSafe(c.Name), filepath.Join(dir, c.File), c.Line, c.DurationUS)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, c := range report.Cases {
		if c.Outcome == opa.Failed && c.Output != "" {
			fmt.Fprintf(w, "\n%s printed:\n", terminalSafe(c.Name))
			for line := range strings.Lines(c.Output) {
				fmt.Fprintln(w, "  "+terminalSafe(strings.TrimSuffix(line, "\n")))
			}
		}
	}
	if err := writeProblems(w, dir, report.Problems()); err != nil {
		return err
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", report.Passed, report.Failed, report.Skipped)
	if report.Coverage == nil {
		return nil
	}
	fmt.Fprintf(tw, "coverage\t%.1f %%\n", report.Coverage.Percent)
	for _, file := range slices.Sorted(maps.Keys(report.Coverage.Files)) {
		fmt.Fprintf(tw, "  %s\t%.1f %%\n", filepath.Join(dir, file), report.Coverage.Files[file])
	}
	return tw.Flush()
}
