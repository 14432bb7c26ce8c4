package issuer_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// synced is what an agent knows: the protocol as a stock agent follows it.
type synced map[string]*types.Entry

func (known synced) sync(t *testing.T, a *agent) (fetched int) {
	t.Helper()
	stream, err := a.entries().SyncAuthorizedEntries(t.Context())
	must(t, err)
	must(t, stream.Send(&entryv1.SyncAuthorizedEntriesRequest{}))
	first, err := stream.Recv()
	must(t, err)
	if len(first.EntryRevisions) == 0 {
		clear(known)
		for _, e := range first.Entries {
			known[e.Id] = e
		}
		if first.More {
			t.Fatal("a whole list with more to come")
		}
		must(t, stream.CloseSend())
		_, err = stream.Recv()
		if err != io.EOF {
			t.Fatal(err)
		}
		return len(known)
	}
	alive := map[string]bool{}
	var need []string
	for page := first; ; {
		if len(page.Entries) > 0 || len(page.EntryRevisions) > 500 {
			t.Fatal("revisions and entries mixed, or a long page")
		}
		for _, r := range page.EntryRevisions {
			alive[r.Id] = true
			if e := known[r.Id]; e == nil || e.RevisionNumber != r.RevisionNumber || e.CreatedAt != r.CreatedAt {
				need = append(need, r.Id)
			}
		}
		if !page.More {
			break
		}
		page, err = stream.Recv()
		must(t, err)
	}
	for id := range known {
		if !alive[id] {
			delete(known, id)
		}
	}
	for ids := range slices.Chunk(need, 800) {
		must(t, stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: ids}))
		for {
			page, err := stream.Recv()
			must(t, err)
			if proto.Size(page) > 4<<20 || len(page.EntryRevisions) > 0 || len(page.Entries) > 500 {
				t.Fatalf("page of %d entries, %d revisions, %d bytes", len(page.Entries), len(page.EntryRevisions), proto.Size(page))
			}
			for _, e := range page.Entries {
				known[e.Id] = e
				fetched++
			}
			if !page.More {
				break
			}
		}
	}
	must(t, stream.CloseSend())
	return fetched
}

func TestSync(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	other := w.join(w.token("/node/b"))
	known := synced{}
	if n := known.sync(t, a); n != 1 {
		t.Fatalf("%d entries, want the alias", n)
	}
	var made []*types.Entry
	add := func(from, to int) {
		var batch []*types.Entry
		for n := from; n < to; n++ {
			batch = append(batch, entry(fmt.Sprintf("/svc/%d", n), "/node/a", "x"))
		}
		made = append(made, w.create(batch...)...)
	}
	add(0, 499)
	if n := known.sync(t, a); n != 500 {
		t.Fatalf("at 500: %d entries", n)
	}
	add(499, 500) // the 501st: from here on by revisions
	if n := known.sync(t, a); n != 1 || len(known) != 501 {
		t.Fatalf("at 501: fetched %d, know %d", n, len(known))
	}
	add(500, 1400)
	if n := known.sync(t, a); n != 900 || len(known) != 1401 {
		t.Fatalf("at 1401: fetched %d, know %d", n, len(known))
	}
	if n := known.sync(t, a); n != 0 {
		t.Fatalf("nothing changed, fetched %d", n)
	}
	// Deleted and made again within a second, under the same ID.
	again := made[7]
	w.deleteEntry(again.Id)
	w.create(again)
	if n := known.sync(t, a); n != 1 {
		t.Fatalf("a reborn entry: fetched %d", n)
	}
	w.deleteEntry(made[8].Id)
	if n := known.sync(t, a); n != 0 || len(known) != 1400 {
		t.Fatalf("after a deletion: fetched %d, know %d", n, len(known))
	}
	// What is not the agent's own is left out, and asking is no error.
	stream, err := other.entries().SyncAuthorizedEntries(t.Context())
	must(t, err)
	must(t, stream.Send(&entryv1.SyncAuthorizedEntriesRequest{}))
	_, err = stream.Recv()
	must(t, err)
	must(t, stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: []string{made[0].Id, "nonsense"}}))
	resp, err := stream.Recv()
	must(t, err)
	if len(resp.Entries) != 0 || resp.More {
		t.Errorf("another agent's entries: %v", resp)
	}
	// Nor does an open stream outlive the agent's right.
	_, err = w.agents().BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: id(other.id.Path())})
	must(t, err)
	must(t, stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: []string{made[0].Id}}))
	_, err = stream.Recv()
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_BANNED)
}

// Few entries, but too large for one reply.
func TestSyncLargeEntries(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	var batch []*types.Entry
	for n := range 400 {
		e := entry(fmt.Sprintf("/svc/%d", n), "/node/a", "x")
		for range 80 {
			e.DnsNames = append(e.DnsNames, strings.Repeat("y.", 80)+"z")
		}
		batch = append(batch, e)
	}
	for part := range slices.Chunk(batch, 100) {
		w.create(part...)
	}
	known := synced{}
	if known.sync(t, a); len(known) != 401 {
		t.Errorf("know %d entries", len(known))
	}
	// The old method has no pages, and must not send a part.
	_, err := a.entries().GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	wantCode(t, err, codes.ResourceExhausted)
	list, err := a.entries().GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{OutputMask: &types.EntryMask{SpiffeId: true}})
	must(t, err)
	if len(list.Entries) != 401 {
		t.Errorf("%d entries", len(list.Entries))
	}
}

func TestSyncRefuses(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token(""))
	for name, reqs := range map[string][]*entryv1.SyncAuthorizedEntriesRequest{
		"ids first":            {{Ids: []string{"x"}}},
		"mask hides revision":  {{OutputMask: &types.EntryMask{SpiffeId: true}}},
		"mask changes midway ": {{}, {OutputMask: &types.EntryMask{RevisionNumber: true}}},
	} {
		stream, err := a.entries().SyncAuthorizedEntries(t.Context())
		must(t, err)
		for _, r := range reqs {
			must(t, stream.Send(r))
		}
		for range reqs {
			_, err = stream.Recv()
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		wantCode(t, err, codes.InvalidArgument)
	}
}
