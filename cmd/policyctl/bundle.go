package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/registry"
)

const bundleHelp = `Trust bundles hold the public keys by which the identities of a trust domain are
recognised: our own, and those of the trust domains that ours federates with.

Workloads get a bundle of another trust domain when their entry federates with
it (policyctl entry create --federates-with). It is set here by hand, or fetched
again and again by a relationship (policyctl federation create).`

func newBundleCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bundle",
		Aliases: []string{"bundles"},
		Short:   "Trust bundles: ours, and those of other trust domains",
		Long:    bundleHelp,
	}
	cmd.AddCommand(newBundleShowCmd(a), newBundleListCmd(a), newBundleSetCmd(a), newBundleDeleteCmd(a), newBundleCountCmd(a))
	return cmd
}

// bundleAdmin runs call against the control plane.
func (a *app) bundleAdmin(call func(bundlev1.BundleClient) error) error {
	return withClient(a, bundlev1.NewBundleClient, call)
}

// bundleInfo is the JSON form of a bundle.
type bundleInfo struct {
	TrustDomain     string          `json:"trust_domain"`
	Sequence        uint64          `json:"sequence"`
	RefreshHint     int64           `json:"refresh_hint"` // seconds
	X509Authorities []bundleKeyInfo `json:"x509_authorities"`
	JWTAuthorities  []bundleKeyInfo `json:"jwt_authorities"`
}

type bundleKeyInfo struct {
	KeyID     string     `json:"key_id,omitempty"`
	Subject   string     `json:"subject,omitempty"`
	SHA256    string     `json:"sha256"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

func bundleInfoFrom(pb *types.Bundle) bundleInfo {
	info := bundleInfo{TrustDomain: pb.GetTrustDomain(), Sequence: pb.GetSequenceNumber(), RefreshHint: pb.GetRefreshHint(), X509Authorities: []bundleKeyInfo{}, JWTAuthorities: []bundleKeyInfo{}}
	for _, c := range pb.GetX509Authorities() {
		sum := sha256.Sum256(c.GetAsn1())
		one := bundleKeyInfo{SHA256: hex.EncodeToString(sum[:])}
		if cert, err := x509.ParseCertificate(c.GetAsn1()); err == nil {
			one.Subject, one.ExpiresAt = cert.Subject.String(), secondsTime(cert.NotAfter.Unix())
		}
		info.X509Authorities = append(info.X509Authorities, one)
	}
	for _, k := range pb.GetJwtAuthorities() {
		sum := sha256.Sum256(k.GetPublicKey())
		info.JWTAuthorities = append(info.JWTAuthorities, bundleKeyInfo{KeyID: k.GetKeyId(), SHA256: hex.EncodeToString(sum[:]), ExpiresAt: secondsTime(k.GetExpiresAt())})
	}
	return info
}

func newBundleShowCmd(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "show [TRUST_DOMAIN]",
		Short: "Show a trust bundle, ours unless another is named",
		Long: `Show a trust bundle as a file that others take: the SPIFFE bundle document, with
the keys of X509-SVIDs and JWT-SVIDs, or PEM, with the X.509 authorities only.

With --output json it is described instead: digests, key ids, expiry.`,
		Example: `  policyctl bundle show > example.org.json
  policyctl bundle show partner.org --format pem`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeBundles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "spiffe" && format != "pem" {
				return fmt.Errorf("bundle show: --format %q: want spiffe or pem", format)
			}
			var pb *types.Bundle
			err := a.bundleAdmin(func(c bundlev1.BundleClient) (err error) {
				if len(args) == 0 {
					pb, err = c.GetBundle(cmd.Context(), &bundlev1.GetBundleRequest{})
				} else {
					pb, err = c.GetFederatedBundle(cmd.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: bareDomain(args[0])})
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("bundle show: %w", rpcError(err))
			}
			return a.emit(bundleInfoFrom(pb), func(w io.Writer) error { return writeBundle(w, pb, format) })
		},
	}
	cmd.Flags().StringVar(&format, "format", "spiffe", "form of the file: spiffe (a bundle document) or pem (X.509 authorities only)")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"spiffe", "pem"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func writeBundle(w io.Writer, pb *types.Bundle, format string) error {
	if format == "pem" {
		for _, c := range pb.GetX509Authorities() {
			if err := pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.GetAsn1()}); err != nil {
				return err
			}
		}
		return nil
	}
	td, err := spiffeid.TrustDomainFromString(pb.GetTrustDomain())
	if err != nil {
		return err
	}
	b := &registry.FederatedBundle{TrustDomain: td, Sequence: pb.GetSequenceNumber(), RefreshHint: time.Duration(pb.GetRefreshHint()) * time.Second}
	for _, c := range pb.GetX509Authorities() {
		cert, err := x509.ParseCertificate(c.GetAsn1())
		if err != nil {
			return err
		}
		b.X509Authorities = append(b.X509Authorities, cert)
	}
	for _, k := range pb.GetJwtAuthorities() {
		b.JWTAuthorities = append(b.JWTAuthorities, registry.JWTAuthority{KeyID: k.GetKeyId(), PublicKey: k.GetPublicKey()})
	}
	doc, err := federation.Marshal(b)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", doc)
	return err
}

func newBundleListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the bundles of other trust domains",
		Example: `  policyctl bundle list
  policyctl bundle list --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			infos := []bundleInfo{}
			err := a.bundleAdmin(func(c bundlev1.BundleClient) error {
				return pages(func(token string) (string, error) {
					resp, err := c.ListFederatedBundles(cmd.Context(), &bundlev1.ListFederatedBundlesRequest{PageToken: token})
					for _, pb := range resp.GetBundles() {
						infos = append(infos, bundleInfoFrom(pb))
					}
					return resp.GetNextPageToken(), err
				})
			})
			if err != nil {
				return fmt.Errorf("bundle list: %w", err)
			}
			result := struct {
				Bundles []bundleInfo `json:"bundles"`
			}{infos}
			return a.emit(result, func(w io.Writer) error { return writeBundles(w, infos, time.Now()) })
		},
	}
}

