package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// What an entry's old selectors matched holds its key. Those whom the new ones
// match wait for a key of their own; a change of anything else costs nobody.
func TestChangedEntryIsSignedAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.entries = append(b.f.entries, entryOf("e2", "/svc/api", "unix:uid:2", "unix:gid:2"))
		b.mustRun()
		change := func(n int, change func(*types.Entry)) {
			b.f.with(func() {
				e := proto.CloneOf(b.f.entries[n])
				e.RevisionNumber++
				change(e)
				b.f.entries[n] = e
			})
			<-time.After(time.Second)
		}
		b.f.with(func() { b.f.fail["BatchNewX509SVID"] = status.Error(codes.Unavailable, "busy") })
		change(1, func(e *types.Entry) { e.Hint = "h"; slices.Reverse(e.Selectors) })
		if g, _ := b.lookup("unix:uid:2", "unix:gid:2"); len(g.Identities) != 1 || g.Identities[0].Chain == nil || g.Identities[0].Hint != "h" {
			t.Errorf("after a change of the hint: %+v", g.Identities)
		}
		change(0, func(e *types.Entry) { e.Selectors[0].Value = "uid:3" })
		if g, _ := b.lookup("unix:uid:3"); len(g.Identities) != 1 || g.Identities[0].Chain != nil || g.Identities[0].Key != nil {
			t.Errorf("another workload's SVID was handed on: %+v", g.Identities)
		}
		b.f.with(func() { delete(b.f.fail, "BatchNewX509SVID") })
		<-time.After(time.Minute)
		if g, _ := b.lookup("unix:uid:3"); len(g.Identities) != 1 || g.Identities[0].Chain == nil {
			t.Errorf("not signed later: %+v", g.Identities)
		}
	})
}
