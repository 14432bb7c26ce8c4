package agent

import (
	"log/slog"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
)

// Whatever an issuer sends in a sync, no workload gets a name of another trust
// domain, the name of the trust domain itself, or an entry that asks nothing of
// it.
func FuzzSyncReply(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	web := &types.SPIFFEID{TrustDomain: "example.org", Path: "/svc/web"}
	for _, e := range []*types.Entry{
		{Id: "1", SpiffeId: web, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}, FederatesWith: []string{"other.org"}, RevisionNumber: 3},
		{Id: "1", SpiffeId: web},
		{Id: "2", SpiffeId: &types.SPIFFEID{TrustDomain: "evil.org", Path: "/svc/web"}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}},
		{SpiffeId: web, StoreSvid: true, Selectors: []*types.Selector{{Type: "spiffe_id", Value: "x"}, {}}},
	} {
		data, _ := proto.Marshal(&entryv1.SyncAuthorizedEntriesResponse{Entries: []*types.Entry{e, e}, EntryRevisions: []*entryv1.EntryRevision{{Id: "1"}}})
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var page entryv1.SyncAuthorizedEntriesResponse
		if proto.Unmarshal(data, &page) != nil {
			return
		}
		a := &Agent{td: td, log: slog.New(slog.DiscardHandler), cache: newCache(), jwt: newTokens()}
		entries := a.parseEntries(entriesOf([]*entryv1.SyncAuthorizedEntriesResponse{&page}))
		a.cache.apply(entries, nil)
		for _, e := range entries {
			if e.id == "" || e.served && (e.spiffeID.TrustDomain() != td || e.spiffeID.Path() == "" || len(e.selectors) == 0) {
				t.Errorf("taken: %+v", e)
			}
		}
		if got := a.cache.match(nil); len(got) > 0 {
			t.Errorf("a process without any property has %d names", len(got))
		}
		// The same reply once more changes nothing.
		if gone := a.cache.apply(entries, nil); len(gone) > 0 {
			t.Errorf("gone: %v", gone)
		}
	})
}
