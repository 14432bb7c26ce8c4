package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyProposeCmd(a *app) *cobra.Command {
	var (
		from         sourceFlags
		key, message string
	)
	cmd := &cobra.Command{
		Use:   "propose SOURCE",
		Short: "Hand in a policy directory for others to approve",
		Long: `Sign a policy directory and hand it to the control plane, which verifies,
checks and tests it as for a push, and keeps it as a proposal. Others look at it
(policy proposals NUMBER), approve it, and anybody activates it then.

` + sourceHelp,
		Example: `  policyctl policy propose --key publisher.pem -m "orders: admit reports" policy/
  policyctl policy proposals 3
  policyctl policy approve 3 --key ann.pem
  policyctl policy activate 3`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			sealed, err := from.seal(cmd.Context(), args[0], key)
			if err != nil {
				return err
			}
			problems := sealed.problems
			resp := &policyv1.ProposeResponse{}
			if len(problems) == 0 {
				err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
					resp, err = c.Propose(cmd.Context(), &policyv1.ProposeRequest{Bundle: sealed.archive, Message: message, SourceCommit: sealed.commit})
					return err
				})
				if err != nil {
					return fmt.Errorf("policy propose: %w", err)
				}
				problems = sealed.explain(problemsFrom(resp.GetProblems()))
			}
			return a.proposed(args[0], resp, problems)
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "file with the publisher's private key (PEM, ECDSA P-256)")
	f.StringVarP(&message, "message", "m", "", "what changes, for those who approve it")
	_ = cmd.MarkFlagFilename("key", "pem")
	_ = cmd.RegisterFlagCompletionFunc("message", cobra.NoFileCompletions)
	from.add(cmd)
	return cmd
}

func (a *app) proposed(dir string, resp *policyv1.ProposeResponse, problems []policy.Problem) error {
	result := struct {
		Proposal *proposalInfo    `json:"proposal,omitempty"`
		Problems []policy.Problem `json:"problems"`
		Tests    testCounts       `json:"tests"`
	}{Problems: problems, Tests: testCountsFrom(resp.GetTests())}
	if p := resp.GetProposal(); p != nil {
		info := proposalInfoFrom(p)
		result.Proposal = &info
	}
	err := a.emit(result, func(w io.Writer) error {
		if len(problems) > 0 {
			return writeProblems(w, dir, problems)
		}
		p := result.Proposal
		fmt.Fprintf(w, "proposal %d, %v\n", p.Number, result.Tests)
		return p.writeNext(w)
	})
	if err != nil {
		return err
	}
	return refused(problems)
}

// writeNext says what a proposal waits for.
func (p *proposalInfo) writeNext(w io.Writer) error {
	var err error
	switch left := int(p.ApprovalsRequired) - len(p.Approvals); {
	case p.State != "open":
	case left > 0:
		_, err = fmt.Fprintf(w, "it has %d of %d approvals: %s\nnext: policyctl policy approve %d --key KEY\n", len(p.Approvals), p.ApprovalsRequired,
			terminalSafe(strings.Join(p.RequiredBecause, "; ")), p.Number)
	default:
		_, err = fmt.Fprintf(w, "next: policyctl policy activate %d\n", p.Number)
	}
	return err
}
