package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/internal/tracing"
)

// idsPerRequest is how many entries are asked for at once when only their
// revisions were sent.
const idsPerRequest = 500

// maxAnswer bounds one answer of an issuer, in bytes, in however many messages:
// about a million entries.
const maxAnswer = 256 << 20

var errEndless = fmt.Errorf("the issuer's answer has more than %d MB: what there is stays in force", maxAnswer>>20)

// entryMask is what the agent needs of an entry. The revision is part of it:
// issuers refuse a mask without.
func entryMask() *types.EntryMask {
	return &types.EntryMask{
		SpiffeId: true, Selectors: true, FederatesWith: true, RevisionNumber: true,
		StoreSvid: true, Hint: true, CreatedAt: true,
	}
}

// sync makes bundle, entries and templates those of the issuer.
func (a *Agent) sync(ctx context.Context) (err error) {
	ctx, span := tracing.Start(ctx, "sync entries")
	defer func() { span.End(err) }()
	serial, err := a.syncWay(ctx)
	if err != nil {
		return err
	}
	a.stats.lastSync.Store(time.Now().UnixNano())
	if span.Recorded() {
		entries, _ := a.cache.count(time.Now())
		span.Int(tracing.Count, entries)
	}
	if serial != a.postedSerial {
		a.postedSerial = serial
		a.postStatus(ctx, serial)
	}
	return nil
}

// syncWhole is a sync in SPIRE's way.
func (a *Agent) syncWhole(ctx context.Context) (serial uint64, err error) {
	if serial, err = a.fetchBundle(ctx); err != nil {
		return 0, err
	}
	var entries []entry
	err = a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) (err error) {
		entries, err = a.fetchEntries(ctx, entryv1.NewEntryClient(cc))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("sync entries: %w", err)
	}
	patterns, err := a.fetchTemplates(ctx)
	if err != nil {
		return 0, err
	}
	a.takeEntries(entries, patterns)
	a.fetchFederated(ctx)
	return serial, nil
}

// takeEntries makes entries and patterns the whole of what the node is entitled to.
func (a *Agent) takeEntries(entries []entry, patterns []*pattern) {
	gone := a.cache.apply(entries, patterns)
	a.jwt.forget(gone)
	if len(gone) > 0 {
		a.log.Info("entries or templates are gone, or templates have changed", "count", len(gone))
	}
}

// postStatus tells the issuer which bundle is in use. Issuers need not care.
func (a *Agent) postStatus(ctx context.Context, serial uint64) {
	err := a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := agentv1.NewAgentClient(cc).PostStatus(ctx, &agentv1.PostStatusRequest{CurrentBundleSerial: serial})
		return err
	})
	if err != nil && status.Code(err) != codes.Unimplemented {
		a.log.Debug("status not taken by the issuer", "error", err)
	}
}

func (a *Agent) fetchEntries(ctx context.Context, client entryv1.EntryClient) ([]entry, error) {
	entries, err := a.syncEntries(ctx, client)
	if status.Code(err) != codes.Unimplemented {
		return entries, err
	}
	reply, err := client.GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{OutputMask: entryMask()})
	if err != nil {
		return nil, err
	}
	return a.parseEntries(reply.Entries), nil
}

// syncEntries is SyncAuthorizedEntries. A first reply without revisions holds
// the complete list, so that an empty one means no entries. Otherwise come the
// revisions of all, and what is new or changed is asked for.
func (a *Agent) syncEntries(ctx context.Context, client entryv1.EntryClient) ([]entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.SyncAuthorizedEntries(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: entryMask()})
	pages, err := receive(stream)
	if err != nil {
		return nil, err
	}
	if len(pages[0].EntryRevisions) == 0 {
		return a.parseEntries(entriesOf(pages)), nil
	}
	var entries []entry
	var wanted []string
	for _, page := range pages {
		if len(page.Entries) > 0 {
			return nil, errors.New("the issuer mixed entries and revisions")
		}
		for _, rev := range page.EntryRevisions {
			if e, ok := a.cache.known(rev.Id); ok && e.revision == rev.RevisionNumber && e.createdAt == rev.CreatedAt {
				entries = append(entries, e)
			} else {
				wanted = append(wanted, rev.Id)
			}
		}
	}
	for len(wanted) > 0 {
		n := min(len(wanted), idsPerRequest)
		_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: wanted[:n]})
		if pages, err = receive(stream); err != nil {
			return nil, err
		}
		// One that is missing here was deleted since.
		entries = append(entries, a.parseEntries(entriesOf(pages))...)
		wanted = wanted[n:]
	}
	return entries, stream.CloseSend()
}

