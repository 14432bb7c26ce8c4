package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func newSPIRECmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "spire", Short: "Move from SPIRE, and back"}
	cmd.AddCommand(newSPIREImportCmd(a), newSPIRETrustCmd(a))
	return cmd
}

const spireImportHelp = `Copy what a server of SPIRE's API has registered into this control plane:
entries, bundles of other trust domains, and federation relationships. The other
server is only read. Agents are listed, since each has to attest anew.

What is here already and equal is left alone, so that the same command can be
given again and again; what differs is updated. An entry is here already if one has
its ID, or its SPIFFE ID, parent and selectors under another ID. What is only here is listed, and
removed with --prune alone.

The other way round works too: --from the socket of writd, and --server that of
spire-server.`

func newSPIREImportCmd(a *app) *cobra.Command {
	var from string
	var dryRun, prune bool
	cmd := &cobra.Command{
		Use:   "import --from unix:///PATH",
		Short: "Copy entries and federation from a running spire-server",
		Long:  spireImportHelp,
		Example: `  policyctl spire import --from unix:///run/spire-server/private/api.sock --dry-run
  policyctl spire import --from unix:///run/spire-server/private/api.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := a.importSPIRE(cmd.Context(), from, dryRun, prune)
			if err != nil {
				return fmt.Errorf("spire import: %w", err)
			}
			if err := a.emit(result, result.write); err != nil {
				return err
			}
			if result.Failed > 0 {
				return fmt.Errorf("spire import: %d of %d changes failed", result.Failed, len(result.Changes))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "socket of the server that is read, unix:///path (required)")
	f.BoolVar(&dryRun, "dry-run", false, "only show what would change")
	f.BoolVar(&prune, "prune", false, "remove what is only here")
	_ = cmd.MarkFlagRequired("from")
	return cmd
}

// registration is what a server has registered.
type registration struct {
	trustDomain   string
	entries       []*types.Entry
	agents        []*types.Agent
	bundles       []*types.Bundle
	relationships []*types.FederationRelationship
}

func dialSPIRE(from string) (*grpc.ClientConn, error) {
	path, ok := strings.CutPrefix(from, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("--from %q: want unix:///path of the server's socket, as in unix:///run/spire-server/private/api.sock", from)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("--from %s: no socket there (%w)", from, errors.Join(err, errors.New("is the server running?")))
	}
	return grpc.NewClient("passthrough:///spire", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}))
}

// register reads all pages of everything.
func register(ctx context.Context, conn *grpc.ClientConn) (*registration, error) {
	r := &registration{}
	own, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, fmt.Errorf("its bundle: %w", rpcError(err))
	}
	r.trustDomain = own.GetTrustDomain()
	if r.entries, err = listEntries(ctx, entryv1.NewEntryClient(conn), nil); err != nil {
		return nil, fmt.Errorf("its entries: %w", err)
	}
	err = pages(func(token string) (string, error) {
		resp, err := agentv1.NewAgentClient(conn).ListAgents(ctx, &agentv1.ListAgentsRequest{PageSize: 200, PageToken: token})
		r.agents = append(r.agents, resp.GetAgents()...)
		return resp.GetNextPageToken(), err
	})
	if err != nil {
		return nil, fmt.Errorf("its agents: %w", err)
	}
	err = pages(func(token string) (string, error) {
		resp, err := bundlev1.NewBundleClient(conn).ListFederatedBundles(ctx, &bundlev1.ListFederatedBundlesRequest{PageSize: 200, PageToken: token})
		r.bundles = append(r.bundles, resp.GetBundles()...)
		return resp.GetNextPageToken(), err
	})
	if err != nil {
		return nil, fmt.Errorf("its bundles of other trust domains: %w", err)
	}
	err = pages(func(token string) (string, error) {
		resp, err := trustdomainv1.NewTrustDomainClient(conn).ListFederationRelationships(ctx, &trustdomainv1.ListFederationRelationshipsRequest{PageSize: 200, PageToken: token})
		r.relationships = append(r.relationships, resp.GetFederationRelationships()...)
		return resp.GetNextPageToken(), err
	})
	if err != nil {
		return nil, fmt.Errorf("its federation relationships: %w", err)
	}
	return r, nil
}

// spireImport is the outcome, or with a dry run the plan.
type spireImport struct {
	TrustDomain string        `json:"trust_domain"`
	DryRun      bool          `json:"dry_run"`
	Equal       int           `json:"equal"`
	Failed      int           `json:"failed"`
	Changes     []spireChange `json:"changes"`
	// Agents of the other server, which do not move by themselves.
	Agents []agentInfo `json:"agents"`

	batches []batch
}

// spireChange is one thing that differs.
type spireChange struct {
	// Do is create, update or remove; only-here is what --prune would remove.
	Do string `json:"do"`
	// Kind is entry, bundle or relationship.
	Kind string `json:"kind"`
	ID   string `json:"id"`
	// Name is the SPIFFE ID, or the trust domain.
	Name string `json:"name"`
	// Fields differ, in an update.
	Fields []string `json:"fields,omitempty"`
	// Note says what this control plane does otherwise than SPIRE.
	Note  string `json:"note,omitempty"`
	Error string `json:"error,omitempty"`
}

func (a *app) importSPIRE(ctx context.Context, from string, dryRun, prune bool) (*spireImport, error) {
	source, err := dialSPIRE(from)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	there, err := register(ctx, source)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	target, err := a.dial()
	if err != nil {
		return nil, err
	}
	defer target.Close()
	here, err := register(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("this control plane: %w", err)
	}
	if here.trustDomain != there.trustDomain {
		return nil, fmt.Errorf("%s is of trust domain %s, this control plane of %s: only servers of one trust domain can take over from each other", from, there.trustDomain, here.trustDomain)
	}
	result := planImport(there, here, prune)
	result.DryRun = dryRun
	if !dryRun {
		result.apply(ctx, target, func(done, of int) {
			if of > importBatch {
				fmt.Fprintf(a.stderr, "%d of %d changes made\n", done, of)
			}
		})
	}
	return result, nil
}

func (r *spireImport) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Changes) > 0 {
		fmt.Fprintln(tw, "DO\tKIND\tNAME\tID\tWHAT")
	}
	for _, c := range r.Changes {
		what := strings.Join(c.Fields, ", ")
		for _, more := range []string{c.Note, c.Error} {
			if more != "" {
				what = strings.TrimPrefix(what+"; "+more, "; ")
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", c.Do, c.Kind, c.Name, dash(c.ID), what)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	done := "changed"
	if r.DryRun {
		done = "would change"
	}
	changes := 0
	for _, b := range r.batches {
		changes += len(b.changes)
	}
	_, err := fmt.Fprintf(w, "%d equal, %d %s, %d agents have to attest here (policyctl token create)\n", r.Equal, changes-r.Failed, done, len(r.Agents))
	return err
}
