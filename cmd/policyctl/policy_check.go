package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

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

` + sourceHelp,
		Example: `  policyctl policy check policy/
  policyctl policy check -f mesh.yaml policy/
  policyctl policy check --git-ref origin/main policy/`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			content, _, problems, err := from.check(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			digest := content.Digest()
			result := struct {
				OK       bool             `json:"ok"`
				Files    int              `json:"files"`
				Digest   string           `json:"digest"`
				Problems []policy.Problem `json:"problems"`
			}{len(problems) == 0, len(content), hex.EncodeToString(digest[:]), problems}
			err = a.emit(result, func(w io.Writer) error {
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
