package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

// divergence is what an activation notes of contents, the candidate's own
// among them: the compiled form of one of them answered otherwise.
type divergence struct {
	detail  string
	digests [][32]byte
}

// Diverged is told when the compiled form of a revision and the evaluator were
// seen to answer differently. That is kept with the content, in force or not:
// whatever revision has it later is evaluated; see compile. If the content is in
// force or rolled out, under whatever number, the rollout is halted and what is
// in force becomes a new revision that is not compiled, with an alarm. A
// revision that was not compiled changes nothing.
func (s *Server) Diverged(ctx context.Context, revision policy.Revision, detail string) error {
	// A detail is what tells that there is a divergence.
	if detail = cut(detail, maxMessage/2); detail == "" {
		detail = "not said how"
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	info, err := s.store.Info(ctx, revision.Number)
	switch {
	case errors.Is(err, revisions.ErrNone) || err == nil && (revision.Number == 0 || info.Revision != revision):
		return nil // It was never given out here.
	case err != nil:
		return err
	case info.Engine == EngineTopdown:
		return nil
	}
	moved, err := s.moveToTopdown(ctx, revision.Digest, detail)
	if err != nil || moved {
		return err
	}
	return s.store.NoteDivergence(ctx, nil, revision.Digest, compile.Version, detail)
}

// moveToTopdown has what is in force evaluated from here on if the content that
// diverged is in force or rolled out and compiled. What is in force when a
// rollout is halted is evaluated as well, be it the other content: they are
// mostly alike, and so is what the compiler got wrong. admin is held.
func (s *Server) moveToTopdown(ctx context.Context, digest [32]byte, detail string) (moved bool, err error) {
	compiled := func(a *active) bool {
		return a != nil && a.info.Revision.Digest == digest && a.info.Engine != EngineTopdown
	}
	canary, a := s.rolling(), s.before()
	switch {
	case canary != nil && (compiled(canary) || compiled(a)):
		_, err := s.halt(ctx, itself, "compiled and evaluated answers differ: "+detail, &divergence{detail, [][32]byte{digest}})
		return err == nil, err
	case !compiled(a):
		return false, nil
	}
	program, err := opa.Load(a.content)
	if err != nil {
		return false, fmt.Errorf("policy diverged: %w", err)
	}
	alarm := identity.Act{Kind: identity.ActAlarm, Verb: "moved to topdown", Actor: itself, Object: "policy", ObjectID: a.info.Revision.String(), Reason: detail}
	c := &candidate{content: a.content, parts: a.parts, program: program, actor: itself, acts: []identity.Act{alarm}, diverged: &divergence{detail, [][32]byte{digest}}}
	_, err = s.activate(ctx, c, revisions.Info{
		Author: itself, KeyID: a.info.KeyID, Publisher: a.info.Publisher, SourceCommit: a.info.SourceCommit, Tests: a.info.Tests,
		Message: fmt.Sprintf("revision %v is evaluated, not compiled, from here on", a.info.Revision),
	})
	return err == nil, err
}

// moveKnown moves what was put in force compiled although it had diverged
// before, by a build that did not keep that.
func (s *Server) moveKnown(ctx context.Context) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	for _, a := range []*active{s.rolling(), s.before()} {
		if a == nil {
			continue
		}
		detail, err := s.store.Divergence(ctx, a.info.Revision.Digest, compile.Version)
		if err != nil {
			return err
		}
		if detail == "" {
			continue
		}
		if moved, err := s.moveToTopdown(ctx, a.info.Revision.Digest, detail); err != nil || moved {
			return err
		}
	}
	return nil
}

// evaluated is why a content is to be evaluated whatever the compiler makes of
// it, empty to have it compiled.
func (s *Server) evaluated(ctx context.Context, c *candidate) (detail string, err error) {
	if c.diverged != nil {
		return c.diverged.detail, nil
	}
	return s.store.Divergence(ctx, c.content.Digest(), compile.Version)
}

// unchanged reports whether putting the candidate in force would change nothing.
// What is evaluated because an older compiler got it wrong would be compiled
// again.
func (s *Server) unchanged(ctx context.Context, c *candidate, a *active) (bool, error) {
	if a == nil || !c.same(a) {
		return false, nil
	}
	if a.info.Diverged() == "" {
		return true, nil
	}
	detail, err := s.evaluated(ctx, c)
	return detail != "", err
}
