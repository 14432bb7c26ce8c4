package workload

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/peercred"
)

// Caller is the process behind one call, attested, for as long as the call
// lasts. It is used by one goroutine.
type Caller struct {
	s         *Server
	hold      Hold
	served    bool // it had an X509-SVID
	peer      peercred.Peer
	selectors []string
	asked     int

	running string // the program, when it was attested
	next    time.Time
	timer   *time.Timer
}

// firstWait is how long a caller waits for an X509-SVID that is being made: less
// than the ten seconds that clients often have.
const firstWait = 5 * time.Second

// Caller attests the process that makes the call of ctx, and holds its X509-SVIDs
// until that ends. Its errors, as those of the methods of Caller, are what the wire
// is to see.
func (s *Server) Caller(ctx context.Context) (*Caller, error) {
	return s.caller(ctx, true)
}

// keyless is a Caller that needs no X509-SVIDs.
func (s *Server) keyless(ctx context.Context) (*Caller, error) { return s.caller(ctx, false) }

func (s *Server) caller(ctx context.Context, keys bool) (*Caller, error) {
	// What is asked for is read first: then the selectors are no older than it.
	before, _, _ := s.c.Source.Lookup(ctx, nil)
	p, _ := peercred.FromContext(ctx)
	running := s.running(p)
	p, selectors, err := s.attest(ctx)
	if err != nil {
		return nil, err
	}
	c := &Caller{s: s, peer: p, selectors: selectors, asked: before.Asked, running: running, hold: s.c.Source.Hold(p.UID, keys)}
	context.AfterFunc(ctx, c.hold.Release)
	c.schedule()
	return c, nil
}

// Grant returns what the caller may have now, which is at least one identity,
// and a channel that is closed when that may have changed. PermissionDenied
// means that it may have nothing, or nothing any more.
func (c *Caller) Grant(ctx context.Context) (Grant, <-chan struct{}, error) {
	if c.timer != nil && !time.Now().Before(c.next) {
		if err := c.reattest(ctx); err != nil {
			return Grant{}, nil, err
		}
	}
	var limit *time.Timer
	for {
		g, changed, err := c.s.grant(ctx, c.peer, c.selectors, c.hold.Lookup)
		if g.Asked > c.asked {
			c.asked = g.Asked
			if c.selectors, err = c.s.attestAgain(ctx, c.selectors); err != nil {
				return Grant{}, nil, err
			}
			continue
		}
		// Who has been served goes on with what there is while more is made.
		if err != nil || !g.Pending || c.served && g.signed() {
			c.served = true
			return g, changed, err
		}
		if limit == nil {
			limit = time.NewTimer(firstWait)
			defer limit.Stop()
		}
		select {
		case <-changed:
		case <-limit.C:
			c.served = true
			return g, changed, nil
		case <-ctx.Done():
			return Grant{}, nil, status.FromContextError(ctx.Err()).Err()
		case <-c.s.stopping:
			return Grant{}, nil, errStopping
		}
	}
}

// Due says that it is time to ask for the grant again, because the caller has
// to be looked at again.
func (c *Caller) Due() <-chan time.Time {
	if c.timer == nil {
		return nil
	}
	return c.timer.C
}

// schedule spreads what begins together, as after a restart of the agent.
func (c *Caller) schedule() {
	if interval := c.s.c.ReattestInterval; interval > 0 {
		wait := interval*9/10 + rand.N(interval/5+1)
		c.next, c.timer = time.Now().Add(wait), time.NewTimer(wait)
	}
}

