package main

import (
	"fmt"
	"io"
	"strings"
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
	Number       uint64         `json:"number"`
	Revision     string         `json:"revision"`
	Active       bool           `json:"active"`
	Stage        string         `json:"stage"`
	Rollout      *rolloutInfo   `json:"rollout,omitempty"`
	Activated    time.Time      `json:"activated"`
	Author       string         `json:"author"`
	Publisher    string         `json:"publisher"`
	KeyID        string         `json:"key_id,omitempty"`
	Approvals    []approvalInfo `json:"approvals"`
	Proposal     uint64         `json:"proposal,omitempty"`
	SourceCommit string         `json:"source_commit,omitempty"`
	Message      string         `json:"message,omitempty"`
	RollbackOf   uint64         `json:"rollback_of,omitempty"`
	Tests        testCounts     `json:"tests"`
	madeBy
}

// rolloutInfo is the JSON form of how a revision was rolled out.
type rolloutInfo struct {
	Percent uint32 `json:"percent"`
	// Per mille.
	MaxDenyIncrease uint32 `json:"max_deny_increase"`
	MinDecisions    uint64 `json:"min_decisions"`
}

func revisionInfoFrom(r *policyv1.RevisionInfo) revisionInfo {
	info := revisionInfo{
		Number: r.GetRevision().GetNumber(), Revision: revisionText(r.GetRevision()), Active: r.GetActive(), Stage: r.GetStage(),
		Activated: time.Unix(0, r.GetActivated()).UTC(), Author: r.GetAuthor(), Publisher: r.GetPublisher(), KeyID: r.GetKeyId(),
		Approvals: approvalsFrom(r.GetApprovals()), Proposal: r.GetProposal(), SourceCommit: r.GetSourceCommit(), Message: r.GetMessage(),
		RollbackOf: r.GetRollbackOf(), Tests: testCountsFrom(r.GetTests()), madeBy: madeBy{r.GetEngine(), r.GetEngineReason()},
	}
	if o := r.GetRollout(); o != nil {
		info.Rollout = &rolloutInfo{o.GetPercent(), o.GetMaxDenyIncrease(), o.GetMinDecisions()}
	}
	return info
}

// stage is what happens to a revision, for a person.
func (r *revisionInfo) stage() string {
	if r.Stage == "canary" && r.Rollout != nil {
		return fmt.Sprintf("canary %d%%", r.Rollout.Percent)
	}
	return dash(r.Stage)
}

func writeRevisions(w io.Writer, revisions []revisionInfo) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\tNUMBER\tREVISION\tSTAGE\tACTIVATED\tAUTHOR\tPUBLISHER\tKEY\tAPPROVED BY\tCOMMIT\tTESTS\tENGINE\tMESSAGE")
	for _, r := range revisions {
		mark, message := " ", r.Message
		if r.Active {
			mark = "*"
		}
		if r.RollbackOf != 0 {
			message = fmt.Sprintf("(rollback to %d) %s", r.RollbackOf, message)
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", mark, r.Number, r.Revision, r.stage(), r.Activated.Format(time.RFC3339),
			terminalSafe(r.Author), dash(terminalSafe(r.Publisher)), dash(r.KeyID[:min(len(r.KeyID), 12)]), dash(approverNames(r.Approvals)),
			dash(terminalSafe(shortCommit(r.SourceCommit))), r.Tests.Passed, r.engine(), terminalSafe(message))
	}
	return tw.Flush()
}

// shortCommit cuts a git hash, and keeps the mark of one with changes.
func shortCommit(commit string) string {
	hash, dirty, _ := strings.Cut(commit, "-")
	if dirty != "" {
		dirty = "-" + dirty
	}
	return hash[:min(len(hash), 12)] + dirty
}
