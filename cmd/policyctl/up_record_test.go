package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/mesh"
)

// broadcast is a collector of which each Tail ends after the events that a
// test gave it.
type broadcast struct {
	auditv1.UnimplementedAdminServer
	tails chan []*auditv1.StoredRecord
}

func (b *broadcast) Tail(_ *auditv1.TailRequest, stream grpc.ServerStreamingServer[auditv1.TailResponse]) error {
	if err := stream.Send(&auditv1.TailResponse{}); err != nil {
		return err
	}
	select {
	case records := <-b.tails:
		for _, r := range records {
			if err := stream.Send(&auditv1.TailResponse{Record: r}); err != nil {
				return err
			}
		}
		return errors.New("the server is going down")
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func stored(t *testing.T, id string, event *auditv1.Event) *auditv1.StoredRecord {
	t.Helper()
	data, err := proto.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	return &auditv1.StoredRecord{DecisionId: id, Record: &auditv1.Record{Event: data}}
}

func TestVerdictsComeFromTheRecord(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	b := &broadcast{tails: make(chan []*auditv1.StoredRecord, 2)}
	srv := grpc.NewServer()
	auditv1.RegisterAdminServer(srv, b)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	conn, err := grpc.NewClient("unix:"+ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	lost := make(chan error, 10)
	back := make(chan struct{}, 10)
	tail := newRecordTail(auditv1.NewAdminClient(conn), func(err error) { lost <- err }, func() { back <- struct{}{} })
	subscribed := make(chan struct{})
	wg.Go(func() { tail.follow(ctx, subscribed) })
	t.Cleanup(func() { cancel(); conn.Close(); srv.Stop(); wg.Wait() })
	<-subscribed

	b.tails <- []*auditv1.StoredRecord{
		{DecisionId: "broken", Record: &auditv1.Record{Event: []byte{0xff}}},
		stored(t, "one", &auditv1.Event{Kind: auditv1.Kind_KIND_DECISION, Outcome: auditv1.Outcome_OUTCOME_ALLOW, Rules: []*auditv1.Rule{{Id: "a"}, {Id: "b"}}}),
	}
	r, err := tail.find(ctx, byDecision("one"))
	if err != nil {
		t.Fatal(err)
	}
	if r.verdict() != mesh.Allowed || r.rule() != "a, b" {
		t.Errorf("verdict %q by %q", r.verdict(), r.rule())
	}
	// The stream ends and is opened again.
	if err := <-lost; err == nil {
		t.Error("no reason")
	}
	<-back
	b.tails <- []*auditv1.StoredRecord{
		stored(t, "two", &auditv1.Event{
			Kind: auditv1.Kind_KIND_CONNECTION, Outcome: auditv1.Outcome_OUTCOME_REFUSED, Tier: auditv1.Tier_TIER_ENFORCEMENT,
			Destination: &auditv1.Destination{Service: "shop"}, Connection: &auditv1.Connection{PeerPort: 4711},
		}),
	}
	o := outcome{status: -1, ports: map[int]bool{4711: true}, err: errors.New("remote error: tls: certificate required")}
	if r, err = o.onRecord(ctx, tail, "shop"); err != nil {
		t.Fatal(err)
	}
	if r.verdict() != mesh.Refused || r.rule() != "enforcement" {
		t.Errorf("verdict %q by %q", r.verdict(), r.rule())
	}
	if _, err := (&outcome{status: 200}).onRecord(ctx, tail, "shop"); !errors.Is(err, errNoEvent) {
		t.Errorf("a response without a decision: %v", err)
	}
	gone, cancelGone := context.WithCancel(ctx)
	cancelGone()
	if _, err := tail.find(gone, byDecision("three")); err == nil {
		t.Error("found what nobody sent")
	}
}

// gone is a collector that cannot be reached until a given time; from then on
// it takes each stream and drops it at once.
type gone struct {
	auditv1.AdminClient
	until time.Time
	// unreachable and taken count the attempts.
	unreachable, taken int
}

func (g *gone) Tail(context.Context, *auditv1.TailRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[auditv1.TailResponse], error) {
	if time.Now().Before(g.until) {
		g.unreachable++
		return nil, errors.New("unavailable")
	}
	g.taken++
	return &dropped{}, nil
}

type dropped struct {
	grpc.ServerStreamingClient[auditv1.TailResponse]
	received bool
}

func (d *dropped) Recv() (*auditv1.TailResponse, error) {
	if d.received {
		return nil, errors.New("going down")
	}
	d.received = true
	return &auditv1.TailResponse{}, nil
}

func TestBrokenTailBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const minute = time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), 2*minute)
		defer cancel()
		g := &gone{until: time.Now().Add(minute)}
		var lostEarly, lost, back int
		newRecordTail(g, func(error) {
			if lost++; time.Now().Before(g.until) {
				lostEarly++
			}
		}, func() { back++ }).follow(ctx, make(chan struct{}))
		if lostEarly != 1 || g.unreachable > 18 {
			t.Errorf("said %d times that it is lost, after %d attempts in a minute", lostEarly, g.unreachable)
		}
		// A stream that breaks off at once is no reason to hurry.
		if lost != back+1 || back != g.taken || back == 0 || g.taken > 13 {
			t.Errorf("then lost %d times, back %d times, in %d attempts", lost, back, g.taken)
		}
	})
}

func TestVerdict(t *testing.T) {
	for outcome, want := range map[auditv1.Outcome]string{
		auditv1.Outcome_OUTCOME_ALLOW: "allow", auditv1.Outcome_OUTCOME_DENY: "deny", auditv1.Outcome_OUTCOME_REFUSED: "refused",
		auditv1.Outcome_OUTCOME_UNDEFINED: "error", auditv1.Outcome_OUTCOME_ERROR: "error", auditv1.Outcome_OUTCOME_UNSPECIFIED: "error",
	} {
		if got := (&recorded{event: &auditv1.Event{Outcome: outcome}}).verdict(); got != want {
			t.Errorf("%s is %q, want %q", outcome, got, want)
		}
	}
	tier := &recorded{event: &auditv1.Event{Tier: auditv1.Tier_TIER_DEFAULT_DENY}}
	if tier.rule() != "default-deny" {
		t.Errorf("rule %q", tier.rule())
	}
}
