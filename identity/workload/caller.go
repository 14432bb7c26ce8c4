package workload

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/peercred"
)

// Caller is the process behind one call, attested, for as long as the call
// lasts. It is used by one goroutine.
type Caller struct {
	s         *Server
	peer      peercred.Peer
	selectors []string
	asked     int
}

// Caller attests the process that makes the call of ctx. Its errors, as those of
// the methods of Caller, are what the wire is to see.
func (s *Server) Caller(ctx context.Context) (*Caller, error) {
	// What is asked for is read first: then the selectors are no older than it.
	before, _, _ := s.c.Source.Lookup(nil)
	p, selectors, err := s.attest(ctx)
	if err != nil {
		return nil, err
	}
	return &Caller{s: s, peer: p, selectors: selectors, asked: before.Asked}, nil
}

// Grant returns what the caller may have now, which is at least one identity,
// and a channel that is closed when that may have changed. PermissionDenied
// means that it may have nothing, or nothing any more.
func (c *Caller) Grant(ctx context.Context) (Grant, <-chan struct{}, error) {
	for {
		g, changed, err := c.s.grant(ctx, c.peer, c.selectors)
		if g.Asked <= c.asked {
			return g, changed, err
		}
		c.asked = g.Asked
		if c.selectors, err = c.s.attestAgain(ctx, c.selectors); err != nil {
			return Grant{}, nil, err
		}
	}
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
		s.c.Log.WarnContext(ctx, "workload not attested", "pid", p.PID, "uid", p.UID, "error", err)
		return peercred.Peer{}, nil, status.Error(codes.PermissionDenied, "the caller could not be attested")
	}
	return p, selectors, nil
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
func (s *Server) grant(ctx context.Context, p peercred.Peer, selectors []string) (Grant, <-chan struct{}, error) {
	g, changed, err := s.c.Source.Lookup(selectors)
	switch {
	case err != nil:
		return Grant{}, nil, status.Errorf(codes.Unavailable, "not ready: %v", err)
	case len(g.Identities) == 0:
		s.c.Log.InfoContext(ctx, "workload without identity", "pid", p.PID, "uid", p.UID, "selectors", selectors)
		return Grant{Asked: g.Asked}, nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	return g, changed, nil
}
