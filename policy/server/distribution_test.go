package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/follow"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// follower runs a follower; what it activates arrives on the channel.
func (p *plane) follower(dir, id string) (*follow.Follower, <-chan *policy.Snapshot, func()) {
	p.t.Helper()
	activated := make(chan *policy.Snapshot, 2000)
	f, err := follow.New(follow.Config{
		Conn: p.dial(id), Keys: p.keys, Dir: dir, Service: "orders",
		SPIFFEID: func() spiffeid.ID { return spiffeid.RequireFromString(id) },
		Activate: func(s *policy.Snapshot) { activated <- s },
		Log:      slog.New(slog.DiscardHandler), DecisionTimeout: time.Minute,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(ctx); !errors.Is(err, context.Canceled) {
			p.t.Errorf("run: %v", err)
		}
	}()
	var once sync.Once
	stop := func() { once.Do(func() { cancel(); <-done }) }
	p.t.Cleanup(stop)
	return f, activated, stop
}

const ordersID = "spiffe://example.org/svc/orders"

func TestDistribution(t *testing.T) {
	p := newPlane(t, func(c *server.Config) { c.Heartbeat = 5 * time.Millisecond })
	p.push(sources("GET"))
	f, activated, stop := p.follower(t.TempDir(), ordersID)
	first := <-activated
	if first.Revision != p.server.Active().Revision || len(first.Services) != 1 {
		t.Errorf("first slice: %v with %v", first.Revision, first.Services)
	}
	if v := verdict(first.Decider, request("orders", "GET")); v != policy.Allow {
		t.Errorf("orders: %v", v)
	}
	if v := verdict(first.Decider, request("payments", "GET")); v != policy.Deny {
		t.Errorf("payments in the slice of orders: %v", v)
	}
	p.push(sources("POST"))
	second := <-activated
	if second.Revision.Number != 2 || verdict(second.Decider, request("orders", "GET")) != policy.Deny {
		t.Errorf("second slice: %v", second.Revision)
	}
	// The acknowledgement travels by itself; heartbeats carry it again.
	p.await(func(r []server.PeerReport) bool {
		return len(r) == 1 && r[0].Report.Revision.GetNumber() == 2 && r[0].Connected && r[0].SPIFFEID.String() == ordersID
	})
	if f.LastContact().IsZero() {
		t.Error("no contact")
	}
	stop()
	p.await(func(r []server.PeerReport) bool { return len(r) == 1 && !r[0].Connected })
}

// TestPeersAreBounded: one workload can neither hold any number of streams nor
// be remembered under any number of names, and takes nothing from others.
func TestPeersAreBounded(t *testing.T) {
	p := newPlane(t, nil)
	conn := p.dial(ordersID)
	watch := func(ctx context.Context, conn *grpc.ClientConn, service string) error {
		t.Helper()
		stream, err := policyv1.NewDistributionClient(conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&policyv1.WatchRequest{Report: &policyv1.Report{Service: service}}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return stream.RecvMsg(&policyv1.Slice{})
	}
	// With a policy in force each stream is answered, and so is connected.
	p.push(sources("GET"))
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 64 {
		if err := watch(ctx, conn, fmt.Sprintf("s%d", i)); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := watch(ctx, conn, "orders"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	if err := watch(t.Context(), p.dial("spiffe://example.org/svc/payments"), "payments"); err != nil {
		t.Errorf("another workload: %v", err)
	}
	cancel()
	p.await(func(r []server.PeerReport) bool { return len(r) == 9 && !r[0].Connected && r[8].Connected })
	if err := watch(t.Context(), conn, "orders"); err != nil {
		t.Errorf("after they left: %v", err)
	}
}

func TestWatchNeedsAnIdentityAndAReport(t *testing.T) {
	p := newPlane(t, nil)
	for _, tt := range []struct {
		peer string
		req  *policyv1.WatchRequest
		want codes.Code
	}{
		{"", &policyv1.WatchRequest{Report: &policyv1.Report{}}, codes.Unauthenticated},
		{ordersID, &policyv1.WatchRequest{}, codes.InvalidArgument},
	} {
		stream, err := policyv1.NewDistributionClient(p.dial(tt.peer)).Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(tt.req); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != tt.want {
			t.Errorf("got %v, want %v", err, tt.want)
		}
	}
}

// TestActivationUnderEvaluation: revisions come and go while they decide, and
// leave no goroutine behind.
func TestActivationUnderEvaluation(t *testing.T) {
	const rounds = 50
	p := newPlane(t, func(c *server.Config) { c.AllowUnsigned = true })
	p.push(sources("GET"))
	_, activated, _ := p.follower(t.TempDir(), ordersID)
	s := <-activated
	// Decide while revisions come and go; every answer is one of a revision.
	var mu sync.Mutex
	ctx, cancel := context.WithCancel(t.Context())
	var deciding sync.WaitGroup
	for range 2 {
		deciding.Go(func() {
			for ctx.Err() == nil {
				mu.Lock()
				current := s
				mu.Unlock()
				a, b := verdict(current.Decider, request("orders", "GET")), verdict(current.Decider, request("orders", "POST"))
				if a == b {
					t.Errorf("revision %v gives %v and %v", current.Revision, a, b)
				}
			}
		})
	}
	before := runtime.NumGoroutine()
	for i := range rounds {
		c := sources([]string{"POST", "GET"}[i%2])
		resp, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(c, nil)})
		if err != nil || resp.Revision == nil {
			t.Fatal(resp, err)
		}
		// A follower that is behind may skip revisions, never the last.
		if i%10 == 9 {
			for {
				next := <-activated
				mu.Lock()
				s = next
				mu.Unlock()
				if next.Revision.Number == resp.Revision.Number {
					break
				}
			}
		}
	}
	if after := runtime.NumGoroutine(); after > before+5 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
	cancel()
	deciding.Wait()
}
