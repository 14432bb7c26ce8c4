package health

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// part is something that can break.
type part struct {
	mu      sync.Mutex
	problem error
	until   time.Time
	changed chan struct{}
}

func newPart() *part { return &part{changed: make(chan struct{})} }

func (p *part) condition() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	problem := p.problem
	if problem == nil && !p.until.IsZero() && !time.Now().Before(p.until) {
		problem = errors.New("its time has come")
	}
	s := State{Problem: problem, Changed: p.changed}
	if problem == nil {
		s.Until = p.until
	}
	return s
}

func (p *part) set(problem error, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem, p.until = problem, until
	close(p.changed)
	p.changed = make(chan struct{})
}

// serve runs s on a connection in memory.
func serve(t *testing.T, s *Server) (healthv1.HealthClient, func()) {
	t.Helper()
	memory := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	healthv1.RegisterHealthServer(g, s)
	var running sync.WaitGroup
	running.Go(func() { _ = g.Serve(memory) })
	cc, err := grpc.NewClient("passthrough:health", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return memory.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	return healthv1.NewHealthClient(cc), func() {
		cc.Close()
		g.GracefulStop() // which waits for the streams
		running.Wait()
	}
}

// A watcher is told of each change, of no other event, and of the end.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signing, database := newPart(), newPart()
		s := New(signing.condition)
		s.Add(database.condition)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx) })
		synctest.Wait()
		client, stop := serve(t, s)
		stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		told := make(chan healthv1.HealthCheckResponse_ServingStatus, 16)
		ended := make(chan error, 1)
		running.Go(func() {
			for {
				r, err := stream.Recv()
				if err != nil {
					ended <- err
					return
				}
				told <- r.Status
			}
		})
		want := func(what string, status ...healthv1.HealthCheckResponse_ServingStatus) {
			t.Helper()
			synctest.Wait()
			if len(told) != len(status) {
				t.Errorf("%s: told %d times, want %d", what, len(told), len(status))
			}
			for _, w := range status {
				if got := <-told; got != w {
					t.Errorf("%s: told %v, want %v", what, got, w)
				}
			}
			checked, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if len(status) > 0 && checked.Status != status[len(status)-1] {
				t.Errorf("%s: Check says %v", what, checked.Status)
			}
		}
		const serving, not = healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING
		want("begin", serving)
		database.set(nil, time.Now().Add(10*time.Second))
		want("nothing that matters")
		time.Sleep(9 * time.Second)
		want("not yet")
		time.Sleep(2 * time.Second)
		want("its time has come", not)
		signing.set(errors.New("no authority"), time.Time{})
		want("a second problem")
		database.set(nil, time.Time{})
		want("one of two is solved")
		if list := s.Problems(); len(list) != 1 || list[0].Error() != "no authority" {
			t.Errorf("problems: %v", list)
		}
		signing.set(nil, time.Time{})
		want("all is well", serving)
		cancel()
		want("the end", not)
		if err := <-ended; status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ends with %v", err)
		}
		stop()
		running.Wait()
	})
}

// Before the conditions were asked nobody is told that all is well, and a client
// that goes away is forgotten.
func TestWatchBeforeRun(t *testing.T) {
	s := New(newPart().condition)
	client, stop := serve(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := client.Watch(ctx, &healthv1.HealthCheckRequest{Service: "anything"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || r.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	var running sync.WaitGroup
	run, end := context.WithCancel(t.Context())
	running.Go(func() { s.Run(run) })
	if r, err := stream.Recv(); err != nil || r.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	list, err := client.List(t.Context(), &healthv1.HealthListRequest{})
	if err != nil || list.Statuses[""].GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("list: %v, %v", list, err)
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	end()
	running.Wait()
	stop()
}
