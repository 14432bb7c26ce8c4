package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

func newEntryUpdateCmd(a *app) *cobra.Command {
	var f entryFlags
	cmd := &cobra.Command{
		Use:   "update ENTRY [flags of create]",
		Short: "Change a registration entry",
		Long: `Change a registration entry: what a flag is given for, and nothing else. A flag
that can be repeated replaces all that there was; an empty value empties it, as in
--dns "". --expires-in 0s takes the expiry away, --x509-svid-ttl 0s the own life.

Agents hear of it at once, and get new SVIDs. Those that workloads already have
stay valid until they expire.`,
		Example: `  policyctl entry update 6f1c2f0e-3f43-4c52-9d61-0a0f6a0f2d11 --x509-svid-ttl 10m
  policyctl entry update 6f1c2f0e-3f43-4c52-9d61-0a0f6a0f2d11 --selector unix:user:web --selector unix:path:/usr/bin/web
  policyctl entry update 6f1c2f0e-3f43-4c52-9d61-0a0f6a0f2d11 --federates-with "" --admin=false`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeEntries,
		RunE: func(cmd *cobra.Command, args []string) error {
			e, mask, err := f.changes(cmd.Flags(), time.Now())
			if err != nil {
				return fmt.Errorf("entry update %s: %w", args[0], err)
			}
			e.Id = args[0]
			updated, err := a.updateEntry(cmd.Context(), e, mask)
			if err != nil {
				return fmt.Errorf("entry update %s: %w", args[0], err)
			}
			a.warnDoubts(updated)
			return entryInfoFrom(updated).emit(a, "entry")
		},
	}
	f.register(cmd)
	return cmd
}

// changes are the fields whose flags were given, and which ones these are.
func (f *entryFlags) changes(flags *pflag.FlagSet, now time.Time) (*types.Entry, *types.EntryMask, error) {
	mask := &types.EntryMask{}
	any := false
	for name, field := range map[string]*bool{
		"spiffe-id": &mask.SpiffeId, "parent-id": &mask.ParentId, "selector": &mask.Selectors,
		"x509-svid-ttl": &mask.X509SvidTtl, "jwt-svid-ttl": &mask.JwtSvidTtl, "expires-in": &mask.ExpiresAt,
		"dns": &mask.DnsNames, "federates-with": &mask.FederatesWith, "hint": &mask.Hint,
		"admin": &mask.Admin, "downstream": &mask.Downstream, "store-svid": &mask.StoreSvid,
	} {
		*field = flags.Changed(name)
		any = any || *field
	}
	if !any {
		return nil, nil, errors.New("nothing to change: give a flag for each field that is to be another")
	}
	given := *f
	var err error
	if given.dns, err = noneOf(f.dns, "dns", "NAME"); err != nil {
		return nil, nil, err
	}
	if given.federates, err = noneOf(f.federates, "federates-with", "TRUST-DOMAIN"); err != nil {
		return nil, nil, err
	}
	e, err := given.fields(now)
	if err == nil && mask.SpiffeId {
		e.SpiffeId, err = idFlag("spiffe-id", f.spiffeID)
	}
	if err == nil && mask.ParentId {
		e.ParentId, err = idFlag("parent-id", f.parentID)
	}
	return e, mask, err
}

func (a *app) updateEntry(ctx context.Context, e *types.Entry, mask *types.EntryMask) (updated *types.Entry, err error) {
	err = a.entryAdmin(func(c entryv1.EntryClient) error {
		resp, err := c.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}, InputMask: mask})
		if err != nil {
			return rpcError(err)
		}
		if len(resp.GetResults()) != 1 {
			return errors.New("the control plane gave no result")
		}
		r := resp.GetResults()[0]
		if codes.Code(r.GetStatus().GetCode()) != codes.OK {
			return errors.New(r.GetStatus().GetMessage())
		}
		updated = r.GetEntry()
		return nil
	})
	return updated, err
}
