package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const entryHelp = `Registration entries say which workload gets which SPIFFE ID.

A workload gets the ID when it runs on a node that the parent names (an
agent's ID, or the alias that its join token gave it) and has all of the
selectors that the agent finds out about it, such as unix:uid:1000 or
unix:path:/usr/bin/web.`

func newEntryCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "entry",
		Aliases: []string{"entries"},
		Short:   "Create, list, show, update, accept and delete registration entries",
		Long:    entryHelp,
	}
	cmd.AddCommand(newEntryCreateCmd(a), newEntryListCmd(a), newEntryShowCmd(a), newEntryUpdateCmd(a), newEntryAcceptCmd(a), newEntryDeleteCmd(a), newEntryTemplateCmd(a))
	return cmd
}

// entryAdmin runs call against the control plane.
func (a *app) entryAdmin(call func(entryv1.EntryClient) error) error {
	return withClient(a, entryv1.NewEntryClient, call)
}

// commonFlags are the fields of an entry or a template as a person gives them.
type commonFlags struct {
	id, spiffeID, parentID    string
	selectors, dns, federates []string
	x509TTL, jwtTTL           time.Duration
	hint                      string
}

// entryFlags are those of an entry.
type entryFlags struct {
	commonFlags
	expiresIn                time.Duration
	admin, downstream, store bool
}

func newEntryCreateCmd(a *app) *cobra.Command {
	var f entryFlags
	cmd := &cobra.Command{
		Use:   "create --spiffe-id ID --parent-id ID --selector TYPE:VALUE...",
		Short: "Give workloads a SPIFFE ID",
		Long:  entryHelp,
		Example: `  policyctl entry create --spiffe-id spiffe://example.org/svc/web \
      --parent-id spiffe://example.org/node/laptop --selector unix:uid:1000
  policyctl entry create --spiffe-id spiffe://example.org/svc/db --parent-id spiffe://example.org/node/laptop \
      --selector unix:user:postgres --selector unix:path:/usr/lib/postgresql/bin/postgres --x509-svid-ttl 10m --dns db`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := f.entry(time.Now())
			if err != nil {
				return fmt.Errorf("entry create: %w", err)
			}
			made, err := a.createEntry(cmd.Context(), e)
			if err != nil {
				return fmt.Errorf("entry create: %w", err)
			}
			a.warnDoubts(made)
			return entryInfoFrom(made).emit(a, "entry")
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.id, "id", "", "ID of the entry itself (default: a new one)")
	for _, required := range []string{"spiffe-id", "parent-id", "selector"} {
		cmd.Flags().Lookup(required).Usage += " (required)"
		_ = cmd.MarkFlagRequired(required)
	}
	return cmd
}

// register adds the flags. spiffeID and selector say what these two mean.
func (f *commonFlags) register(cmd *cobra.Command, spiffeID, selector string) {
	fl := cmd.Flags()
	fl.StringVar(&f.spiffeID, "spiffe-id", "", spiffeID)
	fl.StringVar(&f.parentID, "parent-id", "", "SPIFFE ID of the node, its alias or its agent")
	fl.StringArrayVar(&f.selectors, "selector", nil, selector)
	fl.DurationVar(&f.x509TTL, "x509-svid-ttl", 0, "life of X509-SVIDs, at least 10s (default: the issuer's)")
	fl.DurationVar(&f.jwtTTL, "jwt-svid-ttl", 0, "life of JWT-SVIDs, at least 10s (default: the issuer's)")
	fl.StringArrayVar(&f.dns, "dns", nil, "DNS name in X509-SVIDs")
	fl.StringArrayVar(&f.federates, "federates-with", nil, "trust domain whose bundle workloads get too")
	fl.StringVar(&f.hint, "hint", "", "what these SVIDs are for, told to workloads that have several")
	_ = cmd.RegisterFlagCompletionFunc("selector", selectorKinds)
}

func (f *entryFlags) register(cmd *cobra.Command) {
	f.commonFlags.register(cmd, "SPIFFE ID that the workload gets", "what the workload must be, as in unix:uid:1000; all of them must match")
	fl := cmd.Flags()
	fl.DurationVar(&f.expiresIn, "expires-in", 0, "remove the entry after this time (default: never)")
	fl.BoolVar(&f.admin, "admin", false, "it may administer this control plane")
	fl.BoolVar(&f.downstream, "downstream", false, "it is a downstream SPIRE server")
	fl.BoolVar(&f.store, "store-svid", false, "agents may put its SVIDs into a store")
}

