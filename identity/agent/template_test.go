package agent

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/templatev1"
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
				g, changed, err := h.Lookup([]string{"unix:user:anna"})
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
