package revocation_test

import (
	"context"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-dev/writ/identity/revocation"
)

// serve is an agent's socket, with revocations unless the set is nil.
func serve(t *testing.T, socket string, set *revocation.Set) (stop func()) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	stopping := make(chan struct{})
	if set != nil {
		revocation.Register(s, set, stopping)
	}
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(ln) })
	var once sync.Once
	return func() {
		once.Do(func() { close(stopping); s.GracefulStop(); done.Wait() })
	}
}

func follow(t *testing.T, socket string, cfg revocation.FollowConfig) *revocation.Follower {
	t.Helper()
	cfg.Address = "unix://" + socket
	f, err := revocation.Follow(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { f.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return f
}

func until(t *testing.T, f *revocation.Follower, what string, holds func() bool) {
	t.Helper()
	for {
		changed := f.Changed()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not within 10 seconds", what)
		}
	}
}

func TestFollow(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	stolen, old := leaf(serial(node1), noon.Add(-time.Minute)), leaf(serial(node1), noon.Add(-time.Minute))
	var set revocation.Set
	merge := func(r *revocation.Revocation) {
		t.Helper()
		r.Expires = time.Now().Add(time.Hour)
		if _, err := set.Merge([]*revocation.Revocation{r}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	merge(bySerial(stolen.SerialNumber, 5))
	set.Heard(time.Now())
	stop := serve(t, socket, &set)
	f := follow(t, socket, revocation.FollowConfig{MaxAge: time.Minute})
	<-f.First()
	if err := f.Check(stolen, web); err == nil || !strings.Contains(err.Error(), "is revoked: serial number") {
		t.Errorf("at first: %v", err)
	}
	if f.Problem() != "" || f.CurrentAt().IsZero() {
		t.Errorf("problem %q, current at %v", f.Problem(), f.CurrentAt())
	}
	// What another issuer revokes may have a number that was there before.
	merge(byID(revocation.SPIFFEID, orders, noon, 3))
	until(t, f, "the second", func() bool { return f.Check(old, orders) != nil })

	// While the agent is away, and with one that knows less, all stay in force.
	stop()
	var less revocation.Set
	r := byID(revocation.Agent, node2, noon, 1)
	r.Expires = time.Now().Add(time.Hour)
	if _, err := less.Merge([]*revocation.Revocation{r}, time.Now()); err != nil {
		t.Fatal(err)
	}
	defer serve(t, socket, &less)()
	until(t, f, "the new agent's", func() bool { return f.Check(leaf(serial(node2), noon.Add(-time.Minute)), web) != nil })
	if f.Check(stolen, web) == nil || f.Check(old, orders) == nil || f.Len() != 3 {
		t.Error("something was taken back")
	}
}

// Stock spire-agent knows no revocations: that is said, and with deny nobody is
// let in.
func TestFollowAnAgentThatHasNone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	defer serve(t, socket, nil)()
	for deny, want := range map[bool]bool{false: true, true: false} {
		f := follow(t, socket, revocation.FollowConfig{MaxAge: time.Minute, Deny: deny})
		<-f.First()
		if err := f.Check(leaf(big.NewInt(1), noon), web); (err == nil) != want {
			t.Errorf("deny %v: %v", deny, err)
		}
		if got := f.Problem(); !strings.Contains(got, "not available") {
			t.Errorf("problem %q", got)
		}
	}
	// Without a limit on age it is said, too.
	f := follow(t, socket, revocation.FollowConfig{})
	<-f.First()
	if got := f.Problem(); !strings.Contains(got, "not available") {
		t.Errorf("problem %q", got)
	}
}

func TestStale(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	var set revocation.Set
	set.Heard(time.Now())
	defer serve(t, socket, &set)()
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	f := follow(t, socket, revocation.FollowConfig{MaxAge: time.Minute, Deny: true, Now: clock})
	<-f.First()
	good := leaf(big.NewInt(1), noon)
	if err := f.Check(good, web); err != nil || f.Problem() != "" {
		t.Fatalf("%v, %q", err, f.Problem())
	}
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	if err := f.Check(good, web); err == nil || !strings.Contains(f.Problem(), "more than 1m0s") {
		t.Errorf("%v, %q", err, f.Problem())
	}
}