func (f *entryFlags) entry(now time.Time) (*types.Entry, error) {
	e, err := f.fields(now)
	if err != nil {
		return nil, err
	}
	if e.SpiffeId, err = idFlag("spiffe-id", f.spiffeID); err != nil {
		return nil, err
	}
	e.ParentId, err = idFlag("parent-id", f.parentID)
	return e, err
}

// fields is an entry without its SPIFFE ID and parent.
func (f *entryFlags) fields(now time.Time) (*types.Entry, error) {
	e := &types.Entry{
		Id: f.id, DnsNames: f.dns, FederatesWith: f.federates, Hint: f.hint,
		Admin: f.admin, Downstream: f.downstream, StoreSvid: f.store,
	}
	var err error
	if e.Selectors, err = selectorFlags(f.selectors); err != nil {
		return nil, err
	}
	if e.X509SvidTtl, err = secondsFlag("x509-svid-ttl", f.x509TTL); err != nil {
		return nil, err
	}
	if e.JwtSvidTtl, err = secondsFlag("jwt-svid-ttl", f.jwtTTL); err != nil {
		return nil, err
	}
	switch {
	case f.expiresIn < 0:
		return nil, fmt.Errorf("--expires-in %v is in the past", f.expiresIn)
	case f.expiresIn > 0:
		e.ExpiresAt = now.Add(f.expiresIn).Unix()
	}
	return e, nil
}

func (a *app) createEntry(ctx context.Context, e *types.Entry) (made *types.Entry, err error) {
	err = a.entryAdmin(func(c entryv1.EntryClient) error {
		resp, err := c.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
		if err != nil {
			return rpcError(err)
		}
		if len(resp.GetResults()) != 1 {
			return errors.New("the control plane gave no result")
		}
		r := resp.GetResults()[0]
		switch codes.Code(r.GetStatus().GetCode()) {
		case codes.OK:
			made = r.GetEntry()
			return nil
		case codes.AlreadyExists:
			return fmt.Errorf("it exists: entry %s has the same ID, or the same SPIFFE ID, parent and selectors (policyctl entry show %[1]s)", r.GetEntry().GetId())
		}
		return errors.New(r.GetStatus().GetMessage())
	})
	return made, err
}

func newEntryListCmd(a *app) *cobra.Command {
	var spiffeID, parentID, hint string
	var withheld bool
	var selectorList []string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List registration entries",
		Example: `  policyctl entry list
  policyctl entry list --parent-id spiffe://example.org/node/laptop
  policyctl entry list --selector unix:uid:1000 --output json
  policyctl entry list --withheld`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if withheld {
				return a.showWithheld(cmd.Context())
			}
			filter := &entryv1.ListEntriesRequest_Filter{}
			var err error
			if spiffeID != "" {
				if filter.BySpiffeId, err = idFlag("spiffe-id", spiffeID); err != nil {
					return fmt.Errorf("entry list: %w", err)
				}
			}
			if parentID != "" {
				if filter.ByParentId, err = idFlag("parent-id", parentID); err != nil {
					return fmt.Errorf("entry list: %w", err)
				}
			}
			if len(selectorList) > 0 {
				wanted, err := selectorFlags(selectorList)
				if err != nil {
					return fmt.Errorf("entry list: %w", err)
				}
				filter.BySelectors = &types.SelectorMatch{Selectors: wanted, Match: types.SelectorMatch_MATCH_SUPERSET}
			}
			if cmd.Flags().Changed("hint") {
				filter.ByHint = wrapperspb.String(hint)
			}
			entries, err := a.findEntries(cmd.Context(), filter)
			if err != nil {
				return fmt.Errorf("entry list: %w", err)
			}
			infos := []entryInfo{}
			for _, e := range entries {
				infos = append(infos, entryInfoFrom(e))
			}
			a.warnWithheld(cmd.Context())
			result := struct {
				Entries []entryInfo `json:"entries"`
			}{infos}
			return a.emit(result, func(w io.Writer) error { return writeInfos(w, "entry", infos) })
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&spiffeID, "spiffe-id", "", "only entries that give this SPIFFE ID")
	fl.StringVar(&parentID, "parent-id", "", "only entries below this parent")
	fl.StringArrayVar(&selectorList, "selector", nil, "only entries with this selector (and others)")
	fl.StringVar(&hint, "hint", "", "only entries with this hint")
	fl.BoolVar(&withheld, "withheld", false, "entries that are not served, since the database does not hold what was written")
	for _, filter := range []string{"spiffe-id", "parent-id", "selector", "hint"} {
		cmd.MarkFlagsMutuallyExclusive("withheld", filter)
	}
	_ = cmd.RegisterFlagCompletionFunc("selector", selectorKinds)
	return cmd
}

