package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
)

// maxMessage bounds what a person says about a revision, bytes.
const maxMessage = 1024

type adminService struct {
	policyv1.UnimplementedAdminServer
	*Server
}

// Push implements policyv1.Admin.
func (s *adminService) Push(ctx context.Context, req *policyv1.PushRequest) (*policyv1.PushResponse, error) {
	if len(req.Message) > maxMessage {
		return nil, status.Errorf(codes.InvalidArgument, "message: longer than %d bytes", maxMessage)
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
		act := identity.Act{Kind: identity.ActPolicy, Verb: "pushed", Actor: s.cfg.Actor(ctx), Object: "policy",
			Failed: true, Reason: fmt.Sprintf("%d problems, the first: %s", len(problems), problems[0])}
		if err := s.cfg.Emit(ctx, act); err != nil {
			return nil, status.Errorf(codes.Internal, "push policy: cannot be put on record: %v", err)
		}
		return resp, nil
	}
	if a, _ := s.current(); a != nil && a.info.Revision.Digest == c.content.Digest() {
		resp.Revision, resp.Unchanged = revisionProto(a.info.Revision), true
		return resp, nil
	}
	info, err := s.activate(ctx, c, revisions.Info{KeyID: c.keyID, Message: req.Message, Tests: c.tests})
	if err != nil {
		return nil, err
	}
	resp.Revision = revisionProto(info.Revision)
	return resp, nil
}

// candidate is a content that may be put in force.
type candidate struct {
	content bundle.Content
	program *opa.Program
	keyID   string
	tests   revisions.Tests
}

