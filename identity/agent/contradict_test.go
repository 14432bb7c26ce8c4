package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/watchv1"
)

// Sync is the fake's: it tells everything, tagged by revision, and can be
// made to lie.
func (w *fakeWatch) Sync(req *watchv1.SyncRequest, stream grpc.ServerStreamingServer[watchv1.SyncReply]) error {
	w.f.mu.Lock()
	answer, entries := w.f.missed, w.f.entries
	w.f.mu.Unlock()
	if answer == nil {
		return status.Error(codes.Unimplemented, "unknown method")
	}
	bundle := need(w.f.GetBundle(stream.Context(), nil))
	reply := &watchv1.SyncReply{Revision: 1, Bundle: &watchv1.Bundle{TrustDomain: bundle.TrustDomain, Tag: []byte("b"), Bundle: bundle}}
	var list holding
	for _, e := range entries { // in the order of their IDs
		tag := fmt.Appendf(nil, "%d", e.RevisionNumber)
		list = append(list, &watchv1.Held{Id: e.Id, Tag: tag})
		reply.Changed = append(reply.Changed, &watchv1.Changed{Entry: e, Tag: tag})
	}
	reply.Digest = list.digest()
	has := map[string]bool{}
	for _, e := range entries {
		has[e.Id] = true
	}
	for _, h := range req.Held {
		if !has[h.Id] {
			reply.Gone = append(reply.Gone, h.Id)
		}
	}
	answer(req, reply)
	return stream.Send(reply)
}

// Whatever an issuer leaves out, adds or says wrongly, an agent does not go on with
// entries that are not those there are: it gets the whole list in another way.
func TestWrongDifferences(t *testing.T) {
	for name, lie := range map[string]func(*watchv1.SyncRequest, *watchv1.SyncReply){
		"honest":         func(*watchv1.SyncRequest, *watchv1.SyncReply) {},
		"nothing missed": func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Changed, r.Gone = nil, nil },
		"no difference to a list": func(req *watchv1.SyncRequest, r *watchv1.SyncReply) {
			if len(req.Held) > 0 {
				r.Changed, r.Gone = nil, nil
			}
		},
		"a change left out": func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Changed = r.Changed[:1] },
		"nothing is gone":   func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Gone = nil },
		"too much is gone":  func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Gone = append(r.Gone, "e3") },
		"another tag":       func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Changed[0].Tag = []byte("x") },
		"another digest":    func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Digest = r.Digest[1:] },
		"no digest":         func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Digest = nil },
		"no entry":          func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Changed[0].Entry = nil },
		"differs forever":   func(_ *watchv1.SyncRequest, r *watchv1.SyncReply) { r.Changed, r.Gone, r.Differs = nil, nil, true },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.f.entries = append(b.f.entries, entryOf("e2", "/svc/gone", "unix:uid:2"), entryOf("e3", "/svc/c", "unix:uid:3"))
				b.f.missed = func(*watchv1.SyncRequest, *watchv1.SyncReply) {}
				b.mustRun()
				b.f.with(func() {
					b.f.missed = lie
					changed := entryOf("e3", "/svc/d", "unix:uid:3")
					changed.RevisionNumber = 2
					b.f.entries = []*types.Entry{b.f.entries[0], changed}
				})
				<-time.After(time.Minute)
				for uid, want := range map[string]string{"1": "/svc/web", "2": "", "3": "/svc/d"} {
					g, _, err := b.agent.Lookup(t.Context(), []string{"unix:uid:" + uid})
					if err != nil {
						t.Fatal(err)
					}
					got := ""
					for _, id := range g.Identities {
						got += id.ID.Path()
					}
					if got != want {
						t.Errorf("uid %s is %q, want %q", uid, got, want)
					}
				}
				if name == "honest" && b.f.count("SyncAuthorizedEntries") > 0 {
					t.Error("synced in SPIRE's way")
				}
			})
		})
	}
}