func (a *app) findEntries(ctx context.Context, filter *entryv1.ListEntriesRequest_Filter) (all []*types.Entry, err error) {
	err = a.entryAdmin(func(c entryv1.EntryClient) (err error) {
		all, err = listEntries(ctx, c, filter)
		return err
	})
	return all, err
}

// listEntries fetches all pages.
func listEntries(ctx context.Context, client entryv1.EntryClient, filter *entryv1.ListEntriesRequest_Filter) (all []*types.Entry, err error) {
	err = pages(func(token string) (string, error) {
		resp, err := client.ListEntries(ctx, &entryv1.ListEntriesRequest{Filter: filter, PageToken: token})
		all = append(all, resp.GetEntries()...)
		return resp.GetNextPageToken(), err
	})
	return all, err
}

func newEntryShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show ENTRY",
		Short:             "Show one registration entry",
		Example:           `  policyctl entry show 6f1c2f0e-3f43-4c52-9d61-0a0f6a0f2d11`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeEntries,
		RunE: func(cmd *cobra.Command, args []string) error {
			var e *types.Entry
			err := a.entryAdmin(func(c entryv1.EntryClient) (err error) {
				e, err = c.GetEntry(cmd.Context(), &entryv1.GetEntryRequest{Id: args[0]})
				return err
			})
			if err != nil {
				return fmt.Errorf("entry show %s: %w", args[0], rpcError(err))
			}
			return entryInfoFrom(e).emit(a, "entry")
		},
	}
}

func newEntryDeleteCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete ENTRY...",
		Short: "Delete registration entries",
		Long: `Delete registration entries. Agents that hold them drop them at once; SVIDs
that workloads already have stay valid until they expire.`,
		Example:           `  policyctl entry delete 6f1c2f0e-3f43-4c52-9d61-0a0f6a0f2d11`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeEntries,
		RunE: func(cmd *cobra.Command, args []string) error {
			deleted, failed := []string{}, error(nil)
			err := a.entryAdmin(func(c entryv1.EntryClient) error {
				resp, err := c.BatchDeleteEntry(cmd.Context(), &entryv1.BatchDeleteEntryRequest{Ids: args})
				if err != nil {
					return rpcError(err)
				}
				for _, r := range resp.GetResults() {
					if codes.Code(r.GetStatus().GetCode()) == codes.OK {
						deleted = append(deleted, r.GetId())
					} else {
						failed = errors.Join(failed, fmt.Errorf("%s: %s", r.GetId(), r.GetStatus().GetMessage()))
					}
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("entry delete: %w", err)
			}
			if err := errors.Join(failed, a.emitDeleted(deleted)); err != nil {
				return fmt.Errorf("entry delete: %w", err)
			}
			return nil
		},
	}
}

// completeEntries offers the IDs of entries, if the control plane answers.
func (a *app) completeEntries(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if cmd.Name() == "show" && len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	entries, err := a.findEntries(ctx, nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.GetId()+"\t"+idText(e.GetSpiffeId()))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func selectorKinds(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"unix:uid:", "unix:gid:", "unix:user:", "unix:group:", "unix:path:", "unix:sha256:"},
		cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func idFlag(flag, text string) (*types.SPIFFEID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, fmt.Errorf("--%s %q is not a SPIFFE ID such as spiffe://example.org/svc/web: %w", flag, text, err)
	}
	return protoID(id), nil
}

func selectorFlags(list []string) ([]*types.Selector, error) {
	var all []*types.Selector
	for _, text := range list {
		kind, value, ok := strings.Cut(text, ":")
		if !ok || kind == "" || value == "" {
			return nil, fmt.Errorf("--selector %q: want TYPE:VALUE, as in unix:uid:1000", text)
		}
		all = append(all, &types.Selector{Type: kind, Value: value})
	}
	return all, nil
}

// secondsFlag is a duration as the API has it.
func secondsFlag(flag string, d time.Duration) (int32, error) {
	switch {
	case d < 0:
		return 0, fmt.Errorf("--%s %v is negative", flag, d)
	case d%time.Second != 0:
		return 0, fmt.Errorf("--%s %v: want whole seconds", flag, d)
	case d/time.Second > math.MaxInt32:
		return 0, fmt.Errorf("--%s %v is too long", flag, d)
	}
	return int32(d / time.Second), nil
}

func idText(id *types.SPIFFEID) string {
	return "spiffe://" + id.GetTrustDomain() + id.GetPath()
}

func ttlText(sec int32) string {
	if sec == 0 {
		return ""
	}
	return (time.Duration(sec) * time.Second).String()
}

// secondsTime is seconds since the Unix epoch as a time, nil for 0.
func secondsTime(sec int64) *time.Time {
	if sec == 0 {
		return nil
	}
	t := time.Unix(sec, 0).UTC()
	return &t
}
