package collect

import (
	"context"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// raw speaks to the collector without Ship.
func raw(t *testing.T, c *collector, id spiffeid.ID) grpc.BidiStreamingClient[auditv1.AppendRequest, auditv1.AppendResponse] {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	stream, err := auditv1.NewIngestClient(dial(t, id, func() *collector { return c })).Append(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

const instance = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

func hello(epoch uint32, id spiffeid.ID) *auditv1.AppendRequest {
	start := audit.ChainStart(audit.Stream{SPIFFEID: id.String(), Instance: instance}, epoch)
	return &auditv1.AppendRequest{Kind: &auditv1.AppendRequest_Hello{Hello: &auditv1.Hello{Instance: instance, Epoch: epoch, First: 1, Chain: start[:]}}}
}

// batchOf makes n records from a sequence on, after a chain value.
func batchOf(t *testing.T, first uint64, n int, prev audit.Hash) *auditv1.Batch {
	t.Helper()
	b := audit.Batch{First: first}
	for i := range n {
		ev := audit.AppendSequence(audit.NewEncoder(nil).Append(nil, event(i)), first+uint64(i))
		b.Records = append(b.Records, &auditv1.Record{Event: ev, Salt: make([]byte, audit.SaltSize)})
	}
	if err := b.Hash(prev); err != nil {
		t.Fatal(err)
	}
	return &auditv1.Batch{First: first, Records: b.Records, Chain: b.Last[:]}
}

func request(b *auditv1.Batch) *auditv1.AppendRequest {
	return &auditv1.AppendRequest{Kind: &auditv1.AppendRequest_Batch{Batch: b}}
}

func TestDuplicates(t *testing.T) {
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	stream := raw(t, c, web)
	start := audit.ChainStart(audit.Stream{SPIFFEID: web.String(), Instance: instance}, 1)
	one := batchOf(t, 1, 5, start)
	overlap := batchOf(t, 1, 8, start)
	for _, req := range []*auditv1.AppendRequest{hello(1, web), request(one), request(one), request(overlap), request(one)} {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var last *auditv1.AppendResponse
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = resp
	}
	if last.Sequence != 8 || audit.Hash(last.Chain) != audit.Hash(overlap.Chain) {
		t.Errorf("last acknowledgement %v, want 8", last)
	}
	c.stop()
	if rep := c.verify(); rep.Events != 8 {
		t.Errorf("%d events, want 8", rep.Events)
	}
}

func TestServerRefuses(t *testing.T) {
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	start := audit.ChainStart(audit.Stream{SPIFFEID: web.String(), Instance: instance}, 1)
	good := func() *auditv1.Batch { return batchOf(t, 1, 3, start) }
	change := func(f func(*auditv1.Batch)) *auditv1.AppendRequest {
		b := good()
		f(b)
		return request(b)
	}
	other := spiffeid.RequireFromString("spiffe://example.org/svc/other")
	badHello := hello(1, web)
	badHello.GetHello().Instance = "me"
	for name, tc := range map[string]struct {
		id   spiffeid.ID
		send []*auditv1.AppendRequest
		want codes.Code
	}{
		"no identity":      {spiffeid.ID{}, []*auditv1.AppendRequest{hello(1, web)}, codes.Unauthenticated},
		"no hello":         {web, []*auditv1.AppendRequest{request(good())}, codes.InvalidArgument},
		"bad instance":     {web, []*auditv1.AppendRequest{badHello}, codes.InvalidArgument},
		"two hellos":       {web, []*auditv1.AppendRequest{hello(1, web), hello(1, web)}, codes.InvalidArgument},
		"empty":            {web, []*auditv1.AppendRequest{hello(1, web), change(func(b *auditv1.Batch) { b.Records = nil })}, codes.InvalidArgument},
		"a hole":           {web, []*auditv1.AppendRequest{hello(1, web), change(func(b *auditv1.Batch) { b.First = 2 })}, codes.FailedPrecondition},
		"short salt":       {web, []*auditv1.AppendRequest{hello(1, web), change(func(b *auditv1.Batch) { b.Records[0].Salt = []byte{1} })}, codes.InvalidArgument},
		"wrong sequence":   {web, []*auditv1.AppendRequest{hello(1, web), change(func(b *auditv1.Batch) { b.Records[1] = b.Records[0] })}, codes.InvalidArgument},
		"not an event":     {web, []*auditv1.AppendRequest{hello(1, web), change(func(b *auditv1.Batch) { b.Records[0].Event[0] = 0xff })}, codes.InvalidArgument},
		"another chain":    {web, []*auditv1.AppendRequest{hello(1, web), change(func(b *auditv1.Batch) { b.Chain = start[:] })}, codes.DataLoss},
		"chain of another": {other, []*auditv1.AppendRequest{hello(1, other), request(good())}, codes.DataLoss},
	} {
		stream := raw(t, c, tc.id)
		for _, req := range tc.send {
			// What the server makes of it, Recv tells.
			_ = stream.Send(req)
		}
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		if got := status.Code(err); got != tc.want {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if n := c.ledger.Status().Events; n != 0 {
		t.Errorf("%d events were stored", n)
	}
	c.stop()
}

// A second connection of the same recorder takes over; the first one is told.
func TestTwoConnections(t *testing.T) {
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	start := audit.ChainStart(audit.Stream{SPIFFEID: web.String(), Instance: instance}, 1)
	a, b := raw(t, c, web), raw(t, c, web)
	for _, s := range []grpc.BidiStreamingClient[auditv1.AppendRequest, auditv1.AppendResponse]{a, b} {
		if err := s.Send(hello(1, web)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Send(request(batchOf(t, 1, 3, start))); err != nil {
		t.Fatal(err)
	}
	if resp, err := b.Recv(); err != nil || resp.Sequence != 3 {
		t.Fatalf("%v, %v", resp, err)
	}
	if err := a.Send(request(batchOf(t, 1, 2, start))); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, err = a.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the first connection got %v, want Unavailable", err)
	}
	c.stop()
	if rep := c.verify(); rep.Events != 3 {
		t.Errorf("%d events, want 3", rep.Events)
	}
}