func writeBundles(w io.Writer, infos []bundleInfo, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TRUST DOMAIN\tX.509 AUTHORITIES\tJWT AUTHORITIES\tSEQUENCE\tLAST EXPIRES IN")
	for _, b := range infos {
		var last *time.Time
		for _, one := range b.X509Authorities {
			if last == nil || one.ExpiresAt != nil && one.ExpiresAt.After(*last) {
				last = one.ExpiresAt
			}
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\n", b.TrustDomain, len(b.X509Authorities), len(b.JWTAuthorities), b.Sequence, until(last, now))
	}
	return tw.Flush()
}

func newBundleSetCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "set TRUST_DOMAIN FILE",
		Short: "Set the bundle of another trust domain",
		Long: `Set the bundle of another trust domain, whatever it was: from a SPIFFE bundle
document, or from PEM with its X.509 authorities. Whoever holds the keys in it can
speak as every workload of that trust domain: get the file by a way that nobody
can tamper with.

A bundle that runs behind the endpoint's is set all the same, and replaced at the
next refresh, where there is a relationship. FILE - is stdin.`,
		Example: `  policyctl bundle set partner.org partner.json
  ssh admin@partner spire-server bundle show -format spiffe | policyctl bundle set partner.org -`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pb, err := a.readBundle(bareDomain(args[0]), args[1])
			if err != nil {
				return fmt.Errorf("bundle set: %w", err)
			}
			err = a.bundleAdmin(func(c bundlev1.BundleClient) error {
				resp, err := c.BatchSetFederatedBundle(cmd.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{pb}})
				if err != nil {
					return rpcError(err)
				}
				if len(resp.GetResults()) != 1 {
					return errors.New("the control plane gave no result")
				}
				pb = resp.GetResults()[0].GetBundle()
				return resultError(resp.GetResults()[0].GetStatus())
			})
			if err != nil {
				return fmt.Errorf("bundle set: %w", err)
			}
			info := bundleInfoFrom(pb)
			return a.emit(info, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "bundle of %s: %d X.509 and %d JWT authorities\n", info.TrustDomain, len(info.X509Authorities), len(info.JWTAuthorities))
				return err
			})
		},
	}
}

// readBundle reads a bundle document or PEM.
func (a *app) readBundle(domain, file string) (*types.Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return nil, fmt.Errorf("%q is not a trust domain such as partner.org: %w", domain, err)
	}
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, federation.MaxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(data) > federation.MaxDocument {
		return nil, fmt.Errorf("%s: more than %d bytes", file, federation.MaxDocument)
	}
	pb, err := parseBundleFile(td, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return pb, nil
}

