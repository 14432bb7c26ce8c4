package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

func newPolicyCheckCmd(a *app) *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "check SOURCE",
		Short: "Find what is wrong with a policy directory",
		Long: `Parse and type-check a policy directory and its tests as the control plane
would, without one. A field of input that does not exist is found, as is a
guardrail that would be silent on connections.

Of YAML rules that are past their date, it warns: one that allows does not any
more, and one that denies goes on.

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
			warnings := expired(program, time.Now())
			digest := content.Digest()
			result := struct {
				OK       bool             `json:"ok"`
				Files    int              `json:"files"`
				Digest   string           `json:"digest"`
				Problems []policy.Problem `json:"problems"`
				Warnings []policy.Problem `json:"warnings"`
			}{len(problems) == 0, len(content), hex.EncodeToString(digest[:]), problems, warnings}
			err = a.emit(result, func(w io.Writer) error {
				if err := writeProblems(w, args[0], warnings); err != nil {
					return err
				}
				if len(problems) > 0 {
					return writeProblems(w, args[0], problems)
				}
				_, err := fmt.Fprintf(w, "%d files, no problems\n", len(content))
				return err
			})
			if err != nil {
				return err
			}
			return refused(problems)
		},
	}
	from.add(cmd)
	return cmd
}

// expired are the YAML rules of a policy that are past their date. The program
// is nil when the policy has problems.
func expired(program *opa.Program, now time.Time) []policy.Problem {
	warnings := []policy.Problem{}
	if program == nil {
		return warnings
	}
	for _, e := range program.Rules().Expiries() {
		if e.At.After(now) {
			break // The next first.
		}
		what := "goes on denying: remove it, or give it another date"
		if e.Action == "allow" {
			what = "does not allow any more: remove it"
		}
		warnings = append(warnings, policy.Problem{File: e.Rule.File, Line: e.Rule.Line, Code: policy.ProblemExpired,
			Message: fmt.Sprintf("rule %q expired at %s and %s", e.Rule.ID, e.At.Format(time.RFC3339), what)})
	}
	return warnings
}

// checkPolicy reads and checks a directory.
func checkPolicy(dir, meshFile string) (bundle.Content, *opa.Program, []policy.Problem, error) {
	return (&sourceFlags{mesh: meshFile}).check(context.Background(), dir)
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
