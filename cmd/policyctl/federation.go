package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

const federationHelp = `Federation relationships say where the trust bundle of another trust domain is
found. It is fetched at once, and again as often as it asks for (5 minutes
without). What cannot be fetched, runs backwards or claims to be our own is
refused: the last one stays, and policyctl status says why.

A relationship goes one way: we recognise them. For both ways they make one too,
with our endpoint (federation in the file of writd).`

func newFederationCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "federation",
		Short: "Relationships with other trust domains",
		Long:  federationHelp,
	}
	cmd.AddCommand(newFederationCreateCmd(a), newFederationUpdateCmd(a), newFederationListCmd(a), newFederationShowCmd(a), newFederationDeleteCmd(a), newFederationRefreshCmd(a))
	return cmd
}

// federationAdmin runs call against the control plane.
func (a *app) federationAdmin(call func(trustdomainv1.TrustDomainClient) error) error {
	return withClient(a, trustdomainv1.NewTrustDomainClient, call)
}

// relationshipInfo is the JSON form of a relationship.
type relationshipInfo struct {
	TrustDomain      string      `json:"trust_domain"`
	EndpointURL      string      `json:"bundle_endpoint_url"`
	Profile          string      `json:"bundle_endpoint_profile"`
	EndpointSPIFFEID string      `json:"endpoint_spiffe_id,omitempty"`
	Bundle           *bundleInfo `json:"bundle"` // null: not known yet
}

func relationshipInfoFrom(pb *types.FederationRelationship) relationshipInfo {
	info := relationshipInfo{TrustDomain: pb.GetTrustDomain(), EndpointURL: pb.GetBundleEndpointUrl(), Profile: profileWeb}
	if p := pb.GetHttpsSpiffe(); p != nil {
		info.Profile, info.EndpointSPIFFEID = profileSPIFFE, p.GetEndpointSpiffeId()
	}
	if b := pb.GetTrustDomainBundle(); b != nil {
		one := bundleInfoFrom(b)
		info.Bundle = &one
	}
	return info
}

const (
	profileWeb    = "https_web"
	profileSPIFFE = "https_spiffe"
)

// relationshipFlags are a relationship as a person gives it.
type relationshipFlags struct{ url, profile, endpointID, bundle string }

func (f *relationshipFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.url, "url", "", "https URL of their bundle endpoint (required)")
	fl.StringVar(&f.profile, "profile", "", "how the endpoint proves itself: https_spiffe (an X509-SVID) or https_web (a certificate of the web) (required)")
	fl.StringVar(&f.endpointID, "endpoint-spiffe-id", "", "SPIFFE ID of the endpoint, with https_spiffe")
	fl.StringVar(&f.bundle, "bundle", "", "file with their bundle of now (a SPIFFE bundle document or PEM), by which an https_spiffe endpoint is verified the first time")
	_ = cmd.MarkFlagRequired("url")
	_ = cmd.MarkFlagRequired("profile")
	_ = cmd.MarkFlagFilename("bundle")
	_ = cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions([]string{profileSPIFFE, profileWeb}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *relationshipFlags) relationship(a *app, name string) (*types.FederationRelationship, error) {
	r := &types.FederationRelationship{TrustDomain: bareDomain(name), BundleEndpointUrl: f.url}
	switch {
	case f.profile == profileWeb && f.endpointID != "":
		return nil, errors.New("--endpoint-spiffe-id is for --profile https_spiffe")
	case f.profile == profileWeb:
		r.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
	case f.profile == profileSPIFFE && f.endpointID == "":
		return nil, fmt.Errorf("--endpoint-spiffe-id is missing: with https_spiffe say whom the endpoint must prove to be, as in spiffe://%s/spire/server", r.TrustDomain)
	case f.profile == profileSPIFFE:
		r.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: f.endpointID}}
	default:
		return nil, fmt.Errorf("--profile %q: want https_spiffe or https_web", f.profile)
	}
	if f.bundle != "" {
		var err error
		if r.TrustDomainBundle, err = a.readBundle(r.TrustDomain, f.bundle); err != nil {
			return nil, fmt.Errorf("--bundle: %w", err)
		}
	}
	return r, nil
}

// put writes the relationship, by a call that takes a list of one, and returns it as it
// is then.
func (f *relationshipFlags) put(a *app, td string, call func(trustdomainv1.TrustDomainClient, []*types.FederationRelationship) (*types.FederationRelationship, error)) (*types.FederationRelationship, error) {
	r, err := f.relationship(a, td)
	if err != nil {
		return nil, err
	}
	err = a.federationAdmin(func(c trustdomainv1.TrustDomainClient) (err error) {
		r, err = call(c, []*types.FederationRelationship{r})
		return err
	})
	return r, err
}

// written is what such a call has written.
func written[R interface {
	GetStatus() *types.Status
	GetFederationRelationship() *types.FederationRelationship
}](results []R, err error) (*types.FederationRelationship, error) {
	switch {
	case err != nil:
		return nil, rpcError(err)
	case len(results) != 1:
		return nil, errors.New("the control plane gave no result")
	}
	return results[0].GetFederationRelationship(), resultError(results[0].GetStatus())
}