// reattest looks at the caller again. What is not true of it any more is gone
// for the rest of the call; what is newly true counts only for its next call, so
// that a program never gains by a connection that another one opened.
func (c *Caller) reattest(ctx context.Context) error {
	again := c.s.c.AttestAgain
	if again == nil {
		again = func(ctx context.Context, p peercred.Peer) ([]string, []string, error) {
			now, err := c.s.c.Attest(ctx, p)
			return now, nil, err
		}
	}
	now, silent, err := again(ctx, c.peer)
	if err != nil {
		return c.s.notAttested(ctx, c.peer, err)
	}
	same := c.running != "" && c.s.running(c.peer) == c.running
	var held, lost []string
	for _, old := range c.selectors {
		// The very program that was attested: its file may be called otherwise
		// by now, or be replaced by its next version.
		typ, _, _ := strings.Cut(old, ":")
		if slices.Contains(now, old) || slices.Contains(silent, typ) || same && c.s.c.OfProgram(old) {
			held = append(held, old)
		} else {
			lost = append(lost, old)
		}
	}
	if len(lost) > 0 {
		c.s.c.Log.WarnContext(ctx, "workload is not what it was when it called", "pid", c.peer.PID, "uid", c.peer.UID, "lost", lost)
	}
	c.selectors = held
	c.schedule()
	return nil
}

// running is "" where that is not known.
func (s *Server) running(p peercred.Peer) string {
	if s.c.Running == nil {
		return ""
	}
	program, err := s.c.Running(p)
	if err != nil {
		return ""
	}
	return program
}

// Alive fails once the process has ended. Ask it last before anything is sent.
func (c *Caller) Alive() error {
	if err := c.peer.Alive(); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// PID and UID are for logs.
func (c *Caller) PID() int    { return c.peer.PID }
func (c *Caller) UID() uint32 { return c.peer.UID }

// attest finds out who calls.
func (s *Server) attest(ctx context.Context) (peercred.Peer, []string, error) {
	p, ok := peercred.FromContext(ctx)
	if !ok {
		return peercred.Peer{}, nil, status.Error(codes.Internal, "the caller is not known")
	}
	selectors, err := s.c.Attest(ctx, p)
	if err != nil {
		return peercred.Peer{}, nil, s.notAttested(ctx, p, err)
	}
	return p, selectors, nil
}

// notAttested tells the log why, and the caller that.
func (s *Server) notAttested(ctx context.Context, p peercred.Peer, err error) error {
	s.c.Log.WarnContext(ctx, "workload not attested", "pid", p.PID, "uid", p.UID, "error", err)
	return status.Error(codes.PermissionDenied, "the caller could not be attested")
}

// attestAgain finds out more about a caller. What was found before must still be
// there: a process whose file was replaced, or that runs another, is for this
// stream what it was, and never a mixture of the two.
func (s *Server) attestAgain(ctx context.Context, before []string) ([]string, error) {
	p, now, err := s.attest(ctx)
	if err != nil {
		return nil, err
	}
	for _, old := range before {
		if !slices.Contains(now, old) {
			s.c.Log.InfoContext(ctx, "workload is not what it was when it called; it keeps what it was given", "pid", p.PID, "uid", p.UID, "lost", old)
			return before, nil
		}
	}
	return now, nil
}

// grant returns what the caller may have, which is at least one identity. With
// an error it returns what is asked for, all the same.
func (s *Server) grant(ctx context.Context, p peercred.Peer, selectors []string, lookup func(context.Context, []string) (Grant, <-chan struct{}, error)) (Grant, <-chan struct{}, error) {
	g, changed, err := lookup(ctx, selectors)
	switch {
	case errors.Is(err, ErrTooMany):
		s.c.Log.WarnContext(ctx, "a user asks for too many X509-SVIDs", "pid", p.PID, "uid", p.UID)
		return Grant{}, nil, status.Errorf(codes.ResourceExhausted, "user %d asks for too many new X509-SVIDs, try again later", p.UID)
	case err != nil:
		return Grant{}, nil, status.Errorf(codes.Unavailable, "not ready: %v", err)
	case len(g.Identities) == 0:
		s.c.Log.InfoContext(ctx, "workload without identity", "pid", p.PID, "uid", p.UID, "selectors", selectors)
		return Grant{Asked: g.Asked, Cause: g.Cause}, nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	return g, changed, nil
}
