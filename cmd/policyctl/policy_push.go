package main

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyPushCmd(a *app) *cobra.Command {
	var (
		from         sourceFlags
		key, message string
		dryRun       bool
		remove       bool
		canary       rolloutFlags
	)
	cmd := &cobra.Command{
		Use:   "push SOURCE",
		Short: "Put a policy directory in force",
		Long: `Sign a policy directory and hand it to the control plane, which verifies,
checks and tests it and puts it in force, or refuses it whole. Pushing what is
in force changes nothing.

` + sourceHelp + ` A bundle that
is signed is pushed with its signature; a directory is signed with --key.

A publisher pushes its own part: what others have pushed stays in force. With
--remove an empty directory takes the part away.`,
		Example: `  policyctl policy push --key publisher.pem -m "orders: admit reports" policy/
  policyctl policy push --dry-run policy/
  policyctl policy push --key publisher.pem --canary 10% --max-deny-increase 5% policy/
  policyctl policy push --key publisher.pem --git-ref v1.4 policy/
  policyctl policy push bundle.tar.gz`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: sourceArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			rollout, err := canary.rollout()
			if err != nil {
				return err
			}
			from.mayBeEmpty = remove
			sealed, err := from.seal(cmd.Context(), args[0], key)
			if err != nil {
				return err
			}
			if remove && sealed.files > 0 {
				return fmt.Errorf("policy push --remove: %s holds %d files: an empty directory takes a part away", shownName(args[0]), sealed.files)
			}
			problems := sealed.problems
			for i := range problems {
				if problems[i].Code == problemEmpty {
					problems[i].Message += " (--remove takes the publisher's whole part away)"
				}
			}
			resp := &policyv1.PushResponse{}
			if len(problems) == 0 {
				err := a.policyAdmin(func(c policyv1.AdminClient) (err error) {
					resp, err = c.Push(cmd.Context(), &policyv1.PushRequest{Bundle: sealed.archive, Message: message, DryRun: dryRun, SourceCommit: sealed.commit, Rollout: rollout})
					return err
				})
				if err != nil {
					return fmt.Errorf("policy push: %w", err)
				}
				problems = sealed.explain(problemsFrom(resp.GetProblems()))
			}
			return a.pushed(args[0], resp, problems, dryRun, rollout)
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "file with the publisher's private key (PEM, ECDSA P-256); without it nothing is signed")
	f.StringVarP(&message, "message", "m", "", "what changed, for the list of revisions")
	f.BoolVar(&dryRun, "dry-run", false, "check and test at the control plane, activate nothing")
	f.BoolVar(&remove, "remove", false, "take the publisher's whole part away; SOURCE is an empty directory")
	_ = cmd.MarkFlagFilename("key", "pem")
	_ = cmd.RegisterFlagCompletionFunc("message", cobra.NoFileCompletions)
	canary.add(cmd)
	from.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("remove", "mesh")
	return cmd
}

func readPrivateKey(file string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: not PEM", file)
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%s: PEM block %q, want PRIVATE KEY", file, block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: want an ECDSA P-256 key, got %T", file, key)
	}
	return ec, nil
}

func (a *app) pushed(dir string, resp *policyv1.PushResponse, problems []policy.Problem, dryRun bool, rollout *policyv1.Rollout) error {
	result := struct {
		Revision  string           `json:"revision,omitempty"`
		Number    uint64           `json:"number,omitempty"`
		Unchanged bool             `json:"unchanged"`
		DryRun    bool             `json:"dry_run"`
		Problems  []policy.Problem `json:"problems"`
		Tests     testCounts       `json:"tests"`
		Percent   uint32           `json:"percent,omitempty"`
		madeBy
	}{madeBy: madeBy{resp.GetEngine(), resp.GetEngineReason()}, Percent: rollout.GetPercent(), Number: resp.GetRevision().GetNumber(), Unchanged: resp.GetUnchanged(), DryRun: dryRun, Problems: problems, Tests: testCountsFrom(resp.GetTests())}
	if resp.GetRevision() != nil {
		result.Revision = revisionText(resp.GetRevision())
	}
	err := a.emit(result, func(w io.Writer) error {
		var err error
		switch {
		case len(problems) > 0:
			return writeProblems(w, dir, problems)
		case dryRun:
			_, err = fmt.Fprintf(w, "no problems, %v; nothing activated (dry run)\n", result.Tests)
		case result.Unchanged:
			_, err = fmt.Fprintf(w, "unchanged: revision %s is in force\n", result.Revision)
		default:
			if err = writeInForce(w, result.Revision, rollout, result.Tests.String()); err == nil {
				err = result.madeBy.write(w)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return refused(problems)
}
