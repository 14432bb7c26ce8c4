package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyWithdrawCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "withdraw NUMBER",
		Short:             "Give up a proposal",
		Example:           `  policyctl policy withdraw 3 -m "found a better way"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := proposalNumber(args[0])
			if err != nil {
				return err
			}
			var resp *policyv1.WithdrawResponse
			err = a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Withdraw(cmd.Context(), &policyv1.WithdrawRequest{Number: number, Reason: reason})
				return err
			})
			if err != nil {
				return fmt.Errorf("policy withdraw: %w", err)
			}
			return a.emit(proposalInfoFrom(resp.GetProposal()), func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "proposal %d is withdrawn\n", number)
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&reason, "message", "m", "", "why, for the record")
	_ = cmd.RegisterFlagCompletionFunc("message", cobra.NoFileCompletions)
	return cmd
}
