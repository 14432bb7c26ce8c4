package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/lint"
)

func newPolicyLintCmd(a *app) *cobra.Command {
	var (
		from            sourceFlags
		noRegal, strict bool
		list            bool
	)
	cmd := &cobra.Command{
		Use:   "lint SOURCE",
		Short: "Find what compiles and is probably not meant",
		Long: `Check a policy, and look for what compiles and is probably not what its author
meant, such as an allow that any caller gets. --rules lists what is looked for.
A finding is taken back on the line before it, with a reason:

  # writ-lint: ignore raw-path the server decodes nothing

Findings of severity error end the program with exit code 2, with --strict
those of severity warning as well. Where regal is installed (it is looked for
in PATH) and SOURCE is a directory, its findings are shown, too, as warnings
whose rule is regal/<its rule>.

` + sourceHelp,
		Example: `  policyctl policy lint policy/
  policyctl policy lint --strict -f mesh.yaml policy/`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case list:
				return a.listLintRules()
			case len(args) == 0:
				return fmt.Errorf("SOURCE is missing: a policy directory, say")
			}
			content, program, problems, err := from.check(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			result := lintResult{Files: len(content), Problems: problems, Findings: []lint.Finding{}}
			if len(problems) == 0 {
				if result.Findings, err = lint.Lint(program); err != nil {
					return err
				}
				if info, err := os.Stat(args[0]); err == nil && info.IsDir() && from.gitRef == "" && !noRegal {
					more, err := runRegal(cmd.Context(), args[0])
					if err != nil {
						return fmt.Errorf("%w (--no-regal leaves it out)", err)
					}
					result.add(more)
				}
			}
			return a.linted(args[0], result, strict)
		},
	}
	from.add(cmd)
	cmd.Flags().BoolVar(&noRegal, "no-regal", false, "do not run regal")
	cmd.Flags().BoolVar(&strict, "strict", false, "end with exit code 2 on warnings as well")
	cmd.Flags().BoolVar(&list, "rules", false, "list what is looked for")
	return cmd
}

// lintResult is the JSON form of a run.
type lintResult struct {
	OK       bool             `json:"ok"`
	Files    int              `json:"files"`
	Problems []policy.Problem `json:"problems"`
	Findings []lint.Finding   `json:"findings"`
}

func (r *lintResult) add(more []lint.Finding) {
	r.Findings = append(r.Findings, more...)
	slices.SortStableFunc(r.Findings, func(a, b lint.Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

func (a *app) linted(dir string, result lintResult, strict bool) error {
	result.OK = len(result.Problems) == 0
	for _, f := range result.Findings {
		if f.Severity == lint.Error || strict && f.Severity == lint.Warning {
			result.OK = false
		}
	}
	if result.Findings == nil {
		result.Findings = []lint.Finding{}
	}
	err := a.emit(result, func(w io.Writer) error {
		if len(result.Problems) > 0 {
			return writeProblems(w, dir, result.Problems)
		}
		for _, f := range result.Findings {
			if f.File != "" {
				f.File = fileIn(dir, f.File)
			}
			if _, err := fmt.Fprintln(w, terminalSafe(f.String())); err != nil {
				return err
			}
		}
		if len(result.Findings) > 0 {
			return nil
		}
		_, err := fmt.Fprintf(w, "%d files, nothing found\n", result.Files)
		return err
	})
	if err == nil && !result.OK {
		return &exitError{code: 2}
	}
	return err
}

func (a *app) listLintRules() error {
	result := struct {
		Rules []lint.Rule `json:"rules"`
	}{lint.Rules()}
	return a.emit(result, func(w io.Writer) error {
		for _, r := range result.Rules {
			if _, err := fmt.Fprintf(w, "%-26s %-8s %s\n", r.ID, r.Severity, r.Title); err != nil {
				return err
			}
		}
		return nil
	})
}