// examine reads, verifies, checks and tests. With problems the candidate, if
// there is one, only carries the test counts.
func (s *Server) examine(ctx context.Context, data []byte) (*candidate, []policy.Problem, error) {
	archive, err := bundle.ReadArchive(data)
	if err != nil {
		var refused policy.Refused
		if errors.As(err, &refused) {
			return nil, refused, nil
		}
		return nil, nil, err
	}
	c := &candidate{content: archive.Content}
	if archive.Signed() || !s.cfg.AllowUnsigned {
		if c.keyID, err = archive.Verify(s.cfg.PublisherKeys, bundle.ScopeSources); err != nil {
			return nil, []policy.Problem{{Code: policy.ProblemSignature, Message: err.Error()}}, nil
		}
	}
	var problems []policy.Problem
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

// check compiles a content that is to be put in force now.
func (s *Server) check(c bundle.Content) (*opa.Program, []policy.Problem) {
	program, problems := opa.Check(c)
	if len(problems) > 0 {
		return nil, problems
	}
	return program, c.GrantedAhead(program.Catalogue(), s.cfg.Clock())
}

// activate records, stores and swaps in, in this order: after an error nothing
// has changed, and what has changed is on record.
func (s *Server) activate(ctx context.Context, c *candidate, info revisions.Info) (revisions.Info, error) {
	info.Author = s.cfg.Actor(ctx)
	info.Activated = s.cfg.Clock().UTC()
	var next *active
	recorded := false
	info, err := s.store.Add(ctx, c.content, info, func(info revisions.Info) (err error) {
		if next, err = s.ready(info, c.content, c.program); err != nil {
			return err
		}
		for _, act := range s.acts(info, next) {
			if err := s.cfg.Emit(ctx, act); err != nil {
				return fmt.Errorf("cannot be put on record: %w", err)
			}
			recorded = true
		}
		return nil
	})
	if err != nil {
		if recorded {
			// The record says that it happened; it must also say that it did not.
			act := identity.Act{Kind: identity.ActPolicy, Verb: "activated", Actor: s.cfg.Actor(ctx), Object: "policy",
				Failed: true, Reason: err.Error()}
			if emitErr := s.cfg.Emit(context.WithoutCancel(ctx), act); emitErr != nil {
				err = errors.Join(err, emitErr)
			}
		}
		return revisions.Info{}, status.Errorf(codes.Internal, "activate policy: %v", err)
	}
	s.swap(next)
	s.cfg.Log.Info("policy activated", "revision", info.Revision.String(), "author", info.Author, "key_id", info.KeyID)
	return info, nil
}

// acts are what an activation means for the record: the revision, and an alarm
// for each glass that it breaks anew.
func (s *Server) acts(info revisions.Info, next *active) []identity.Act {
	act := identity.Act{
		Kind: identity.ActPolicy, Verb: "activated", Actor: info.Author, Object: "policy", ObjectID: info.Revision.String(),
		Details: [][2]string{
			{"digest", hex.EncodeToString(info.Revision.Digest[:])},
			{"key_id", info.KeyID},
			{"message", info.Message},
			{"tests_passed", strconv.Itoa(info.Tests.Passed)},
		},
	}
	if info.RollbackOf != 0 {
		act.Verb = "rolled back"
		act.Details = append(act.Details, [2]string{"rollback_of", strconv.FormatUint(info.RollbackOf, 10)})
	}
	acts := []identity.Act{act}
	var before []bundle.BreakGlass
	if a, _ := s.current(); a != nil {
		before = a.catalogue.BreakGlass
	}
	for _, b := range next.catalogue.BreakGlass {
		known := slices.ContainsFunc(before, func(o bundle.BreakGlass) bool {
			return o.ID == b.ID && o.Service == b.Service && o.Expires.Equal(b.Expires) && slices.Equal(o.SourceIDs, b.SourceIDs)
		})
		if known || !info.Activated.Before(b.Expires) {
			continue
		}
		acts = append(acts, identity.Act{
			Kind: identity.ActAlarm, Verb: "broken", Actor: info.Author, Object: "glass", ObjectID: b.ID,
			Details: [][2]string{
				{"service", b.Service},
				{"source_ids", strings.Join(b.SourceIDs, " ")},
				{"expires", b.Expires.Format("2006-01-02T15:04:05Z07:00")},
				{"approvers", strings.Join(b.Approvers, " ")},
				{"ticket", b.Ticket},
			},
		})
	}
	return acts
}

// Rollback implements policyv1.Admin: the old content is checked again, since
// this build may know better than the one that took it, and becomes a new
// revision.
func (s *adminService) Rollback(ctx context.Context, req *policyv1.RollbackRequest) (*policyv1.RollbackResponse, error) {
	if len(req.Message) > maxMessage {
		return nil, status.Errorf(codes.InvalidArgument, "message: longer than %d bytes", maxMessage)
	}
	if req.Number == 0 {
		return nil, status.Error(codes.InvalidArgument, "number: want the revision to go back to")
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	old, content, err := s.get(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	program, problems := s.check(content)
	if len(problems) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "revision %d: %v", req.Number, policy.Refused(problems))
	}
	info, err := s.activate(ctx, &candidate{content: content, program: program},
		revisions.Info{KeyID: old.KeyID, Message: req.Message, RollbackOf: req.Number, Tests: old.Tests})
	if err != nil {
		return nil, err
	}
	return &policyv1.RollbackResponse{Revision: revisionProto(info.Revision)}, nil
}

// List implements policyv1.Admin.
func (s *adminService) List(ctx context.Context, _ *policyv1.ListRequest) (*policyv1.ListResponse, error) {
	infos, err := s.store.List(ctx)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &policyv1.ListResponse{}
	for _, info := range infos {
		resp.Revisions = append(resp.Revisions, infoProto(info))
	}
	return resp, nil
}

// Show implements policyv1.Admin.
func (s *adminService) Show(ctx context.Context, req *policyv1.ShowRequest) (*policyv1.ShowResponse, error) {
	info, content, err := s.get(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	resp := &policyv1.ShowResponse{Info: infoProto(info)}
	for _, f := range content {
		resp.Files = append(resp.Files, &policyv1.SourceFile{Path: f.Path, Content: f.Content})
	}
	return resp, nil
}

// Decide implements policyv1.Admin. An input without a time is decided now.
func (s *adminService) Decide(ctx context.Context, req *policyv1.DecideRequest) (*policyv1.DecideResponse, error) {
	in, err := policy.DecodeInput(req.Input)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if in.Time.IsZero() {
		in.Time = s.cfg.Clock().UTC()
	}
	var out policy.Decision
	if req.Number == 0 {
		s.Server.Decide(ctx, in, &out)
	} else {
		info, content, err := s.get(ctx, req.Number)
		if err != nil {
			return nil, err
		}
		a, err := s.prepare(info, content)
		if err != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "revision %d: %v", req.Number, err)
		}
		a.snapshot.Decider.Decide(ctx, in, &out)
	}
	resp := &policyv1.DecideResponse{Verdict: out.Verdict.String(), Tier: out.Tier.String(), Reason: out.Reason, Revision: revisionProto(out.Revision)}
	for _, r := range out.Rules {
		resp.Rules = append(resp.Rules, &policyv1.RuleRef{Id: r.ID, File: r.File, Line: uint32(r.Line)})
	}
	return resp, nil
}

func (s *Server) get(ctx context.Context, number uint64) (revisions.Info, bundle.Content, error) {
	info, content, err := s.store.Get(ctx, number)
	switch {
	case errors.Is(err, revisions.ErrNone) && number == 0:
		return info, nil, status.Error(codes.NotFound, "no policy in force")
	case errors.Is(err, revisions.ErrNone):
		return info, nil, status.Errorf(codes.NotFound, "no policy revision %d", number)
	case err != nil:
		return info, nil, status.Error(codes.Internal, err.Error())
	}
	return info, content, nil
}
