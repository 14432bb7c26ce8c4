package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

func newPolicyCheckCmd(a *app) *cobra.Command {
	var (
		from   sourceFlags
		strict bool
	)
	cmd := &cobra.Command{
		Use:   "check SOURCE",
		Short: "Find what is wrong with a policy directory",
		Long: `Parse and type-check a policy directory and its tests as the control plane
would, without one. A field of input that does not exist is found, as is a
guardrail that would be silent on connections.

Warnings are about what is accepted: a rule that no request can match, a YAML
rule that has expired, a file of rules that is not read because of its name.
With --strict they count as problems.

` + sourceHelp,
		Example: `  policyctl policy check policy/
  policyctl policy check -f mesh.yaml policy/
  policyctl policy check --git-ref origin/main policy/`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			content, program, problems, err := from.check(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			warnings := []policy.Problem{}
			if len(problems) == 0 {
				if warnings, err = policyWarnings(cmd.Context(), program, time.Now()); err != nil {
					return err
				}
				if from.gitRef == "" {
					warnings = append(warnings, unreadFiles(args[0])...)
				}
			}
			return a.checked(args[0], content, problems, warnings, strict)
		},
	}
	from.add(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "end with exit code 2 on warnings as well")
	return cmd
}

func (a *app) checked(dir string, content bundle.Content, problems, warnings []policy.Problem, strict bool) error {
	digest := content.Digest()
	result := struct {
		OK       bool             `json:"ok"`
		Files    int              `json:"files"`
		Digest   string           `json:"digest"`
		Problems []policy.Problem `json:"problems"`
		Warnings []policy.Problem `json:"warnings"`
	}{len(problems) == 0 && !(strict && len(warnings) > 0), len(content), hex.EncodeToString(digest[:]), problems, warnings}
	err := a.emit(result, func(w io.Writer) error {
		if len(problems) > 0 {
			return writeProblems(w, dir, problems)
		}
		shown := slices.Clone(warnings)
		for i := range shown {
			shown[i].Code = "warning: " + shown[i].Code
		}
		if err := writeProblems(w, dir, shown); err != nil {
			return err
		}
		_, err := fmt.Fprintf(w, "%d files, no problems\n", len(content))
		return err
	})
	if err == nil && !result.OK {
		return &exitError{code: 2}
	}
	return err
}

// warningNever is the code of a rule that no request can match.
const warningNever = "never"

// policyWarnings are about what is accepted and is probably not wanted, in the
// order of their places.
func policyWarnings(ctx context.Context, program *opa.Program, now time.Time) ([]policy.Problem, error) {
	warnings := expiredRules(program, now)
	_, report, err := compile.Compile(ctx, program, compile.Config{})
	if err != nil {
		return nil, fmt.Errorf("look for rules that never match: %w", err)
	}
	for _, r := range neverMatching(report) {
		known := func(p policy.Problem) bool { return p.File == r.File && p.Line == r.Line }
		if slices.ContainsFunc(warnings, known) {
			continue
		}
		warnings = append(warnings, policy.Problem{File: r.File, Line: r.Line, Column: 1, Code: warningNever,
			Message: fmt.Sprintf("no request can match %s %q: its conditions contradict each other, or the data", r.Tier, r.ID)})
	}
	slices.SortStableFunc(warnings, func(a, b policy.Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return warnings, nil
}

// expiredRules are YAML rules whose end is past, each once.
func expiredRules(program *opa.Program, now time.Time) []policy.Problem {
	warnings := []policy.Problem{}
	for _, e := range program.Rules().Expiries() {
		if e.At.After(now) {
			continue
		}
		what := "goes on denying: remove it, or give it another date"
		if e.Action == "allow" {
			what = "does not allow any more: remove it"
		}
		p := policy.Problem{File: e.Rule.File, Line: e.Rule.Line, Code: policy.ProblemExpired,
			Message: fmt.Sprintf("rule %q expired at %s and %s", e.Rule.ID, e.At.Format(time.RFC3339), what)}
		if !slices.Contains(warnings, p) {
			warnings = append(warnings, p)
		}
	}
	return warnings
}

// neverMatching are the rules that match for none of the services that they
// are compiled for.
func neverMatching(report *compile.Report) []compile.RuleReport {
	type place struct {
		file, id string
		line     int
	}
	matches := map[place]bool{}
	var never []compile.RuleReport
	for _, s := range report.Services {
		for _, r := range s.Rules {
			at := place{r.File, r.ID, r.Line}
			if _, seen := matches[at]; !seen {
				never = append(never, r)
			}
			matches[at] = matches[at] || r.Result != compile.Never
		}
	}
	return slices.DeleteFunc(never, func(r compile.RuleReport) bool {
		// A broken glass ends by itself.
		return r.File == "" || r.Tier == policy.BreakGlass.String() || matches[place{r.File, r.ID, r.Line}]
	})
}

// check reads and checks the sources at name. Problems are never nil, so that
// they are a list in JSON.
func (s *sourceFlags) check(ctx context.Context, name string) (bundle.Content, *opa.Program, []policy.Problem, error) {
	src, err := s.open(ctx, name)
	var limits policy.Refused
	if errors.As(err, &limits) {
		return nil, nil, limits, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	program, problems := opa.Check(src.Content)
	if problems == nil {
		problems = []policy.Problem{}
	}
	return src.Content, program, problems, nil
}
