package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	parts, err := s.store.PartsOf(ctx, old, content)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	program, problems := s.check(content)
	if len(problems) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "revision %d: %v", req.Number, policy.Refused(problems))
	}
	if need := s.required(program.Catalogue(), "", ""); !need.none() {
		return nil, s.mustPropose(ctx, "rolled back", need)
	}
	info, err := s.activate(ctx, &candidate{content: content, parts: parts, program: program}, revisions.Info{
		KeyID: old.KeyID, Publisher: old.Publisher, SourceCommit: old.SourceCommit, Message: req.Message,
		RollbackOf: req.Number, Tests: old.Tests,
	})
	if err != nil {
		return nil, err
	}
	return &policyv1.RollbackResponse{Revision: revisionProto(info.Revision), Engine: info.Engine, EngineReason: info.EngineReason}, nil
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
	if resp.Epochs, err = s.epochsProto(ctx); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return resp, nil
}

// Show implements policyv1.Admin.
func (s *adminService) Show(ctx context.Context, req *policyv1.ShowRequest) (*policyv1.ShowResponse, error) {
	info, content, err := s.get(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	parts, err := s.store.PartsOf(ctx, info, content)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &policyv1.ShowResponse{Info: infoProto(info)}
	resp.Files = filesProto(content, parts)
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
		program, err := opa.Load(content)
		if err != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "revision %d: %v", req.Number, err)
		}
		snapshot, err := s.snapshot(info, program)
		if err != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "revision %d: %v", req.Number, err)
		}
		snapshot.Decider.Decide(ctx, in, &out)
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
