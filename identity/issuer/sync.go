package issuer

import (
	"context"
	"errors"
	"io"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/registry"
)

// syncPage is how many entries are sent whole and unasked; a longer list is
// sent as revisions, in pages of this size.
const syncPage = 500

// GetAuthorizedEntries implements entryv1.EntryServer.
func (s *entryService) GetAuthorizedEntries(ctx context.Context, req *entryv1.GetAuthorizedEntriesRequest) (*entryv1.GetAuthorizedEntriesResponse, error) {
	resp := &entryv1.GetAuthorizedEntriesResponse{}
	size := 0
	entries := s.index.Authorized(callerOf(ctx).id, s.now())
	leave, err := s.enterList(ctx, len(entries))
	if err != nil {
		return nil, err
	}
	defer leave()
	for _, e := range entries {
		pb := entryToProto(e, req.GetOutputMask())
		if size += proto.Size(pb) + 8; size > maxReply {
			// This method has no pages, and a part would look like the whole.
			return nil, status.Error(codes.ResourceExhausted, "too many entries for one reply: use SyncAuthorizedEntries, or an output mask")
		}
		resp.Entries = append(resp.Entries, pb)
	}
	return resp, nil
}

// SyncAuthorizedEntries implements entryv1.EntryServer. A reply without
// revisions that was not asked for by ID is, to the agent, the complete list:
// nothing else may ever be sent in that form.
func (s *entryService) SyncAuthorizedEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer) error {
	ctx := stream.Context()
	caller := callerOf(ctx)
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return status.Error(codes.InvalidArgument, "the stream ended without a message")
	} else if err != nil {
		return err
	}
	mask := first.GetOutputMask()
	switch {
	case len(first.GetIds()) > 0:
		return status.Error(codes.InvalidArgument, "ids must not be in the first message: it is answered by the list")
	case mask != nil && !mask.GetRevisionNumber():
		return status.Error(codes.InvalidArgument, "output_mask must not hide revision_number: without it nobody can tell what is stale")
	}
	entries := s.index.Authorized(caller.id, s.now())
	leave, err := s.enterList(ctx, len(entries))
	if err != nil {
		return err
	}
	whole := wholeList(entries, mask)
	leave() // sending may take as long as the agent likes
	if whole != nil {
		err = stream.Send(whole)
	} else {
		err = sendRevisions(stream, entries)
	}
	for err == nil {
		var req *entryv1.SyncAuthorizedEntriesRequest
		req, err = stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			break
		}
		// A stream may outlive what the agent may do.
		if err = s.checkAgent(ctx, caller); err != nil {
			break
		}
		if req.GetOutputMask() != nil && !proto.Equal(req.GetOutputMask(), mask) {
			return status.Error(codes.InvalidArgument, "output_mask must be given in the first message only")
		}
		err = s.sendEntries(stream, caller, req.GetIds(), mask)
	}
	return err
}

// wholeList is the complete list in one reply, nil if it is too long for that.
func wholeList(entries []*registry.Entry, mask *types.EntryMask) *entryv1.SyncAuthorizedEntriesResponse {
	if len(entries) > syncPage {
		return nil
	}
	resp := &entryv1.SyncAuthorizedEntriesResponse{}
	size := 0
	for _, e := range entries {
		pb := entryToProto(e, mask)
		if size += proto.Size(pb) + 8; size > maxReply {
			return nil
		}
		resp.Entries = append(resp.Entries, pb)
	}
	return resp
}

func sendRevisions(stream entryv1.Entry_SyncAuthorizedEntriesServer, entries []*registry.Entry) error {
	for len(entries) > 0 {
		n := min(syncPage, len(entries))
		resp := &entryv1.SyncAuthorizedEntriesResponse{More: n < len(entries)}
		for _, e := range entries[:n] {
			resp.EntryRevisions = append(resp.EntryRevisions, &entryv1.EntryRevision{
				Id: e.ID, RevisionNumber: e.RevisionNumber, CreatedAt: seconds(e.CreatedAt),
			})
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// sendEntries answers a request by IDs, in as many pages as it takes. What the
// agent may not have, or has lost meanwhile, is left out, and what it names twice is
// sent once: a reply is many times as large as its ID.
func (s *entryService) sendEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer, caller Caller, ids []string, mask *types.EntryMask) error {
	resp := &entryv1.SyncAuthorizedEntriesResponse{}
	size := 0
	sent := make(map[string]bool, min(len(ids), syncPage))
	for _, id := range ids {
		if sent[id] {
			continue
		}
		e := s.index.Lookup(caller.id, id, s.now())
		if e == nil {
			continue
		}
		sent[id] = true
		pb := entryToProto(e, mask)
		if n := proto.Size(pb) + 8; len(resp.Entries) == syncPage || len(resp.Entries) > 0 && size+n > maxReply {
			resp.More = true
			if err := stream.Send(resp); err != nil {
				return err
			}
			resp, size = &entryv1.SyncAuthorizedEntriesResponse{}, 0
		}
		resp.Entries = append(resp.Entries, pb)
		size += proto.Size(pb) + 8
	}
	return stream.Send(resp)
}
