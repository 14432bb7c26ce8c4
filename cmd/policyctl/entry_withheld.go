package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity/withheldv1"
)

// withheldInfo is the JSON form of an entry that is not served.
type withheldInfo struct {
	ID      string     `json:"id"`
	Cause   string     `json:"cause"`
	Why     string     `json:"why"`
	FoundAt *time.Time `json:"found_at"`
	// Digest is of the entry in the database, WantDigest of the one that is to be
	// there.
	Digest     string `json:"digest,omitempty"`
	WantDigest string `json:"want_digest,omitempty"`
	// Row is the entry in the database, nil where there is none.
	Row *entryInfo `json:"row"`
}

func withheldInfoFrom(pb *withheldv1.Entry) withheldInfo {
	info := withheldInfo{
		ID: pb.GetId(), Cause: pb.GetCause(), Why: pb.GetWhy(), FoundAt: secondsTime(pb.GetFoundAt()),
		Digest: hex.EncodeToString(pb.GetDigest()), WantDigest: hex.EncodeToString(pb.GetWantDigest()),
	}
	if row := pb.GetRow(); row != nil {
		entry := entryInfoFrom(row)
		entry.Digest, info.Row = info.Digest, &entry
	}
	return info
}

// withheld runs call against the control plane.
func (a *app) withheld(call func(withheldv1.AdminClient) error) error {
	return withClient(a, withheldv1.NewAdminClient, func(c withheldv1.AdminClient) error { return rpcError(call(c)) })
}

func (a *app) listWithheld(ctx context.Context) (list []withheldInfo, more uint64, err error) {
	list = []withheldInfo{}
	err = a.withheld(func(c withheldv1.AdminClient) error {
		resp, err := c.List(ctx, &withheldv1.ListRequest{})
		for _, e := range resp.GetEntries() {
			list = append(list, withheldInfoFrom(e))
		}
		more = resp.GetMore()
		return err
	})
	return list, more, err
}

// warnWithheld tells who lists entries of those that are not in the list. A server
// that is not ours has none.
func (a *app) warnWithheld(ctx context.Context) {
	if list, more, err := a.listWithheld(ctx); err == nil && len(list) > 0 {
		fmt.Fprintf(a.stderr, "policyctl: %d entries are not served, since the database does not hold what was written: policyctl entry list --withheld\n", uint64(len(list))+more)
	}
}

// showWithheld is "entry list --withheld".
func (a *app) showWithheld(ctx context.Context) error {
	list, more, err := a.listWithheld(ctx)
	if err != nil {
		return fmt.Errorf("entry list: %w", err)
	}
	result := struct {
		Withheld []withheldInfo `json:"withheld"`
		More     uint64         `json:"more"`
	}{list, more}
	return a.emit(result, func(w io.Writer) error { return writeWithheld(w, list, more) })
}

func writeWithheld(w io.Writer, list []withheldInfo, more uint64) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "every entry is as it was written")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for n, e := range list {
		if n > 0 {
			fmt.Fprintln(tw)
		}
		row := func(name, value string) {
			if value != "" {
				fmt.Fprintf(tw, "%s\t%s\n", name, terminalSafe(value))
			}
		}
		row("entry", e.ID)
		row("withheld", e.Cause+": "+e.Why)
		row("found", whenUTC(e.FoundAt))
		row("expected digest", e.WantDigest)
		if e.Row == nil {
			continue
		}
		for _, line := range e.Row.lines() {
			row("in the database: "+line[0], line[1])
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if more > 0 {
		_, err := fmt.Fprintf(w, "\nand %d more rows that are no entries\n", more)
		return err
	}
	return nil
}

func newEntryAcceptCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "accept ENTRY... | --all",
		Short: "Make what the database holds of withheld entries valid",
		Long: `Make entries that are not served, because their rows in the database are not
what the issuer wrote, valid as they are in the database now. An entry whose row is
missing is deleted thereby.

Look at them first (policyctl entry list --withheld): whoever changed the database
decides by it who gets which name. What is accepted is exactly what was printed; a
row that changes meanwhile is refused. To refuse one, delete it (policyctl entry
delete), which also removes the row.`,
		Example: `  policyctl entry list --withheld
  policyctl entry accept 6f1c2f0e-3f43-4c52-9d61-0a0f6a0f2d11`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("entry accept: name entries, or give --all")
			}
			accepted, err := a.acceptEntries(cmd.Context(), args, all)
			result := struct {
				Accepted []withheldInfo `json:"accepted"`
			}{accepted}
			err = errors.Join(err, a.emit(result, func(w io.Writer) error {
				for _, e := range accepted {
					what := "deleted " + e.ID
					if e.Row != nil {
						what = fmt.Sprintf("accepted %s: %s for %s below %s", e.ID, e.Row.SPIFFEID, strings.Join(e.Row.Selectors, " "), e.Row.ParentID)
					}
					if _, err := fmt.Fprintln(w, terminalSafe(what)); err != nil {
						return err
					}
				}
				return nil
			}))
			if err != nil {
				return fmt.Errorf("entry accept: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "accept every withheld entry")
	return cmd
}

// acceptBatch is how many entries are accepted by one call.
const acceptBatch = 500

// acceptEntries accepts what is listed now: those entries, or all.
func (a *app) acceptEntries(ctx context.Context, ids []string, all bool) (accepted []withheldInfo, err error) {
	accepted = []withheldInfo{}
	list, _, err := a.listWithheld(ctx)
	if err != nil {
		return accepted, err
	}
	byID := map[string]withheldInfo{}
	for _, e := range list {
		if byID[e.ID] = e; all {
			ids = append(ids, e.ID)
		}
	}
	var failed error
	err = a.withheld(func(c withheldv1.AdminClient) error {
		for first := 0; first < len(ids); first += acceptBatch {
			req := &withheldv1.AcceptRequest{}
			for _, id := range ids[first:min(first+acceptBatch, len(ids))] {
				e, ok := byID[id]
				if !ok {
					failed = errors.Join(failed, fmt.Errorf("%s: it is not withheld", id))
					continue
				}
				digest, err := hex.DecodeString(e.Digest)
				if err != nil {
					return err
				}
				req.Items = append(req.Items, &withheldv1.AcceptRequest_Item{Id: id, Digest: digest})
			}
			resp, err := c.Accept(ctx, req)
			if err != nil {
				return err
			}
			for _, r := range resp.GetResults() {
				if codes.Code(r.GetCode()) == codes.OK {
					accepted = append(accepted, byID[r.GetId()])
				} else {
					failed = errors.Join(failed, fmt.Errorf("%s: %s", r.GetId(), r.GetMessage()))
				}
			}
		}
		return nil
	})
	return accepted, errors.Join(failed, err)
}