func newFederationCreateCmd(a *app) *cobra.Command {
	var f relationshipFlags
	cmd := &cobra.Command{
		Use:   "create TRUST_DOMAIN --url URL --profile PROFILE",
		Short: "Begin to fetch the bundle of another trust domain",
		Long:  federationHelp,
		Example: `  policyctl federation create partner.org --url https://spire.partner.org:8443 --profile https_spiffe \
      --endpoint-spiffe-id spiffe://partner.org/spire/server --bundle partner.json
  policyctl federation create partner.org --url https://bundle.partner.org/ --profile https_web`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.put(a, args[0], func(c trustdomainv1.TrustDomainClient, list []*types.FederationRelationship) (*types.FederationRelationship, error) {
				resp, err := c.BatchCreateFederationRelationship(cmd.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: list})
				return written(resp.GetResults(), err)
			})
			if err != nil {
				return fmt.Errorf("federation create: %w", err)
			}
			return a.showRelationship(r)
		},
	}
	f.add(cmd)
	return cmd
}

func newFederationUpdateCmd(a *app) *cobra.Command {
	var f relationshipFlags
	cmd := &cobra.Command{
		Use:   "update TRUST_DOMAIN --url URL --profile PROFILE",
		Short: "Change where the bundle of another trust domain is fetched",
		Example: `  policyctl federation update partner.org --url https://new.partner.org:8443 --profile https_spiffe \
      --endpoint-spiffe-id spiffe://partner.org/spire/server`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.put(a, args[0], func(c trustdomainv1.TrustDomainClient, list []*types.FederationRelationship) (*types.FederationRelationship, error) {
				resp, err := c.BatchUpdateFederationRelationship(cmd.Context(), &trustdomainv1.BatchUpdateFederationRelationshipRequest{FederationRelationships: list})
				return written(resp.GetResults(), err)
			})
			if err != nil {
				return fmt.Errorf("federation update: %w", err)
			}
			return a.showRelationship(r)
		},
	}
	f.add(cmd)
	return cmd
}

func newFederationListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the relationships",
		Example: `  policyctl federation list
  policyctl federation list --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			infos := []relationshipInfo{}
			err := a.federationAdmin(func(c trustdomainv1.TrustDomainClient) error {
				return pages(func(token string) (string, error) {
					resp, err := c.ListFederationRelationships(cmd.Context(), &trustdomainv1.ListFederationRelationshipsRequest{PageToken: token})
					for _, pb := range resp.GetFederationRelationships() {
						infos = append(infos, relationshipInfoFrom(pb))
					}
					return resp.GetNextPageToken(), err
				})
			})
			if err != nil {
				return fmt.Errorf("federation list: %w", err)
			}
			result := struct {
				Relationships []relationshipInfo `json:"relationships"`
			}{infos}
			return a.emit(result, func(w io.Writer) error { return writeRelationships(w, infos) })
		},
	}
}

func writeRelationships(w io.Writer, infos []relationshipInfo) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TRUST DOMAIN\tPROFILE\tURL\tBUNDLE")
	for _, r := range infos {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.TrustDomain, r.Profile, r.EndpointURL, bundleText(r.Bundle))
	}
	return tw.Flush()
}

func bundleText(b *bundleInfo) string {
	if b == nil {
		return "not known yet"
	}
	return fmt.Sprintf("%d X.509, %d JWT, sequence %d", len(b.X509Authorities), len(b.JWTAuthorities), b.Sequence)
}

func (a *app) showRelationship(pb *types.FederationRelationship) error {
	info := relationshipInfoFrom(pb)
	return a.emit(info, func(w io.Writer) error {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(tw, "trust domain\t%s\nurl\t%s\nprofile\t%s\n", info.TrustDomain, info.EndpointURL, info.Profile)
		if info.EndpointSPIFFEID != "" {
			fmt.Fprintf(tw, "endpoint\t%s\n", info.EndpointSPIFFEID)
		}
		fmt.Fprintf(tw, "bundle\t%s\n", bundleText(info.Bundle))
		return tw.Flush()
	})
}

func newFederationShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show TRUST_DOMAIN",
		Short:   "Show a relationship",
		Example: `  policyctl federation show partner.org`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r *types.FederationRelationship
			err := a.federationAdmin(func(c trustdomainv1.TrustDomainClient) (err error) {
				r, err = c.GetFederationRelationship(cmd.Context(), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: bareDomain(args[0])})
				return err
			})
			if err != nil {
				return fmt.Errorf("federation show: %w", rpcError(err))
			}
			return a.showRelationship(r)
		},
	}
}

func newFederationDeleteCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete TRUST_DOMAIN",
		Short: "Stop fetching the bundle of another trust domain",
		Long: `Stop fetching the bundle of another trust domain. The bundle itself stays, and its
workloads are recognised until it is deleted too (policyctl bundle delete).`,
		Example: `  policyctl federation delete partner.org && policyctl bundle delete partner.org --mode dissociate`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := bareDomain(args[0])
			err := a.federationAdmin(func(c trustdomainv1.TrustDomainClient) error {
				resp, err := c.BatchDeleteFederationRelationship(cmd.Context(), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{name}})
				if err != nil {
					return rpcError(err)
				}
				if len(resp.GetResults()) != 1 {
					return errors.New("the control plane gave no result")
				}
				return resultError(resp.GetResults()[0].GetStatus())
			})
			if err != nil {
				return fmt.Errorf("federation delete %s: %w", name, err)
			}
			return a.done("trust_domain", name, "deleted")
		},
	}
}

func newFederationRefreshCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "refresh TRUST_DOMAIN",
		Short:   "Fetch the bundle of another trust domain now",
		Example: `  policyctl federation refresh partner.org`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := bareDomain(args[0])
			err := a.federationAdmin(func(c trustdomainv1.TrustDomainClient) error {
				_, err := c.RefreshBundle(cmd.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: name})
				return err
			})
			if err != nil {
				return fmt.Errorf("federation refresh: %w", rpcError(err))
			}
			return a.done("trust_domain", name, "refreshed")
		},
	}
}
