package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/policyv1"
)

// maxDecideInput bounds what is read as an input, bytes.
const maxDecideInput = 1 << 20

func newDecideCmd(a *app) *cobra.Command {
	var (
		file   string
		number uint64
	)
	cmd := &cobra.Command{
		Use:   "decide -f FILE",
		Short: "Ask for the decision on an input",
		Long: `Ask the control plane what it decides on an input (JSON, version 1), by the
policy in force or by an older revision. Without a time in the input it is
decided as of now. The verdict is the result: a deny ends with exit code 0.`,
		Example: `  policyctl decide -f input.json
  policyctl decide -f - --revision 7 < input.json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			input, err := a.readInput(file)
			if err != nil {
				return err
			}
			// Before anybody is asked, and with the same words.
			if _, err := policy.DecodeInput(input); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			var resp *policyv1.DecideResponse
			err = a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Decide(cmd.Context(), &policyv1.DecideRequest{Input: input, Number: number})
				return err
			})
			if err != nil {
				return fmt.Errorf("decide: %w", err)
			}
			return a.decided(resp)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the input; - is standard input")
	cmd.Flags().Uint64Var(&number, "revision", 0, "number of the revision to decide by; 0 is the one in force")
	_ = cmd.MarkFlagRequired("file")
	_ = cmd.MarkFlagFilename("file", "json")
	return cmd
}

func (a *app) readInput(file string) ([]byte, error) {
	r := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxDecideInput+1))
	if err != nil {
		return nil, fmt.Errorf("read input: %w", err)
	}
	return data, nil // DecodeInput refuses what is too long.
}

func (a *app) decided(resp *policyv1.DecideResponse) error {
	type rule struct {
		ID   string `json:"id"`
		File string `json:"file,omitempty"`
		Line uint32 `json:"line,omitempty"`
	}
	result := struct {
		Verdict  string `json:"verdict"`
		Tier     string `json:"tier"`
		Rules    []rule `json:"rules"`
		Reason   string `json:"reason,omitempty"`
		Revision string `json:"revision"`
	}{resp.GetVerdict(), resp.GetTier(), []rule{}, resp.GetReason(), revisionText(resp.GetRevision())}
	for _, r := range resp.GetRules() {
		result.Rules = append(result.Rules, rule{r.GetId(), r.GetFile(), r.GetLine()})
	}
	return a.emit(result, func(w io.Writer) error {
		fmt.Fprintf(w, "%s by %s, revision %s\n", result.Verdict, result.Tier, result.Revision)
		if result.Reason != "" {
			fmt.Fprintln(w, "reason:", terminalSafe(result.Reason))
		}
		for _, r := range result.Rules {
			at := ""
			if r.File != "" {
				at = fmt.Sprintf("  %s:%d", r.File, r.Line)
			}
			if _, err := fmt.Fprintf(w, "rule: %s%s\n", terminalSafe(r.ID), terminalSafe(at)); err != nil {
				return err
			}
		}
		return nil
	})
}
