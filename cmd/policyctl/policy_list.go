package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the revisions of policy, newest first",
		Example: `  policyctl policy list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var resp *policyv1.ListResponse
			err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.List(cmd.Context(), &policyv1.ListRequest{}, largeAnswer())
				return err
			})
			if err != nil {
				return fmt.Errorf("policy list: %w", err)
			}
			revisions := []revisionInfo{}
			for _, r := range resp.GetRevisions() {
				revisions = append(revisions, revisionInfoFrom(r))
			}
			epochs := epochRaises(resp.GetEpochs())
			result := struct {
				Revisions []revisionInfo `json:"revisions"`
				Epochs    []epochRaise   `json:"epochs"`
			}{revisions, epochs}
			return a.emit(result, func(w io.Writer) error {
				if err := writeRevisions(w, revisions); err != nil {
					return err
				}
				return writeEpochs(w, epochs)
			})
		},
	}
}

// revisionInfo is the JSON form of a revision.
type revisionInfo struct {
	Number     uint64     `json:"number"`
	Revision   string     `json:"revision"`
	Active     bool       `json:"active"`
	Activated  time.Time  `json:"activated"`
	Author     string     `json:"author"`
	KeyID      string     `json:"key_id,omitempty"`
	Message    string     `json:"message,omitempty"`
	RollbackOf uint64     `json:"rollback_of,omitempty"`
	Tests      testCounts `json:"tests"`
}

func revisionInfoFrom(r *policyv1.RevisionInfo) revisionInfo {
	return revisionInfo{
		Number: r.GetRevision().GetNumber(), Revision: revisionText(r.GetRevision()), Active: r.GetActive(),
		Activated: time.Unix(0, r.GetActivated()).UTC(), Author: r.GetAuthor(), KeyID: r.GetKeyId(), Message: r.GetMessage(),
		RollbackOf: r.GetRollbackOf(), Tests: testCountsFrom(r.GetTests()),
	}
}

func writeRevisions(w io.Writer, revisions []revisionInfo) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\tNUMBER\tREVISION\tACTIVATED\tAUTHOR\tKEY\tTESTS\tMESSAGE")
	for _, r := range revisions {
		mark, message := " ", r.Message
		if r.Active {
			mark = "*"
		}
		if r.RollbackOf != 0 {
			message = fmt.Sprintf("(rollback to %d) %s", r.RollbackOf, message)
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%d\t%s\n", mark, r.Number, r.Revision, r.Activated.Format(time.RFC3339), terminalSafe(r.Author),
			dash(r.KeyID[:min(len(r.KeyID), 12)]), r.Tests.Passed, terminalSafe(message))
	}
	return tw.Flush()
}
