package workload

import (
	"context"
	"sync/atomic"
	"testing"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// onDemand counts who holds something, and refuses whom it is told to.
type onDemand struct {
	*memory
	begun, held atomic.Int64
	released    chan struct{}
	refuse      atomic.Bool
}

type held struct{ *onDemand }

func (o *onDemand) Hold(_ uint32, keys bool) Hold {
	if !keys {
		return o.memory
	}
	o.begun.Add(1)
	o.held.Add(1)
	return held{o}
}

func (h held) Lookup(ctx context.Context, selectors []string) (Grant, <-chan struct{}, error) {
	if h.refuse.Load() {
		return Grant{}, nil, ErrTooMany
	}
	return h.memory.Lookup(ctx, selectors)
}

func (h held) Release() {
	h.held.Add(-1)
	h.released <- struct{}{}
}

// What is made on demand is waited for, and held for as long as a call lasts that
// needs it.
func TestHold(t *testing.T) {
	ca := newAuthority(domain)
	made := ca.identity(1, "/made", "")
	unsigned := *made
	unsigned.Chain, unsigned.Key = nil, nil
	source := &onDemand{memory: newMemory(ca, &unsigned), released: make(chan struct{}, 10)}
	source.grant.Pending = true
	_, socket := serve(t, source)
	api, ctx := raw(t, socket), secured(t.Context())

	stream, err := api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// It looks once for its kinds of selectors, and once more each time.
	source.setAndWait(func(*Grant) {})
	source.set(func(g *Grant) { g.Identities, g.Pending = []*Identity{made}, false })
	if resp, err := stream.Recv(); err != nil || len(resp.Svids) != 1 {
		t.Fatalf("got %v, %v", resp, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	// Neither JWT-SVIDs nor bundles need keys.
	if _, err := api.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"a"}}); err != nil {
		t.Error(err)
	}
	bundles, err := api.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
	if err == nil {
		_, err = bundles.Recv()
	}
	if err != nil {
		t.Error(err)
	}
	if source.begun.Load() != 1 || source.held.Load() != 1 {
		t.Errorf("%d holds, %d of them held; want one", source.begun.Load(), source.held.Load())
	}
	// What is lost is waited for as well, while it is being made.
	source.setAndWait(func(g *Grant) { g.Identities, g.Pending = []*Identity{&unsigned}, true })
	again := ca.identity(2, "/made", "")
	source.set(func(g *Grant) { g.Identities, g.Pending = []*Identity{again}, false })
	if resp, err := stream.Recv(); err != nil || string(resp.Svids[0].X509Svid) != string(again.Chain) {
		t.Fatalf("got %v, %v", resp, err)
	}
	// Who has something goes on with it while more is being made.
	source.set(func(g *Grant) {
		g.Identities, g.Pending = []*Identity{again, &unsigned, ca.identity(3, "/old", "")}, true
	})
	if resp, err := stream.Recv(); err != nil || len(resp.Svids) != 2 {
		t.Fatalf("got %v, %v", resp, err)
	}
	// What cannot be made ends the stream, and with it the hold.
	source.set(func(g *Grant) { g.Identities, g.Pending = []*Identity{&unsigned}, false })
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("ended with %v", err)
	}
	<-source.released
	source.refuse.Store(true)
	if stream, err = api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{}); err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	<-source.released
	if n := source.held.Load(); n != 0 {
		t.Errorf("%d are held", n)
	}
}
