package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

func newAdminPolicyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin-policy",
		Short: "Check and try the policy that says who may administer over the network",
	}
	cmd.AddCommand(newAdminPolicyCheckCmd(a), newAdminPolicyEvalCmd(a))
	return cmd
}

func newAdminPolicyCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check DIR",
		Short: "Find what is wrong with an admin policy, and run its tests",
		Long: `Parse and type-check an admin policy and run its tests, as writd does before it
puts it in force. Ends with exit code 2 when something is wrong.`,
		Example:           `  policyctl admin-policy check /etc/writ/admin-policy`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, problems, err := readAdminPolicy(args[0])
			if err != nil {
				return err
			}
			passed := 0
			if len(problems) == 0 {
				report, err := p.Test(cmd.Context())
				if err != nil {
					return err
				}
				passed, problems = report.Passed, report.Problems()
			}
			return a.adminChecked(args[0], passed, problems)
		},
	}
}

func readAdminPolicy(dir string) (*opa.AdminPolicy, []policy.Problem, error) {
	content, err := bundle.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	p, problems := opa.CheckAdmin(content)
	return p, problems, nil
}

func (a *app) adminChecked(dir string, passed int, problems []policy.Problem) error {
	if problems == nil {
		problems = []policy.Problem{}
	}
	result := struct {
		OK       bool             `json:"ok"`
		Passed   int              `json:"tests_passed"`
		Problems []policy.Problem `json:"problems"`
	}{len(problems) == 0, passed, problems}
	err := a.emit(result, func(w io.Writer) error {
		if !result.OK {
			return writeProblems(w, dir, problems)
		}
		_, err := fmt.Fprintf(w, "no problems, %d tests passed\n", passed)
		return err
	})
	if err == nil && !result.OK {
		return &exitError{code: 2}
	}
	return err
}

func newAdminPolicyEvalCmd(a *app) *cobra.Command {
	var caller, method string
	var targets, parents []string
	cmd := &cobra.Command{
		Use:   "eval DIR",
		Short: "Ask an admin policy about one call",
		Long: `Ask an admin policy whether a caller may make a call. Without --target the call
is about everything, as a list without a filter is. Ends with exit code 2 when
it is denied.`,
		Example: `  policyctl admin-policy eval deploy/admin-policy --caller spiffe://example.org/team/shop \
    --method /spire.api.server.entry.v1.Entry/BatchCreateEntry --target spiffe://example.org/svc/shop/web`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := spiffeid.FromString(caller)
			if err != nil {
				return fmt.Errorf("--caller: %w", err)
			}
			if strings.Count(method, "/") != 2 || method[0] != '/' {
				return fmt.Errorf("--method %q: want /package.Service/Method", method)
			}
			p, problems, err := readAdminPolicy(args[0])
			if err != nil {
				return err
			}
			if len(problems) > 0 {
				return a.adminChecked(args[0], 0, problems)
			}
			if len(targets) == 0 {
				targets = []string{"/"}
			}
			rules, err := p.Allow(cmd.Context(), opa.AdminCall{
				CallerID: id.String(), CallerTrustDomain: id.TrustDomain().Name(), CallerPath: id.Path(),
				Method: method, Targets: targets, Parents: parents, Time: time.Now(),
			})
			if err != nil {
				return err
			}
			return a.adminAnswer(rules)
		},
	}
	f := cmd.Flags()
	f.StringVar(&caller, "caller", "", "SPIFFE ID of the caller")
	f.StringVar(&method, "method", "", "full name of the method, /package.Service/Method")
	f.StringSliceVar(&targets, "target", nil, "SPIFFE ID that the call reads or changes (repeatable)")
	f.StringSliceVar(&parents, "parent", nil, "SPIFFE ID that an entry hangs on (repeatable)")
	_ = cmd.MarkFlagRequired("caller")
	_ = cmd.MarkFlagRequired("method")
	return cmd
}

func (a *app) adminAnswer(rules []string) error {
	result := struct {
		Allowed bool     `json:"allowed"`
		Rules   []string `json:"rules"`
	}{len(rules) > 0, append([]string{}, rules...)}
	err := a.emit(result, func(w io.Writer) error {
		if !result.Allowed {
			_, err := fmt.Fprintln(w, "deny  (no rule allows it)")
			return err
		}
		_, err := fmt.Fprintf(w, "allow  %s\n", strings.Join(rules, ", "))
		return err
	})
	if err == nil && !result.Allowed {
		return &exitError{code: 2}
	}
	return err
}
