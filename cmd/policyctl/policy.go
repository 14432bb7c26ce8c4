package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/fetch"
	"github.com/writ-dev/writ/policy/policyv1"
)

// maxPolicyAnswer bounds what a control plane may answer about policy, bytes.
const maxPolicyAnswer = bundle.MaxContentBytes + 1<<20

func newPolicyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check, test and activate policy",
		Long: `Check and test a policy directory, put it in force, and go back.

A policy directory holds .rego files, their _test.rego files, YAML rules
(rules.yaml, *.rules.yaml), and data.json or data.yaml; an OPA bundle (tar.gz) or
its URL does as well. Problems are shown as file:line:column: code: message, and
end the program with exit code 2.`,
	}
	for _, group := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Write it:", []*cobra.Command{
			newPolicyInitCmd(a), newPolicyCheckCmd(a), newPolicyTestCmd(a), newPolicyFmtCmd(a), newPolicyLintCmd(a),
			newPolicyEvalCmd(a), newPolicyExplainCmd(a), newPolicyCompileCmd(a),
		}},
		{"Put it in force:", []*cobra.Command{
			newPolicyPushCmd(a), newPolicyProposeCmd(a), newPolicyApproveCmd(a), newPolicyActivateCmd(a), newPolicyWithdrawCmd(a), newPolicyProposalsCmd(a),
			newPolicyPromoteCmd(a), newPolicyHaltCmd(a), newPolicyRollbackCmd(a), newPolicyBreakGlassCmd(a), newPolicyRaiseEpochCmd(a),
		}},
		{"See what is or was:", []*cobra.Command{
			newPolicyListCmd(a), newPolicyShowCmd(a), newPolicyDiffCmd(a), newPolicyVerifyCmd(a), newPolicyBuildCmd(a),
		}},
	} {
		cmd.AddGroup(&cobra.Group{ID: group.title, Title: group.title})
		for _, c := range group.commands {
			c.GroupID = group.title
			cmd.AddCommand(c)
		}
	}
	return cmd
}

// policyAdmin calls the control plane's policy administration.
func (a *app) policyAdmin(call func(policyv1.AdminClient) error) error {
	return withClient(a, policyv1.NewAdminClient, func(c policyv1.AdminClient) error { return rpcError(call(c)) })
}

// largeAnswer admits a whole policy as an answer.
func largeAnswer() grpc.CallOption { return grpc.MaxCallRecvMsgSize(maxPolicyAnswer) }

// fileIn is a file of a source as an editor can open it, if it can: what is
// behind a URL cannot be opened.
func fileIn(source, file string) string {
	if fetch.IsURL(source) {
		return file
	}
	return filepath.Join(source, file)
}

// writeProblems prints one problem a line, with paths that an editor can open.
func writeProblems(w io.Writer, dir string, problems []policy.Problem) error {
	for _, p := range problems {
		if p.File != "" {
			p.File = fileIn(dir, p.File)
		}
		if _, err := fmt.Fprintln(w, terminalSafe(p.String())); err != nil {
			return err
		}
	}
	return nil
}

// notInOrder shows what is wrong with a policy that something else was to be
// done with: on standard error, or as the one JSON document.
func (a *app) notInOrder(dir string, problems []policy.Problem) error {
	err := a.emit(struct {
		Problems []policy.Problem `json:"problems"`
	}{problems}, func(io.Writer) error { return writeProblems(a.stderr, dir, problems) })
	if err != nil {
		return err
	}
	return refused(problems)
}

// refused ends the program with code 2 when there are problems; they were
// already shown.
func refused(problems []policy.Problem) error {
	if len(problems) > 0 {
		return &exitError{code: 2}
	}
	return nil
}

func problemsFrom(list []*policyv1.Problem) []policy.Problem {
	problems := []policy.Problem{}
	for _, p := range list {
		problems = append(problems, policy.Problem{File: p.GetFile(), Line: int(p.GetLine()), Column: int(p.GetColumn()), Code: p.GetCode(), Message: p.GetMessage()})
	}
	return problems
}

// testCounts is the JSON form of a test report of the control plane.
type testCounts struct {
	Passed  uint32 `json:"passed"`
	Failed  uint32 `json:"failed"`
	Skipped uint32 `json:"skipped"`
}

func testCountsFrom(t *policyv1.TestReport) testCounts {
	return testCounts{t.GetPassed(), t.GetFailed(), t.GetSkipped()}
}

func (t testCounts) String() string {
	text := fmt.Sprintf("%d tests passed", t.Passed)
	if t.Failed > 0 {
		text += fmt.Sprintf(", %d failed", t.Failed)
	}
	if t.Skipped > 0 {
		text += fmt.Sprintf(", %d skipped", t.Skipped)
	}
	return text
}

func meshFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVarP(into, "mesh", "f", "", "take the service catalogue from this mesh file")
	_ = cmd.MarkFlagFilename("mesh", "yaml", "yml")
}

func directoryArg(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
