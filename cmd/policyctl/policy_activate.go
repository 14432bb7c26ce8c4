package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyActivateCmd(a *app) *cobra.Command {
	var canary rolloutFlags
	cmd := &cobra.Command{
		Use:   "activate NUMBER",
		Short: "Put an approved proposal in force",
		Long: `Put a proposal in force. It is verified, checked and tested once more, and the
approvals that it needs must be there.`,
		Example: `  policyctl policy activate 3
  policyctl policy activate 3 --canary 10% --max-deny-increase 5%`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := proposalNumber(args[0])
			if err != nil {
				return err
			}
			rollout, err := canary.rollout()
			if err != nil {
				return err
			}
			var resp *policyv1.ActivateResponse
			err = a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Activate(cmd.Context(), &policyv1.ActivateRequest{Number: number, Rollout: rollout})
				return err
			})
			if err != nil {
				return fmt.Errorf("policy activate: %w", err)
			}
			result := struct {
				Revision string `json:"revision"`
				Number   uint64 `json:"number"`
				Proposal uint64 `json:"proposal"`
				Percent  uint32 `json:"percent,omitempty"`
				madeBy
			}{revisionText(resp.GetRevision()), resp.GetRevision().GetNumber(), number, rollout.GetPercent(), madeBy{resp.GetEngine(), resp.GetEngineReason()}}
			return a.emit(result, func(w io.Writer) error {
				if err := writeInForce(w, result.Revision, rollout, fmt.Sprintf("proposal %d", number)); err != nil {
					return err
				}
				return result.madeBy.write(w)
			})
		},
	}
	canary.add(cmd)
	return cmd
}
