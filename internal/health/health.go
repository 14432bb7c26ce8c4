// Package health is grpc.health.v1 over conditions. A condition says what is
// wrong now and when to ask it again, so that those who watch are told of a change
// when it happens, and nobody polls.
package health

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// State is what a condition says.
type State struct {
	// Problem is what keeps this program from serving, nil if nothing does.
	Problem error
	// Until is when time alone may make it another; zero is never.
	Until time.Time
	// Changed delivers, or is closed, when something else may have; nil is never.
	Changed <-chan struct{}
}

// Condition says how it is now.
type Condition func() State

// Server answers for a program that serves while all of its conditions are
// without a problem. All names of services stand for the program.
type Server struct {
	healthv1.UnimplementedHealthServer

	conditions []Condition

	mu       sync.Mutex
	held     map[int]bool // the conditions that hold, as Run last found them
	stopped  bool
	changed  chan struct{}
	watchers int
}

// maxWatchers is how many may watch: strangers may, too.
const maxWatchers = 1000

// New makes a Server. More conditions can be added before Run.
func New(conditions ...Condition) *Server {
	return &Server{conditions: conditions, held: map[int]bool{}, changed: make(chan struct{})}
}

// Add adds a condition. Nothing is running yet.
func (s *Server) Add(c Condition) { s.conditions = append(s.conditions, c) }

// Problems asks all conditions.
func (s *Server) Problems() []error {
	var list []error
	for _, c := range s.conditions {
		if err := c().Problem; err != nil {
			list = append(list, err)
		}
	}
	return list
}

// Run follows the conditions until ctx ends. Then those who watch are told that
// nothing is served any more, and their calls end.
func (s *Server) Run(ctx context.Context) {
	var following sync.WaitGroup
	for n := range s.conditions {
		following.Go(func() { s.follow(ctx, n) })
	}
	following.Wait()
	<-ctx.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.tell()
}

// longest is how long a timer runs: the wall clock may jump, a timer does not.
const longest = time.Minute

func (s *Server) follow(ctx context.Context, n int) {
	for {
		state := s.conditions[n]()
		s.set(n, state.Problem == nil)
		var due <-chan time.Time
		var timer *time.Timer
		if !state.Until.IsZero() {
			timer = time.NewTimer(max(10*time.Millisecond, min(time.Until(state.Until), longest)))
			due = timer.C
		}
		select {
		case <-state.Changed:
		case <-due:
		case <-ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func (s *Server) set(n int, holds bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, known := s.held[n]; !known || before != holds {
		s.held[n] = holds
		s.tell()
	}
}

// tell wakes those who watch. Hold mu.
func (s *Server) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// now is what those who watch are told, and when to look again. A program serves
// once every condition was found to hold.
func (s *Server) now() (serving, stopped bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	serving = !s.stopped && len(s.held) == len(s.conditions)
	for _, holds := range s.held {
		serving = serving && holds
	}
	return serving, s.stopped, s.changed
}

func answer(serving bool) *healthv1.HealthCheckResponse {
	if serving {
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}
	}
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}
}

// Check implements healthv1.HealthServer. It asks the conditions.
func (s *Server) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	_, stopped, _ := s.now()
	return answer(!stopped && len(s.Problems()) == 0), nil
}

// List implements healthv1.HealthServer.
func (s *Server) List(ctx context.Context, _ *healthv1.HealthListRequest) (*healthv1.HealthListResponse, error) {
	whole, err := s.Check(ctx, nil)
	return &healthv1.HealthListResponse{Statuses: map[string]*healthv1.HealthCheckResponse{"": whole}}, err
}

// enter counts those who watch, by n.
func (s *Server) enter(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers += n; s.watchers > maxWatchers {
		s.watchers -= n
		return status.Errorf(codes.ResourceExhausted, "%d watch already: ask with Check", maxWatchers)
	}
	return nil
}

// Watch implements healthv1.HealthServer.
func (s *Server) Watch(_ *healthv1.HealthCheckRequest, stream healthv1.Health_WatchServer) error {
	if err := s.enter(1); err != nil {
		return err
	}
	defer s.enter(-1)
	for first, told := true, false; ; first = false {
		serving, stopped, changed := s.now()
		if first || serving != told {
			if err := stream.Send(answer(serving)); err != nil {
				return err
			}
			told = serving
		}
		if stopped {
			return status.Error(codes.Unavailable, "stopping")
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}
