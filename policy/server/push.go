package server

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/program"
)

// commitName is what names a commit: git's hashes, and names of other systems.
var commitName = regexp.MustCompile(`^[0-9A-Za-z._/:+-]{0,128}$`)

// Push implements policyv1.Admin.
func (s *adminService) Push(ctx context.Context, req *policyv1.PushRequest) (*policyv1.PushResponse, error) {
	if err := checkWords(req.Message, req.SourceCommit); err != nil {
		return nil, err
	}
	asked, err := rolloutOf(req.Rollout)
	if err != nil {
		return nil, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	c, problems, err := s.examine(ctx, req.Bundle)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "push policy: %v", err)
	}
	resp := &policyv1.PushResponse{Problems: problemsProto(problems)}
	if c != nil {
		resp.Tests = testsProto(c.tests)
	}
	switch {
	case req.DryRun:
		return resp, nil
	case len(problems) > 0:
		if err := s.refused(ctx, "pushed", problems); err != nil {
			return nil, err
		}
		return resp, nil
	}
	a, _ := s.current()
	if same, err := s.unchanged(ctx, c, a); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	} else if same {
		resp.Revision, resp.Unchanged = revisionProto(a.info.Revision), true
		return resp, nil
	}
	if need := s.required(c.program.Catalogue(), c.pushed.KeyID, c.pushed.Publisher); !need.none() {
		return nil, s.mustPropose(ctx, "pushed", need)
	}
	info := c.info(revisions.Info{Message: req.Message, SourceCommit: req.SourceCommit})
	if err := s.prepareRollout(c, &info, asked); err != nil {
		return nil, err
	}
	if info, err = s.activate(ctx, c, info); err != nil {
		return nil, err
	}
	resp.Revision, resp.Engine, resp.EngineReason = revisionProto(info.Revision), info.Engine, info.EngineReason
	return resp, nil
}

func checkWords(message, commit string) error {
	if len(message) > maxMessage {
		return status.Errorf(codes.InvalidArgument, "message: longer than %d bytes", maxMessage)
	}
	if !commitName.MatchString(commit) {
		return status.Error(codes.InvalidArgument, "source_commit: want at most 128 letters, digits and . _ / : + -")
	}
	return nil
}

// refused puts on record that something was asked for and not done.
func (s *Server) refused(ctx context.Context, verb string, problems []policy.Problem) error {
	act := identity.Act{Kind: identity.ActPolicy, Verb: verb, Actor: s.cfg.Actor(ctx), Object: "policy",
		Failed: true, Reason: fmt.Sprintf("%d problems, the first: %s", len(problems), problems[0])}
	if err := s.cfg.Emit(ctx, act); err != nil {
		return status.Errorf(codes.Internal, "cannot be put on record: %v", err)
	}
	return nil
}

// mustPropose refuses what takes approvals.
func (s *Server) mustPropose(ctx context.Context, verb string, need requirement) error {
	reason := strings.Join(need.because(), "; ")
	act := identity.Act{Kind: identity.ActPolicy, Verb: verb, Actor: s.cfg.Actor(ctx), Object: "policy", Failed: true, Reason: reason}
	if err := s.cfg.Emit(ctx, act); err != nil {
		return status.Errorf(codes.Internal, "cannot be put on record: %v", err)
	}
	return status.Errorf(codes.FailedPrecondition, "%s: propose it (policyctl policy propose), have it approved, then activate it", reason)
}

// candidate is a content that may be put in force.
type candidate struct {
	content bundle.Content
	parts   []bundle.Part
	program *opa.Program
	// compiled is nil where the evaluator is to decide alone; see compile.
	compiled *program.Program
	// pushed is the part that is new.
	pushed bundle.Part
	tests  revisions.Tests

	// running is how it is rolled out, if it is.
	running revisions.Running
	// halts is set on what ends a rollout.
	halts bool
	// actor, when not empty, is who does it if nobody asked for it.
	actor string
	// acts go on record with the activation.
	acts []identity.Act
	// diverged, when set, is why it is not compiled, and noted with it.
	diverged *divergence
}

// info fills in what the candidate knows of itself.
func (c *candidate) info(info revisions.Info) revisions.Info {
	info.KeyID, info.Publisher, info.Tests = c.pushed.KeyID, c.pushed.Publisher, c.tests
	return info
}

// same reports whether the candidate would change nothing: neither the content
// nor who vouches for it.
func (c *candidate) same(a *active) bool {
	if a.info.Revision.Digest != c.content.Digest() || len(a.parts) != len(c.parts) {
		return false
	}
	for i, p := range c.parts {
		if p.Publisher != a.parts[i].Publisher || p.KeyID != a.parts[i].KeyID {
			return false
		}
	}
	return true
}

// examine reads and verifies a publisher's part, puts it in the place of what
// that publisher has in force, and checks and tests the whole. With problems
// the candidate, if there is one, only carries the test counts.
func (s *Server) examine(ctx context.Context, data []byte) (*candidate, []policy.Problem, error) {
	archive, err := bundle.ReadArchive(data)
	if err != nil {
		var refused policy.Refused
		if errors.As(err, &refused) {
			return nil, refused, nil
		}
		return nil, nil, err
	}
	owner, part, problems := s.verify(archive)
	if len(problems) > 0 {
		return nil, problems, nil
	}
	c := &candidate{pushed: part}
	if problems = owner.Check(part.Content); len(problems) > 0 {
		return nil, problems, nil
	}
	if c.content, c.parts, problems = owner.Merge(s.parts, part); len(problems) > 0 {
		return nil, problems, nil
	}
	if c.program, problems = s.check(c.content); len(problems) > 0 {
		return nil, problems, nil
	}
	report, err := c.program.Test(ctx, opa.TestOptions{})
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		return nil, []policy.Problem{{Code: policy.ProblemTest, Message: err.Error()}}, nil
	}
	c.tests = revisions.Tests{Passed: report.Passed, Failed: report.Failed, Skipped: report.Skipped}
	return c, report.Problems(), nil
}

// verify finds out whose part this is.
func (s *Server) verify(archive *bundle.Archive) (*owners.Owner, bundle.Part, []policy.Problem) {
	part := bundle.Part{Content: archive.Content, Signatures: archive.Signatures()}
	owner := owners.One(owners.Unsigned, nil).ByName(owners.Unsigned)
	if archive.Signed() || !s.cfg.AllowUnsigned {
		id, err := archive.Verify(s.cfg.Publishers.Keys(), bundle.ScopeSources)
		if err != nil {
			return nil, part, []policy.Problem{{Code: policy.ProblemSignature, Message: err.Error()}}
		}
		part.KeyID, owner = id, s.cfg.Publishers.ByKey(id)
	}
	part.Publisher = owner.Name()
	return owner, part, nil
}

// check compiles a content that is to be put in force now.
func (s *Server) check(c bundle.Content) (*opa.Program, []policy.Problem) {
	program, problems := opa.Check(c)
	if len(problems) > 0 {
		return nil, problems
	}
	return program, c.GrantedAhead(program.Catalogue(), s.cfg.Clock())
}
