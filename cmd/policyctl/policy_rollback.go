package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyRollbackCmd(a *app) *cobra.Command {
	var message string
	cmd := &cobra.Command{
		Use:   "rollback NUMBER",
		Short: "Put the content of an older revision in force again",
		Long: `Put the content of an older revision in force as a new revision, so that
every sidecar takes it for newer than what it runs.`,
		Example:           `  policyctl policy rollback 7 -m "orders refused everything"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := revisionNumber(args[0])
			if err != nil {
				return err
			}
			var resp *policyv1.RollbackResponse
			err = a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Rollback(cmd.Context(), &policyv1.RollbackRequest{Number: number, Message: message})
				return err
			})
			if err != nil {
				return fmt.Errorf("policy rollback: %w", err)
			}
			result := struct {
				Revision   string `json:"revision"`
				Number     uint64 `json:"number"`
				RollbackOf uint64 `json:"rollback_of"`
				madeBy
			}{revisionText(resp.GetRevision()), resp.GetRevision().GetNumber(), number, madeBy{resp.GetEngine(), resp.GetEngineReason()}}
			return a.emit(result, func(w io.Writer) error {
				if _, err := fmt.Fprintf(w, "revision %s is in force, with the content of %d\n", result.Revision, number); err != nil {
					return err
				}
				return result.madeBy.write(w)
			})
		},
	}
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the list of revisions")
	_ = cmd.RegisterFlagCompletionFunc("message", cobra.NoFileCompletions)
	return cmd
}
