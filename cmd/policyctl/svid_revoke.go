package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
)

// revocationInfo is the JSON form of a revocation.
type revocationInfo struct {
	// By is serial, spiffe-id or agent.
	By      string `json:"by"`
	Subject string `json:"subject"`
	// SerialHex is the serial number as certificate tools print it.
	SerialHex    string     `json:"serial_hex,omitempty"`
	IssuedBefore *time.Time `json:"issued_before,omitempty"`
	RevokedAt    *time.Time `json:"revoked_at"`
	ExpiresAt    *time.Time `json:"expires_at"`
	Actor        string     `json:"actor"`
	Reason       string     `json:"reason,omitempty"`
	Number       uint64     `json:"number"`
}

func revocationInfoFrom(pb *revocationv1.Revocation) (revocationInfo, error) {
	kind, subject, err := revocation.SubjectFromProto(pb)
	if err != nil {
		return revocationInfo{}, err
	}
	info := revocationInfo{
		By: string(kind), Subject: subject, IssuedBefore: secondsTime(pb.GetIssuedBefore()), RevokedAt: secondsTime(pb.GetRevokedAt()),
		ExpiresAt: secondsTime(pb.GetExpiresAt()), Actor: pb.GetActor(), Reason: pb.GetReason(), Number: pb.GetNumber(),
	}
	if serial, err := revocation.ParseSerial(subject); kind == revocation.Serial && err == nil {
		info.SerialHex = serial.Text(16)
	}
	return info, nil
}

// revocations runs call against the control plane.
func (a *app) revocations(call func(revocationv1.AdminClient) error) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := call(revocationv1.NewAdminClient(conn)); err != nil {
		return rpcError(err)
	}
	return nil
}

func newSVIDRevokeCmd(a *app) *cobra.Command {
	var serial, id, agent, reason string
	cmd := &cobra.Command{
		Use:   "revoke (--serial NUMBER | --spiffe-id ID | --agent ID)",
		Short: "End SVIDs before they expire",
		Long: `Revoke SVIDs: one by its serial number (or the jti of a JWT-SVID), all of a SPIFFE
ID that were issued until now, or all that were issued through an agent until now.
Sidecars refuse them from then on and close the connections that were opened with
them, within a second where they can be reached; so does the control plane.

Whoever has a right to an SVID gets a new one, with a new key, at once: to end the
right, delete the entry first (policyctl entry delete), or ban the agent (policyctl
agent ban), which revokes what was issued through it as well.

A revocation is not taken back: the SVID that it ended may be in other hands, and a
new one is there already. It is forgotten when the last SVID that it could concern
has expired.

Programs that take SVIDs from another agent than writ-agent, and peers that are not
Writ's, hear nothing of it: see docs/howto/revoke.md.`,
		Example: `  policyctl svid revoke --spiffe-id spiffe://example.org/svc/orders --reason "key in a core dump"
  policyctl svid revoke --serial 0x4fa3c05e91d27b6601e8aa3d7c2b9f0e11223344
  policyctl svid revoke --agent spiffe://example.org/spire/agent/join_token/ABCDEFGHIJKLMNOPQRSTUVWXYZ`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := &revocationv1.Revocation{Reason: reason}
			switch {
			case serial != "":
				r.Subject = &revocationv1.Revocation_Serial{Serial: serial}
			case id != "":
				r.Subject = &revocationv1.Revocation_SpiffeId{SpiffeId: id}
			case agent != "":
				r.Subject = &revocationv1.Revocation_Agent{Agent: agent}
			default:
				return errors.New("svid revoke: what --serial, --spiffe-id or --agent names is empty")
			}
			var info revocationInfo
			err := a.revocations(func(c revocationv1.AdminClient) error {
				resp, err := c.Revoke(cmd.Context(), &revocationv1.RevokeRequest{Revocation: r})
				if err != nil {
					return err
				}
				info, err = revocationInfoFrom(resp.GetRevocation())
				return err
			})
			if err != nil {
				return fmt.Errorf("svid revoke: %w", err)
			}
			return a.emit(info, info.text)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&serial, "serial", "", "serial number of an X509-SVID, or jti of a JWT-SVID: decimal, or hexadecimal as in 0x4fa3… or 4f:a3:…")
	flags.StringVar(&id, "spiffe-id", "", "SPIFFE ID of a workload: everything that was issued to it until now")
	flags.StringVar(&agent, "agent", "", "SPIFFE ID of an agent: everything that was issued through it until now")
	flags.StringVar(&reason, "reason", "", "why, for the record")
	cmd.MarkFlagsOneRequired("serial", "spiffe-id", "agent")
	cmd.MarkFlagsMutuallyExclusive("serial", "spiffe-id", "agent")
	_ = cmd.RegisterFlagCompletionFunc("agent", a.completeAgents)
	return cmd
}

func (r revocationInfo) text(w io.Writer) error {
	what := r.Subject
	switch revocation.Kind(r.By) {
	case revocation.Serial:
		what = fmt.Sprintf("serial number %s (0x%s)", r.Subject, r.SerialHex)
	case revocation.Agent:
		what = "everything issued through " + r.Subject
	}
	if r.IssuedBefore != nil {
		what += " that was issued before " + r.IssuedBefore.Local().Format(time.RFC3339)
	}
	_, err := fmt.Fprintln(w, "revoked", what)
	return err
}

func newSVIDRevocationsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "revocations",
		Short: "List what is revoked",
		Long: `List what is revoked and could still be valid. Revocations are forgotten when the
last SVID that they could concern has expired; the record keeps them.`,
		Example: `  policyctl svid revocations
  policyctl svid revocations --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := []revocationInfo{}
			err := a.revocations(func(c revocationv1.AdminClient) error {
				resp, err := c.List(cmd.Context(), &revocationv1.ListRequest{})
				if err != nil {
					return err
				}
				for _, pb := range resp.GetRevocations() {
					info, err := revocationInfoFrom(pb)
					if err != nil {
						return err
					}
					list = append(list, info)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("svid revocations: %w", err)
			}
			result := struct {
				Revocations []revocationInfo `json:"revocations"`
			}{list}
			return a.emit(result, func(w io.Writer) error { return writeRevocations(w, list, time.Now()) })
		},
	}
}

func writeRevocations(w io.Writer, list []revocationInfo, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "REVOKED BY\tSUBJECT\tISSUED BEFORE\tKEPT FOR\tACTOR\tREASON")
	for _, r := range list {
		before := "-"
		if r.IssuedBefore != nil {
			before = r.IssuedBefore.Local().Format(time.RFC3339)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", r.By, r.Subject, before, until(r.ExpiresAt, now), r.Actor, dash(r.Reason))
	}
	return tw.Flush()
}
