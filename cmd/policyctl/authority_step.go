package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
)

type authorityClient = localauthorityv1.LocalAuthorityClient

func newAuthorityPrepareCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "prepare x509|jwt",
		Short: "Make and publish the next authority, ahead of its time",
		Long: `Make the next authority and publish it in the trust bundle. It signs nothing until
it is activated: by hand, or by the schedule. Prepared again, the one before makes
way.`,
		Example:           `  policyctl authority prepare x509`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.authorityStep(cmd.Context(), "prepare", "prepared", args[0], "", func(ctx context.Context, c authorityClient, _ string) (*localauthorityv1.AuthorityState, error) {
				if args[0] == kindX509 {
					r, err := c.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
					return r.GetPreparedAuthority(), err
				}
				r, err := c.PrepareJWTAuthority(ctx, &localauthorityv1.PrepareJWTAuthorityRequest{})
				return r.GetPreparedAuthority(), err
			})
		},
	}
}

func newAuthorityActivateCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "activate x509|jwt AUTHORITY",
		Short: "Have the prepared authority sign from now on",
		Long: `Have the prepared authority sign from now on. The one before stays in the trust
bundle, and what it signed stays valid. Whoever has not got the new bundle yet
refuses what the new authority signs: writ-agent has it within a second, a stock
agent within its sync interval, a federated trust domain within its refresh
interval.`,
		Example:           `  policyctl authority activate x509 2f0f3a0e5c1b6a7d8e9f00112233445566778899`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.authorityStep(cmd.Context(), "activate", "activated", args[0], args[1], func(ctx context.Context, c authorityClient, id string) (*localauthorityv1.AuthorityState, error) {
				if args[0] == kindX509 {
					r, err := c.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
					return r.GetActivatedAuthority(), err
				}
				r, err := c.ActivateJWTAuthority(ctx, &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: id})
				return r.GetActivatedAuthority(), err
			})
		},
	}
}

func newAuthorityTaintCmd(a *app) *cobra.Command {
	var upstream bool
	cmd := &cobra.Command{
		Use:   "taint x509|jwt AUTHORITY",
		Short: "Have everything that an old authority signed replaced at once",
		Long: `Taint an old authority: the trust bundle says so, and agents replace the X509-SVIDs
that it signed within seconds, and drop its JWT-SVIDs. What it signed stays valid
until it is revoked. An active one cannot be tainted: activate another first.`,
		Example: `  policyctl authority taint x509 2f0f3a0e5c1b6a7d8e9f00112233445566778899
  policyctl authority taint x509 --upstream 99887766554433221100fe9d8c7b6a5f4e3d2c1b`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.authorityStep(cmd.Context(), "taint", "tainted", args[0], args[1], func(ctx context.Context, c authorityClient, id string) (*localauthorityv1.AuthorityState, error) {
				switch {
				case upstream && args[0] == kindX509:
					r, err := c.TaintX509UpstreamAuthority(ctx, &localauthorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: id})
					return &localauthorityv1.AuthorityState{AuthorityId: r.GetUpstreamAuthoritySubjectKeyId()}, err
				case upstream:
					return nil, errUpstreamJWT
				case args[0] == kindX509:
					r, err := c.TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: id})
					return r.GetTaintedAuthority(), err
				}
				r, err := c.TaintJWTAuthority(ctx, &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: id})
				return r.GetTaintedAuthority(), err
			})
		},
	}
	cmd.Flags().BoolVar(&upstream, "upstream", false, "AUTHORITY is one of the upstream's, by its subject key identifier")
	return cmd
}

func newAuthorityRevokeCmd(a *app) *cobra.Command {
	var upstream bool
	cmd := &cobra.Command{
		Use:   "revoke x509|jwt AUTHORITY",
		Short: "Take a tainted authority out of the trust bundle",
		Long: `Revoke a tainted authority: it leaves the trust bundle, its key is deleted, and what
it signed is worth nothing wherever the new bundle arrives. An agent that was away
since the authority was tainted has to be attested again. This cannot be undone.`,
		Example:           `  policyctl authority revoke x509 2f0f3a0e5c1b6a7d8e9f00112233445566778899`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.authorityStep(cmd.Context(), "revoke", "revoked", args[0], args[1], func(ctx context.Context, c authorityClient, id string) (*localauthorityv1.AuthorityState, error) {
				switch {
				case upstream && args[0] == kindX509:
					r, err := c.RevokeX509UpstreamAuthority(ctx, &localauthorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: id})
					return &localauthorityv1.AuthorityState{AuthorityId: r.GetUpstreamAuthoritySubjectKeyId()}, err
				case upstream:
					return nil, errUpstreamJWT
				case args[0] == kindX509:
					r, err := c.RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
					return r.GetRevokedAuthority(), err
				}
				r, err := c.RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: id})
				return r.GetRevokedAuthority(), err
			})
		},
	}
	cmd.Flags().BoolVar(&upstream, "upstream", false, "AUTHORITY is one of the upstream's, by its subject key identifier")
	return cmd
}

var errUpstreamJWT = fmt.Errorf("an upstream signs X.509 authorities only: taint and revoke its JWT authorities there")

// authorityStep does one thing to one authority and says what became of it.
func (a *app) authorityStep(ctx context.Context, verb, done, kind, id string, do func(context.Context, authorityClient, string) (*localauthorityv1.AuthorityState, error)) error {
	if err := checkKind(kind); err != nil {
		return fmt.Errorf("authority %s: %w", verb, err)
	}
	conn, err := a.dial()
	if err != nil {
		return fmt.Errorf("authority %s: %w", verb, err)
	}
	defer conn.Close()
	state, err := do(ctx, localauthorityv1.NewLocalAuthorityClient(conn), id)
	if err != nil {
		return fmt.Errorf("authority %s: %w", verb, rpcError(err))
	}
	info := authorityFrom(kind, done, state)
	return a.emit(info, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s %s authority %s\n", done, kind, info.ID)
		return err
	})
}
