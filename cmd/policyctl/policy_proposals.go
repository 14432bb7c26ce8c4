package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyProposalsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "proposals [NUMBER]",
		Short: "List proposals, or show what one would change",
		Long: `List the proposals, newest first, or show one with the difference between what
is in force and what would be.`,
		Example: `  policyctl policy proposals
  policyctl policy proposals 3`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.showProposal(cmd, args[0])
			}
			var resp *policyv1.ProposalsResponse
			err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Proposals(cmd.Context(), &policyv1.ProposalsRequest{}, largeAnswer())
				return err
			})
			if err != nil {
				return fmt.Errorf("policy proposals: %w", err)
			}
			result := struct {
				Proposals []proposalInfo `json:"proposals"`
			}{[]proposalInfo{}}
			for _, p := range resp.GetProposals() {
				result.Proposals = append(result.Proposals, proposalInfoFrom(p))
			}
			return a.emit(result, func(w io.Writer) error { return writeProposals(w, result.Proposals) })
		},
	}
}

func (a *app) showProposal(cmd *cobra.Command, text string) error {
	number, err := proposalNumber(text)
	if err != nil {
		return err
	}
	var resp *policyv1.ShowProposalResponse
	var before []*policyv1.SourceFile
	err = a.policyAdmin(func(c policyv1.AdminClient) (err error) {
		if resp, err = c.ShowProposal(cmd.Context(), &policyv1.ShowProposalRequest{Number: number}, largeAnswer()); err != nil {
			return err
		}
		before, err = inForce(cmd.Context(), c)
		return err
	})
	if err != nil {
		return fmt.Errorf("policy proposals: %w", err)
	}
	result := struct {
		proposalInfo
		Diff string `json:"diff"`
	}{proposalInfoFrom(resp.GetProposal()), diffFiles("in force", "proposed", before, resp.GetFiles())}
	return a.emit(result, func(w io.Writer) error {
		if err := writeProposals(w, []proposalInfo{result.proposalInfo}); err != nil {
			return err
		}
		for _, approval := range result.Approvals {
			fmt.Fprintf(w, "approved by %s, key %s, at %s\n", terminalSafe(approval.Approver), approval.KeyID, approval.Time.Format(time.RFC3339))
		}
		if err := result.writeNext(w); err != nil || result.Diff == "" {
			return err
		}
		return writeText(w, "\n"+result.Diff)
	})
}

func proposalNumber(text string) (uint64, error) {
	number, err := strconv.ParseUint(text, 10, 63)
	if err != nil || number == 0 {
		return 0, fmt.Errorf("proposal %q: want a number from \"policyctl policy proposals\"", text)
	}
	return number, nil
}

// approvalInfo is the JSON form of an approval.
type approvalInfo struct {
	Approver string    `json:"approver"`
	KeyID    string    `json:"key_id"`
	Actor    string    `json:"actor"`
	Time     time.Time `json:"time"`
}

func approvalsFrom(list []*policyv1.Approval) []approvalInfo {
	approvals := []approvalInfo{}
	for _, p := range list {
		approvals = append(approvals, approvalInfo{p.GetApprover(), p.GetKeyId(), p.GetActor(), time.Unix(0, p.GetTime()).UTC()})
	}
	return approvals
}

// proposalInfo is the JSON form of a proposal.
type proposalInfo struct {
	Number            uint64         `json:"number"`
	State             string         `json:"state"`
	Digest            string         `json:"digest"`
	Author            string         `json:"author"`
	Publisher         string         `json:"publisher"`
	KeyID             string         `json:"key_id,omitempty"`
	Message           string         `json:"message,omitempty"`
	SourceCommit      string         `json:"source_commit,omitempty"`
	Proposed          time.Time      `json:"proposed"`
	Approvals         []approvalInfo `json:"approvals"`
	ApprovalsRequired uint32         `json:"approvals_required"`
	RequiredBecause   []string       `json:"required_because"`
	Tests             testCounts     `json:"tests"`
	Base              string         `json:"base,omitempty"`
	Revision          uint64         `json:"revision,omitempty"`
}

func proposalInfoFrom(p *policyv1.Proposal) proposalInfo {
	info := proposalInfo{
		Number: p.GetNumber(), State: p.GetState(), Digest: hex.EncodeToString(p.GetDigest()), Author: p.GetAuthor(), Publisher: p.GetPublisher(),
		KeyID: p.GetKeyId(), Message: p.GetMessage(), SourceCommit: p.GetSourceCommit(), Proposed: time.Unix(0, p.GetProposed()).UTC(),
		Approvals: approvalsFrom(p.GetApprovals()), ApprovalsRequired: p.GetApprovalsRequired(), RequiredBecause: notNil(p.GetRequiredBecause()),
		Tests: testCountsFrom(p.GetTests()), Revision: p.GetRevision().GetNumber(),
	}
	if p.GetBase() != nil {
		info.Base = revisionText(p.GetBase())
	}
	return info
}

func writeProposals(w io.Writer, proposals []proposalInfo) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NUMBER\tSTATE\tPROPOSED\tAUTHOR\tPUBLISHER\tAPPROVED BY\tNEEDS\tTESTS\tMESSAGE")
	for _, p := range proposals {
		state := p.State
		if p.Revision != 0 {
			state += fmt.Sprintf(" as %d", p.Revision)
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", p.Number, state, p.Proposed.Format(time.RFC3339), terminalSafe(p.Author),
			terminalSafe(p.Publisher), dash(approverNames(p.Approvals)), p.ApprovalsRequired, p.Tests.Passed, terminalSafe(p.Message))
	}
	return tw.Flush()
}

func approverNames(approvals []approvalInfo) string {
	var names []string
	for _, approval := range approvals {
		names = append(names, terminalSafe(approval.Approver))
	}
	return strings.Join(names, " ")
}