// receive reads the pages of one answer.
func receive(stream grpc.BidiStreamingClient[entryv1.SyncAuthorizedEntriesRequest, entryv1.SyncAuthorizedEntriesResponse]) ([]*entryv1.SyncAuthorizedEntriesResponse, error) {
	var pages []*entryv1.SyncAuthorizedEntriesResponse
	for size := 0; ; {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the issuer ended the sync early")
		}
		if err != nil {
			return nil, err
		}
		if pages, size = append(pages, page), size+proto.Size(page); size > maxAnswer {
			return nil, errEndless
		}
		if !page.More {
			return pages, nil
		}
	}
}

func entriesOf(pages []*entryv1.SyncAuthorizedEntriesResponse) []*types.Entry {
	var all []*types.Entry
	for _, p := range pages {
		all = append(all, p.Entries...)
	}
	return all
}

func (a *Agent) parseEntries(in []*types.Entry) []entry {
	out := make([]entry, 0, len(in))
	for _, e := range in {
		parsed, err := parseEntry(e, a.td)
		if err != nil {
			a.log.Warn("entry ignored", "entry_id", e.GetId(), "error", err)
		}
		if parsed.id != "" {
			out = append(out, parsed)
		}
		a.stats.received.Add(1)
	}
	return out
}

// parseEntry reads an entry. With an error it returns one that is nobody's, so that
// it is known and not asked for again.
func parseEntry(e *types.Entry, td spiffeid.TrustDomain) (entry, error) {
	out, err := readEntry(e, td)
	if err != nil {
		out = entry{id: e.GetId(), revision: e.GetRevisionNumber(), createdAt: e.GetCreatedAt()}
	}
	return out, err
}

func readEntry(e *types.Entry, td spiffeid.TrustDomain) (entry, error) {
	if e.GetId() == "" {
		return entry{}, errors.New("it has no id")
	}
	domain, err := spiffeid.TrustDomainFromString(e.GetSpiffeId().GetTrustDomain())
	if err != nil {
		return entry{}, err
	}
	id, err := spiffeid.FromPath(domain, e.SpiffeId.Path)
	switch {
	case err != nil:
		return entry{}, err
	case domain != td:
		return entry{}, fmt.Errorf("it is of another trust domain: %s", id)
	case id.Path() == "":
		return entry{}, fmt.Errorf("%s is a trust domain, not a workload", id)
	case len(e.Selectors) == 0:
		return entry{}, errors.New("it has no selector")
	}
	out := entry{
		id: e.Id, spiffeID: id, hint: e.Hint, revision: e.RevisionNumber, createdAt: e.CreatedAt,
		served: !e.StoreSvid,
	}
	for _, s := range e.Selectors {
		if s.GetType() == "" || s.GetValue() == "" || strings.Contains(s.GetType(), ":") {
			return entry{}, fmt.Errorf("selector %q:%q lacks its type or value", s.GetType(), s.GetValue())
		}
		// Aliases give agents another name. No workload has that name.
		if s.Type == "spiffe_id" {
			out.served = false
		}
		out.selectors = append(out.selectors, s.Type+":"+s.Value)
	}
	for _, name := range e.FederatesWith {
		other, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return entry{}, fmt.Errorf("federates with %q: %w", name, err)
		}
		out.federatesWith = append(out.federatesWith, other)
	}
	return out, nil
}
