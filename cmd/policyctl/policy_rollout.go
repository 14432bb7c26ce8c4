package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/policyv1"
)

// rolloutFlags say which share of the followers gets a revision first.
type rolloutFlags struct {
	canary, maxDenyIncrease string
	minDecisions            uint64
}

func (r *rolloutFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.canary, "canary", "", "share of the followers that get it first, 1% to 99%; the rest with \"policy promote\"")
	f.StringVar(&r.maxDenyIncrease, "max-deny-increase", "", "with --canary: halt when the share of denied requests there is higher by more than this, as in 5%")
	f.Uint64Var(&r.minDecisions, "min-decisions", 0, "with --canary: decisions to wait for before shares are compared (default 100)")
	for _, name := range []string{"canary", "max-deny-increase", "min-decisions"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// rollout is nil for everybody at once.
func (r *rolloutFlags) rollout() (*policyv1.Rollout, error) {
	if r.canary == "" {
		if r.maxDenyIncrease != "" || r.minDecisions != 0 {
			return nil, fmt.Errorf("--max-deny-increase and --min-decisions are for --canary")
		}
		return nil, nil
	}
	share, err := perMille("--canary", r.canary)
	if err != nil || share%10 != 0 || share < 10 || share > 990 {
		return nil, fmt.Errorf("--canary %q: want 1%% to 99%%, whole percents", r.canary)
	}
	out := &policyv1.Rollout{Percent: share / 10, MinDecisions: r.minDecisions}
	if r.maxDenyIncrease != "" {
		if out.MaxDenyIncrease, err = perMille("--max-deny-increase", r.maxDenyIncrease); err != nil {
			return nil, err
		}
		if out.MaxDenyIncrease == 0 {
			return nil, fmt.Errorf("--max-deny-increase %s: want more than 0; leave it out to compare nothing", r.maxDenyIncrease)
		}
	}
	return out, nil
}

func perMille(flag, text string) (uint32, error) {
	number, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	thousandth := math.Round(number * 10)
	if err != nil || !(number >= 0 && number <= 100) || math.Abs(number*10-thousandth) > 1e-9 {
		return 0, fmt.Errorf("%s %q: want a percentage such as 10%% or 2.5%%", flag, text)
	}
	return uint32(thousandth), nil
}

// madeBy is what decides by a revision, as commands say it.
type madeBy struct {
	Engine       string `json:"engine,omitempty"`
	EngineReason string `json:"engine_reason,omitempty"`
}

// engine is what decides, for a column; revisions.DivergedPrefix is what the
// reason begins with, and its package is the control plane's.
func (m madeBy) engine() string {
	if strings.HasPrefix(m.EngineReason, "diverged: ") {
		return m.Engine + " (diverged)"
	}
	return dash(m.Engine)
}

// write says it where policy is evaluated that should have been compiled.
func (m madeBy) write(w io.Writer) error {
	if m.Engine != compile.EngineTopdown || m.EngineReason == "" {
		return nil
	}
	_, err := fmt.Fprintf(w, "it is evaluated, not compiled: %s\n", terminalSafe(m.EngineReason))
	return err
}

// writeInForce says who has a revision now.
func writeInForce(w io.Writer, revision string, rollout *policyv1.Rollout, what string) error {
	if rollout == nil {
		_, err := fmt.Fprintf(w, "revision %s is in force, %s\n", revision, what)
		return err
	}
	_, err := fmt.Fprintf(w, "revision %s is with %d%% of the followers, %s\nnext: policyctl policy promote, or policyctl policy halt -m WHY\n", revision, rollout.GetPercent(), what)
	return err
}

func newPolicyPromoteCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "promote",
		Short:   "Give the revision that is rolled out to everybody",
		Example: `  policyctl policy promote`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var resp *policyv1.PromoteResponse
			err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Promote(cmd.Context(), &policyv1.PromoteRequest{})
				return err
			})
			if err != nil {
				return fmt.Errorf("policy promote: %w", err)
			}
			return a.nowInForce(resp.GetRevision(), "for everybody", madeBy{})
		},
	}
}

func newPolicyHaltCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "halt",
		Short: "End a rollout and go back to what was in force",
		Long: `End a rollout: everybody gets the content from before, as a new revision, so
that those who had the new one take it.`,
		Example: `  policyctl policy halt -m "orders denies what it should not"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var resp *policyv1.HaltResponse
			err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
				resp, err = c.Halt(cmd.Context(), &policyv1.HaltRequest{Reason: reason})
				return err
			})
			if err != nil {
				return fmt.Errorf("policy halt: %w", err)
			}
			return a.nowInForce(resp.GetRevision(), "with the content from before the rollout", madeBy{resp.GetEngine(), resp.GetEngineReason()})
		},
	}
	cmd.Flags().StringVarP(&reason, "message", "m", "", "why, for the record")
	_ = cmd.RegisterFlagCompletionFunc("message", cobra.NoFileCompletions)
	return cmd
}

func (a *app) nowInForce(r *policyv1.Revision, what string, by madeBy) error {
	result := struct {
		Revision string `json:"revision"`
		Number   uint64 `json:"number"`
		madeBy
	}{revisionText(r), r.GetNumber(), by}
	return a.emit(result, func(w io.Writer) error {
		if err := writeInForce(w, result.Revision, nil, what); err != nil {
			return err
		}
		return by.write(w)
	})
}