func parseBundleFile(td spiffeid.TrustDomain, data []byte) (*types.Bundle, error) {
	pb := &types.Bundle{TrustDomain: td.Name()}
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		b, err := federation.Parse(td, data)
		if err != nil {
			return nil, err
		}
		pb.RefreshHint, pb.SequenceNumber = int64(b.RefreshHint/time.Second), b.Sequence
		for _, cert := range b.X509Authorities {
			pb.X509Authorities = append(pb.X509Authorities, &types.X509Certificate{Asn1: cert.Raw})
		}
		for _, k := range b.JWTAuthorities {
			pb.JwtAuthorities = append(pb.JwtAuthorities, &types.JWTKey{KeyId: k.KeyID, PublicKey: k.PublicKey})
		}
		return pb, nil
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s in it: want certificates only", block.Type)
		}
		pb.X509Authorities = append(pb.X509Authorities, &types.X509Certificate{Asn1: block.Bytes})
	}
	if len(pb.X509Authorities) == 0 {
		return nil, errors.New("neither a SPIFFE bundle document nor PEM certificates")
	}
	return pb, nil
}

func newBundleDeleteCmd(a *app) *cobra.Command {
	var mode string
	cmd := &cobra.Command{
		Use:   "delete TRUST_DOMAIN",
		Short: "Delete the bundle of another trust domain",
		Long: `Delete the bundle of another trust domain, so that nobody of it is recognised any
more. Entries that federate with it keep it from being deleted, unless --mode says
what becomes of them. A relationship would fetch it again: delete that first.`,
		Example:           `  policyctl bundle delete partner.org --mode dissociate`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeBundles,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, ok := bundlev1.BatchDeleteFederatedBundleRequest_Mode_value[strings.ToUpper(mode)]
			if !ok || mode != strings.ToLower(mode) {
				return fmt.Errorf("bundle delete: --mode %q: want restrict, dissociate or delete", mode)
			}
			name := bareDomain(args[0])
			err := a.bundleAdmin(func(c bundlev1.BundleClient) error {
				resp, err := c.BatchDeleteFederatedBundle(cmd.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{name}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_Mode(m)})
				if err != nil {
					return rpcError(err)
				}
				if len(resp.GetResults()) != 1 {
					return errors.New("the control plane gave no result")
				}
				return resultError(resp.GetResults()[0].GetStatus())
			})
			if err != nil {
				return fmt.Errorf("bundle delete %s: %w", name, err)
			}
			return a.done("trust_domain", name, "deleted")
		},
	}
	cmd.Flags().StringVar(&mode, "mode", "restrict", "entries that federate with it: restrict (they keep it from being deleted), dissociate (they no longer federate with it), delete (they are deleted)")
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{"restrict", "dissociate", "delete"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func newBundleCountCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "count",
		Short: "Count the bundles, ours among them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var n int32
			err := a.bundleAdmin(func(c bundlev1.BundleClient) error {
				resp, err := c.CountBundles(cmd.Context(), &bundlev1.CountBundlesRequest{})
				n = resp.GetCount()
				return err
			})
			if err != nil {
				return fmt.Errorf("bundle count: %w", rpcError(err))
			}
			return a.emit(map[string]int32{"count": n}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, n)
				return err
			})
		},
	}
}

// done says what was done to something.
func (a *app) done(kind, name, what string) error {
	return a.emit(map[string]string{kind: name, "done": what}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s %s\n", what, name)
		return err
	})
}

// resultError is what the status of one result says.
func resultError(s *types.Status) error {
	if codes.Code(s.GetCode()) == codes.OK {
		return nil
	}
	return errors.New(s.GetMessage())
}

// bareDomain takes spiffe://partner.org for partner.org.
func bareDomain(text string) string {
	if td, err := spiffeid.TrustDomainFromString(text); err == nil {
		return td.Name()
	}
	return text
}

// completeBundles offers the trust domains whose bundles there are.
func (a *app) completeBundles(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var names []string
	_ = a.bundleAdmin(func(c bundlev1.BundleClient) error {
		resp, err := c.ListFederatedBundles(ctx, &bundlev1.ListFederatedBundlesRequest{OutputMask: &types.BundleMask{}})
		for _, b := range resp.GetBundles() {
			names = append(names, b.GetTrustDomain())
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
