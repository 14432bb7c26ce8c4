package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/replicav1"
)

func newAuthorityCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "authority",
		Aliases: []string{"authorities"},
		Short:   "List and rotate signing authorities, and get rid of one that leaked",
	}
	cmd.AddCommand(newAuthorityListCmd(a), newAuthorityPrepareCmd(a), newAuthorityActivateCmd(a), newAuthorityTaintCmd(a), newAuthorityRevokeCmd(a))
	return cmd
}

// authorityInfo is the JSON form of an authority.
type authorityInfo struct {
	Kind  string `json:"kind"` // x509 or jwt
	ID    string `json:"id"`
	State string `json:"state,omitempty"`
	// Upstream is the key ID of the upstream's authority that signed this one.
	Upstream  string     `json:"upstream_key_id,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	// Replica whose it is, if another's.
	Replica string `json:"replica,omitempty"`
}

const (
	kindX509 = "x509"
	kindJWT  = "jwt"
)

// completeKinds offers the kinds, and nothing for what comes after.
func completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{kindX509, kindJWT}, cobra.ShellCompDirectiveNoFileComp
}

func checkKind(kind string) error {
	if kind != kindX509 && kind != kindJWT {
		return fmt.Errorf("%q is not a kind of authority: want x509 or jwt", kind)
	}
	return nil
}

func newAuthorityListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list [x509|jwt]",
		Short: "List the authorities: what signs, what will, what still verifies",
		Long: `List the authorities of the control plane, and what else is in its trust bundle.

  active    signs
  prepared  is published, and signs when it is activated
  old       signed what is still in use, and verifies it
  tainted   as old, but what it signed is being replaced now
  upstream  signed this control plane's own X.509 authorities
  verifies  is in the bundle and none of the above: older ones, and those of
            nested servers and other replicas`,
		Example: `  policyctl authority list
  policyctl authority list x509 --output json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			kinds := []string{kindX509, kindJWT}
			if len(args) == 1 {
				if err := checkKind(args[0]); err != nil {
					return fmt.Errorf("authority list: %w", err)
				}
				kinds = args
			}
			conn, err := a.dial()
			if err != nil {
				return fmt.Errorf("authority list: %w", err)
			}
			defer conn.Close()
			list := []authorityInfo{}
			for _, kind := range kinds {
				some, err := listAuthorities(cmd.Context(), conn, kind)
				if err != nil {
					return fmt.Errorf("authority list: %w", rpcError(err))
				}
				list = append(list, some...)
			}
			if err := nameReplicas(cmd.Context(), conn, list); err != nil {
				return fmt.Errorf("authority list: %w", rpcError(err))
			}
			result := struct {
				Authorities []authorityInfo `json:"authorities"`
			}{list}
			return a.emit(result, func(w io.Writer) error { return writeAuthorities(w, list, time.Now()) })
		},
	}
}

func writeAuthorities(w io.Writer, list []authorityInfo, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "KIND\tAUTHORITY\tSTATE\tEXPIRES IN\tSIGNED BY")
	for _, g := range list {
		state := g.State
		if g.Replica != "" {
			state += " (replica " + g.Replica + ")"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", g.Kind, g.ID, state, until(g.ExpiresAt, now), cmp.Or(g.Upstream, "itself"))
	}
	return tw.Flush()
}

// nameReplicas says of authorities which other replica they are of, as far as the
// caller may know. A stock server has no replicas.
func nameReplicas(ctx context.Context, conn *grpc.ClientConn, list []authorityInfo) error {
	resp, err := replicav1.NewAdminClient(conn).List(ctx, &replicav1.ListRequest{})
	if code := status.Code(err); code == codes.Unimplemented || code == codes.PermissionDenied {
		return nil
	}
	for _, r := range resp.GetReplicas() {
		for _, a := range r.Authorities {
			for n := range list {
				if list[n].Kind == a.Kind && list[n].ID == a.Id {
					list[n].Replica = r.Name
				}
			}
		}
	}
	return err
}

// listAuthorities asks for what signs, and adds what else is in the bundle.
func listAuthorities(ctx context.Context, conn *grpc.ClientConn, kind string) ([]authorityInfo, error) {
	active, prepared, old, err := authorityStates(ctx, conn, kind)
	if err != nil {
		return nil, err
	}
	others, err := bundleAuthorities(ctx, conn, kind)
	if err != nil {
		return nil, err
	}
	var list []authorityInfo
	add := func(state string, pb *localauthorityv1.AuthorityState) {
		if pb == nil {
			return
		}
		info := authorityFrom(kind, state, pb)
		if n := slices.IndexFunc(others, func(o authorityInfo) bool { return o.ID == info.ID }); n >= 0 {
			if others[n].State == stateTainted {
				info.State = stateTainted
			}
			others = slices.Delete(others, n, n+1)
		}
		list = append(list, info)
	}
	add("active", active)
	add("prepared", prepared)
	add("old", old)
	for n := range others {
		isUpstream := slices.ContainsFunc(list, func(o authorityInfo) bool { return o.Upstream == others[n].ID })
		if isUpstream && others[n].State == stateVerifies {
			others[n].State = "upstream"
		}
	}
	return append(list, others...), nil
}

const (
	stateTainted  = "tainted"
	stateVerifies = "verifies"
)

func authorityFrom(kind, state string, pb *localauthorityv1.AuthorityState) authorityInfo {
	return authorityInfo{Kind: kind, ID: pb.GetAuthorityId(), State: state, Upstream: pb.GetUpstreamAuthoritySubjectKeyId(), ExpiresAt: secondsTime(pb.GetExpiresAt())}
}

func authorityStates(ctx context.Context, conn *grpc.ClientConn, kind string) (active, prepared, old *localauthorityv1.AuthorityState, err error) {
	client := localauthorityv1.NewLocalAuthorityClient(conn)
	if kind == kindX509 {
		state, err := client.GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
		return state.GetActive(), state.GetPrepared(), state.GetOld(), err
	}
	state, err := client.GetJWTAuthorityState(ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
	return state.GetActive(), state.GetPrepared(), state.GetOld(), err
}

// bundleAuthorities is what the trust bundle has of a kind.
func bundleAuthorities(ctx context.Context, conn *grpc.ClientConn, kind string) (list []authorityInfo, err error) {
	b, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	state := func(tainted bool) string {
		if tainted {
			return stateTainted
		}
		return stateVerifies
	}
	if kind == kindJWT {
		for _, k := range b.GetJwtAuthorities() {
			list = append(list, authorityInfo{Kind: kind, ID: k.GetKeyId(), State: state(k.GetTainted()), ExpiresAt: secondsTime(k.GetExpiresAt())})
		}
		return list, nil
	}
	for _, pb := range b.GetX509Authorities() {
		cert, err := x509.ParseCertificate(pb.GetAsn1())
		if err != nil {
			return nil, fmt.Errorf("the trust bundle has a certificate that cannot be read: %w", err)
		}
		end := cert.NotAfter.UTC()
		list = append(list, authorityInfo{Kind: kind, ID: hex.EncodeToString(cert.SubjectKeyId), State: state(pb.GetTainted()), ExpiresAt: &end})
	}
	return list, nil
}
