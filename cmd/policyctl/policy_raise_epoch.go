package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyRaiseEpochCmd(a *app) *cobra.Command {
	var (
		to     uint64
		reason string
	)
	cmd := &cobra.Command{
		Use:   "raise-epoch",
		Short: "Have sidecars take what is in force here, whatever they run",
		Long: `Put what is in force under a higher epoch. Sidecars take nothing that is older
than what they run; after an older state of the control plane was restored,
all it has is older to them, and status says so. Restoring a backup with
"policyctl restore" does this by itself.

The act is signed with the decision key, kept with the revisions, and raises an
alarm. It makes older policy the newest: look at what is in force first.`,
		Example: `  policyctl policy raise-epoch --reason "restored last night's disk image"
  policyctl policy raise-epoch --to 7 --reason "restored twice from one backup"`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var resp *policyv1.RaiseEpochResponse
			err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.RaiseEpoch(cmd.Context(), &policyv1.RaiseEpochRequest{Epoch: to, Reason: reason})
				return err
			})
			if err != nil {
				return fmt.Errorf("policy raise-epoch: %w", err)
			}
			result := struct {
				Revision string `json:"revision"`
				Number   uint64 `json:"number"`
				Epoch    uint64 `json:"epoch"`
			}{revisionText(resp.GetRevision()), resp.GetRevision().GetNumber(), resp.GetRevision().GetEpoch()}
			return a.emit(result, func(w io.Writer) error {
				if resp.GetRevision() == nil {
					_, err := fmt.Fprintln(w, "the epoch is raised; no policy is in force")
					return err
				}
				_, err := fmt.Fprintf(w, "revision %s is in force\n", result.Revision)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&to, "to", 0, "the epoch (default one more than the highest that was had or heard of)")
	f.StringVar(&reason, "reason", "", "why, for the record")
	_ = cmd.MarkFlagRequired("reason")
	for _, name := range []string{"to", "reason"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}
