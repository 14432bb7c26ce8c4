package revocation

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/revocationv1"
)

const (
	// retry is how long a Follower waits for an agent that is away, less up to a
	// half.
	retry = time.Second
	// askAgain is when to ask an agent again that knows no revocations: it may
	// have been replaced.
	askAgain = time.Minute
)

// FollowConfig is what a Follower needs.
type FollowConfig struct {
	// Address of the Workload API, as in unix:///run/writ-agent/agent.sock.
	Address string
	// MaxAge is how long ago the list may last have been known to be current; 0
	// is for ever.
	MaxAge time.Duration
	// Deny takes every SVID for revoked when the list is older than MaxAge, or
	// cannot be had. Otherwise Problem says so.
	Deny bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// Follower keeps a Set as an agent on this machine has it. Revocations that it
// knows stay in force while it hears nothing.
type Follower struct {
	cfg  FollowConfig
	conn *grpc.ClientConn
	set  Set

	mu sync.Mutex
	// state is what Problem says, "" while the list comes.
	state string
	first chan struct{}
	once  sync.Once
}

// Follow returns a Follower of the agent at the address. Its Run must be running.
func Follow(cfg FollowConfig) (*Follower, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("workload API %q: %w", cfg.Address, err)
	}
	target := "unix:" + u.Path
	if u.Scheme == "tcp" {
		target = u.Host
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// Nobody proves anything here, as on the Workload API itself: who can
	// replace the socket can replace the SVIDs.
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0))
	if err != nil {
		return nil, fmt.Errorf("workload API %q: %w", cfg.Address, err)
	}
	return &Follower{cfg: cfg, conn: conn, state: "not heard from the agent yet", first: make(chan struct{})}, nil
}

// First is closed when the list has arrived for the first time, or when it is
// known that there is none.
func (f *Follower) First() <-chan struct{} { return f.first }

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	defer f.conn.Close()
	for ctx.Err() == nil {
		err := f.watch(ctx)
		wait := retry/2 + rand.N(retry/2)
		switch status.Code(err) {
		case codes.Unimplemented:
			f.setState("not available: the agent does not know of them (stock spire-agent does not)")
			f.once.Do(func() { close(f.first) })
			wait = askAgain
		default:
			f.setState("no answer from the agent: " + status.Convert(err).Message())
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

func (f *Follower) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.conn.ResetConnectBackoff()
	stream, err := revocationv1.NewRevocationsClient(f.conn).Watch(ctx, &revocationv1.WatchRequest{}, grpc.WaitForReady(false))
	if err != nil {
		return err
	}
	for {
		u, err := stream.Recv()
		if err != nil {
			return err
		}
		if _, err := f.set.MergeUpdate(u, f.cfg.Now()); err != nil {
			f.cfg.Log.Error("revocations from the agent that are not valid", "error", err)
		}
		if !u.GetComplete() {
			continue
		}
		f.setState("")
		if at := u.GetCurrentAt(); at > 0 {
			f.set.Heard(time.Unix(0, at))
		} else {
			f.setState("not available: the issuer does not tell the agent of them")
		}
		f.once.Do(func() { close(f.first) })
	}
}

func (f *Follower) setState(state string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != state {
		f.state = state
		f.cfg.Log.Info("revocations", "state", map[bool]string{true: "followed", false: state}[state == ""])
	}
}

// CurrentAt is when the list was last known to be current; zero for never.
func (f *Follower) CurrentAt() time.Time { return f.set.CurrentAt() }

// Len is how many revocations are in force.
func (f *Follower) Len() int {
	list, _ := f.set.Now()
	return list.Len()
}

// Changed is closed when there is another list than now.
func (f *Follower) Changed() <-chan struct{} {
	_, changed := f.set.Now()
	return changed
}

// Check refuses an X509-SVID that is revoked.
func (f *Follower) Check(leaf *x509.Certificate, id spiffeid.ID) error {
	list, _ := f.set.Now()
	if r := list.X509(leaf, id); r != nil {
		return fmt.Errorf("the X509-SVID of %s is revoked: %s", id, r)
	}
	if f.cfg.Deny {
		if old := f.stale(); old != "" {
			return fmt.Errorf("whether the X509-SVID of %s is revoked is not known: %s", id, old)
		}
	}
	return nil
}

// stale says how the list is older than it may be.
func (f *Follower) stale() string {
	if f.cfg.MaxAge <= 0 {
		return ""
	}
	at := f.set.CurrentAt()
	switch age := f.cfg.Now().Sub(at); {
	case at.IsZero():
		return "revocations were never heard of"
	case age > f.cfg.MaxAge:
		return fmt.Sprintf("revocations were last heard of %s ago, more than %s", age.Round(time.Second), f.cfg.MaxAge)
	}
	return ""
}

// Problem is what an operator should know: why revocations may be missed, "" if
// they are not.
func (f *Follower) Problem() string {
	f.mu.Lock()
	state := f.state
	f.mu.Unlock()
	if old := f.stale(); old != "" {
		if state != "" {
			old += ": " + state
		}
		return old
	}
	if f.CurrentAt().IsZero() && state != "" {
		return "revocations are " + state
	}
	return ""
}
