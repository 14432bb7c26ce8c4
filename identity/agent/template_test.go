package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/workload"
)

// An issuer that signs no instances keeps nobody else from being served: who waits
// for one is told soon, and entries are renewed.
func TestInstancesThatAreNotSigned(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.life, b.f.templates = time.Minute, []*templatev1.Template{{Id: "t", SpiffeId: "spiffe://example.org/user/{unix:user}", Revision: 1, CreatedAt: 1}}
		b.f.stop()
		b.f.start()
		b.mustRun()
		for _, err := range []error{status.Error(codes.Unavailable, "busy"), status.Error(codes.ResourceExhausted, "too many"), nil} {
			b.f.with(func() { b.f.fail["NewX509SVIDs"] = err }) // nil: it has no such method
			h := b.agent.Hold(1, true)
			began := time.Now()
			for {
				g, changed, err := h.Lookup(t.Context(), []string{"unix:user:anna"})
				if err != nil || len(g.Identities) != 1 || g.Identities[0].Chain != nil {
					t.Fatalf("got %+v, %v", g, err)
				}
				if !g.Pending {
					break
				}
				<-changed
			}
			if waited := time.Since(began); waited > 10*time.Second {
				t.Errorf("%v: told after %v", err, waited)
			}
			for range 8 {
				<-time.After(10 * time.Second)
				if leaf, _ := b.web(); leaf == nil {
					t.Fatalf("%v: an entry has no SVID after %v", err, time.Since(began))
				}
			}
			h.Release()
		}
	})
}

// A stock issuer has no templates, and is not asked at each sync.
func TestStockIssuerHasNoTemplates(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.noWatch = true
		b.f.stop()
		b.f.start()
		b.mustRun()
		<-time.After(time.Minute)
		if asked, syncs := b.f.count("Authorized"), b.f.count("SyncAuthorizedEntries"); asked != 1 || syncs < 10 {
			t.Errorf("asked %d times in %d syncs", asked, syncs)
		}
		<-time.After(unwatchedRetry)
		if asked := b.f.count("Authorized"); asked != 2 {
			t.Errorf("asked %d times in the end, want 2: it may have been upgraded", asked)
		}
		if leaf, _ := b.web(); leaf == nil || b.agent.Status().Templates != 0 {
			t.Error("entries do not work")
		}
	})
}

// Templates that the agent has are not sent again, and are when they have changed.
func TestTemplatesAreSentOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		one := &templatev1.Template{Id: "t", SpiffeId: "spiffe://example.org/user/{unix:user}", Revision: 1, CreatedAt: 1}
		bad := &templatev1.Template{Id: "bad", SpiffeId: "?"}
		b.f.templates = []*templatev1.Template{one, bad, one}
		b.f.stop()
		b.f.start()
		b.mustRun()
		until := func(what string, is func(workload.Grant) bool) {
			t.Helper()
			for {
				g, changed := b.lookup("unix:user:anna")
				if is(g) {
					return
				}
				select {
				case <-changed:
				case <-time.After(10 * time.Second): // of the bubble
					t.Fatalf("%s: never, and there are %v", what, names(g))
				}
			}
		}
		named := func(want string) func(workload.Grant) bool {
			return func(g workload.Grant) bool { return slices.Equal(names(g), []string{want}) }
		}
		until("at first", named("/user/anna"))
		for n := range 5 {
			before := b.agent.Status().Entries
			b.f.with(func() { // something else, which has the agent sync
				b.f.entries = append(b.f.entries, &types.Entry{Id: fmt.Sprint("more", n), SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/more"}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:9"}}, RevisionNumber: 1})
			})
			until("another entry", func(workload.Grant) bool { return b.agent.Status().Entries > before })
			until("with it", named("/user/anna"))
		}
		if asked, full := b.f.count("Authorized"), b.f.count("Authorized in full"); asked < 6 || full != 1 {
			t.Errorf("sent %d times of %d", full, asked)
		}
		b.f.with(func() {
			next := proto.CloneOf(one)
			next.SpiffeId, next.Revision = "spiffe://example.org/person/{unix:user}", 2
			b.f.templates = []*templatev1.Template{next}
		})
		until("another pattern", named("/person/anna"))
		if full := b.f.count("Authorized in full"); full != 2 {
			t.Errorf("sent %d times, want 2", full)
		}
	})
}
