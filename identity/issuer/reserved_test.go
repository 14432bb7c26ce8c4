package issuer_test

import (
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// Whoever has a name has what hangs below it. So a remote administrator gets no
// name, by token, entry or update, above one of the control plane's.
func TestNamesAboveReserved(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	boss := w.asWorkload(t, "/boss")
	e := entry("/boss", "/node/a", "uid:1")
	e.Admin = true
	w.create(e, entry("/rack", "/node/b", "uid:1"), entry("/writ/server", "/rack", "uid:1"),
		entry("/rack", "/writ/server", "uid:2"), // a cycle ends
		entry("/node/b", "/spire/server", "uid:1"), entry("/svc/web", "/node/a", "uid:1"))
	mine := w.create(entry("/mine", "/node/a", "uid:1"))[0]
	for _, path := range []string{"/rack", "/node/b"} {
		_, err := boss.agents().CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{AgentId: id(path)})
		wantCode(t, err, codes.PermissionDenied)
		made, err := boss.entries().BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{entry(path, "/node/mine", "uid:9")}})
		must(t, err)
		if made.Results[0].Status.Code != int32(codes.PermissionDenied) {
			t.Errorf("a remote administrator made %s: %v", path, made.Results[0])
		}
		upd, err := boss.entries().BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
			Entries: []*types.Entry{{Id: mine.Id, SpiffeId: id(path)}}, InputMask: &types.EntryMask{SpiffeId: true},
		})
		must(t, err)
		if upd.Results[0].Status.Code != int32(codes.PermissionDenied) {
			t.Errorf("a remote administrator renamed an entry to %s: %v", path, upd.Results[0])
		}
		list, err := w.entries().ListEntries(ctx, &entryv1.ListEntriesRequest{Filter: &entryv1.ListEntriesRequest_Filter{BySpiffeId: id(path), ByParentId: id("/node/b")}})
		must(t, err)
		for _, e := range list.Entries {
			upd, err := boss.entries().BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
				Entries: []*types.Entry{{Id: e.Id, ParentId: id("/node/a")}}, InputMask: &types.EntryMask{ParentId: true},
			})
			must(t, err)
			if upd.Results[0].Status.Code != int32(codes.PermissionDenied) {
				t.Errorf("a remote administrator moved %s to his node: %v", path, upd.Results[0])
			}
		}
	}
	// Names that lead nowhere special are his to give; a local administrator's
	// are all.
	_, err := boss.agents().CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{AgentId: id("/node/a")})
	must(t, err)
	made, err := boss.entries().BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{entry("/svc/api", "/node/b", "uid:9")}})
	must(t, err)
	if made.Results[0].Status.Code != 0 {
		t.Errorf("refused without need: %v", made.Results[0])
	}
	w.create(entry("/node/b", "/node/c", "uid:9"))
	w.token("/node/b")
}

// A token made before there was anything below its alias is no way around that.
func TestTokenOlderThanReserved(t *testing.T) {
	w := newWorld(t)
	boss := w.asWorkload(t, "/boss")
	e := entry("/boss", "/node/a", "uid:1")
	e.Admin = true
	w.create(e)
	tok, err := boss.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{AgentId: id("/node/b")})
	must(t, err)
	local := w.token("/node/b")
	own := w.create(entry("/writ/server", "/node/b", "uid:1"))[0]
	_, err = w.tryJoin(tok.Value)
	wantCode(t, err, codes.PermissionDenied)
	w.join(local)
	w.deleteEntry(own.Id)
	w.join(tok.Value) // it was refused, not used up
}
