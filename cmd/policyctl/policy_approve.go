package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

func newPolicyApproveCmd(a *app) *cobra.Command {
	var key, digest string
	cmd := &cobra.Command{
		Use:   "approve NUMBER",
		Short: "Sign that a proposal may be put in force",
		Long: `Sign number, time and digest of a proposal with your own key: it counts for this
proposal of this control plane. The digest is computed here, from the files that
the control plane shows, so that the signature is under those and no others. Look at them first with "policyctl
policy proposals NUMBER"; --digest refuses anything but what you looked at.

The key belongs to one of the approvers of writd's configuration, and not to
whoever signed the sources.`,
		Example:           `  policyctl policy approve 3 --key ann.pem`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := proposalNumber(args[0])
			if err != nil {
				return err
			}
			private, err := readPrivateKey(key)
			if err != nil {
				return err
			}
			var resp *policyv1.ApproveResponse
			err = a.policyAdmin(func(c policyv1.AdminClient) error {
				shown, err := c.ShowProposal(cmd.Context(), &policyv1.ShowProposalRequest{Number: number}, largeAnswer())
				if err != nil {
					return err
				}
				content, err := contentFrom(shown.GetFiles())
				if err != nil {
					return err
				}
				sum := content.Digest()
				if digest != "" && digest != hex.EncodeToString(sum[:]) {
					return fmt.Errorf("proposal %d has digest %x, not %s: it is not what you looked at", number, sum, digest)
				}
				signature, err := bundle.SignApproval(private, bundle.Approved{
					Proposal: number, Proposed: time.Unix(0, shown.GetProposal().GetProposed()), Digest: sum,
				})
				if err != nil {
					return err
				}
				resp, err = c.Approve(cmd.Context(), &policyv1.ApproveRequest{Number: number, Signature: signature})
				return err
			})
			if err != nil {
				return fmt.Errorf("policy approve: %w", err)
			}
			info := proposalInfoFrom(resp.GetProposal())
			return a.emit(info, func(w io.Writer) error {
				fmt.Fprintf(w, "proposal %d is approved by %s\n", info.Number, approverNames(info.Approvals))
				return info.writeNext(w)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "file with your private key (PEM, ECDSA P-256)")
	f.StringVar(&digest, "digest", "", "digest that the proposal must have, as \"policy proposals -o json\" gives it")
	_ = cmd.MarkFlagRequired("key")
	_ = cmd.MarkFlagFilename("key", "pem")
	_ = cmd.RegisterFlagCompletionFunc("digest", cobra.NoFileCompletions)
	return cmd
}

func contentFrom(files []*policyv1.SourceFile) (bundle.Content, error) {
	var list []bundle.File
	for _, f := range files {
		list = append(list, bundle.File{Path: f.GetPath(), Content: f.GetContent()})
	}
	return bundle.NewContent(list)
}
