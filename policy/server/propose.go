package server

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
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

// maxOpenProposals bounds what is looked at after each activation.
const maxOpenProposals = 64

// Propose implements policyv1.Admin: everything that a push does but putting it
// in force.
func (s *adminService) Propose(ctx context.Context, req *policyv1.ProposeRequest) (*policyv1.ProposeResponse, error) {
	if err := checkWords(req.Message, req.SourceCommit); err != nil {
		return nil, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	c, problems, err := s.examine(ctx, req.Bundle)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "propose policy: %v", err)
	}
	resp := &policyv1.ProposeResponse{Problems: problemsProto(problems)}
	if c != nil {
		resp.Tests = testsProto(c.tests)
	}
	if len(problems) > 0 {
		if err := s.refused(ctx, "proposed", problems); err != nil {
			return nil, err
		}
		return resp, nil
	}
	a, _ := s.current()
	if same, err := s.unchanged(ctx, c, a); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	} else if same {
		return nil, status.Errorf(codes.FailedPrecondition, "revision %v, which is in force, is just this", a.info.Revision)
	}
	needs := s.required(c.program.Catalogue(), c.pushed.KeyID, c.pushed.Publisher)
	if err := s.cannotSign(needs); err != nil {
		return nil, err
	}
	open, err := s.store.Proposals(ctx, revisions.ProposalOpen)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if len(open) >= maxOpenProposals {
		return nil, status.Errorf(codes.ResourceExhausted, "%d proposals are open: withdraw those that nobody wants", len(open))
	}
	p := revisions.Proposal{
		Digest: c.content.Digest(), Bundle: req.Bundle, Author: s.cfg.Actor(ctx), Publisher: c.pushed.Publisher, KeyID: c.pushed.KeyID,
		Message: req.Message, SourceCommit: req.SourceCommit, Proposed: s.cfg.Clock().UTC(), Tests: c.tests,
	}
	if a != nil {
		p.Base = a.info.Revision
	}
	p, err = s.store.Propose(ctx, p, func(p revisions.Proposal) error {
		return s.emitProposal(ctx, p, "proposed", "", [2]string{"message", p.Message}, [2]string{"source_commit", p.SourceCommit})
	})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "propose policy: %v", err)
	}
	resp.Proposal = s.proposalProto(p, needs)
	return resp, nil
}

// emitProposal puts on record what happened to a proposal; with a reason, that
// it was refused.
func (s *Server) emitProposal(ctx context.Context, p revisions.Proposal, verb, refused string, details ...[2]string) error {
	act := identity.Act{
		Kind: identity.ActPolicy, Verb: verb, Actor: s.cfg.Actor(ctx), Object: "policy proposal", ObjectID: strconv.FormatUint(p.Number, 10),
		Failed: refused != "", Reason: refused,
		Details: append([][2]string{{"digest", hex.EncodeToString(p.Digest[:])}, {"publisher", p.Publisher}, {"key_id", p.KeyID}}, details...),
	}
	if err := s.cfg.Emit(ctx, act); err != nil {
		return fmt.Errorf("cannot be put on record: %w", err)
	}
	return nil
}

// refuse puts a refusal on record and is its error.
func (s *Server) refuse(ctx context.Context, p revisions.Proposal, verb, reason string) error {
	if err := s.emitProposal(ctx, p, verb, reason); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return status.Errorf(codes.FailedPrecondition, "proposal %d: %s", p.Number, reason)
}

// open returns a proposal that is open.
func (s *Server) open(ctx context.Context, number uint64) (revisions.Proposal, error) {
	p, err := s.proposal(ctx, number)
	if err == nil && p.State != revisions.ProposalOpen {
		why := p.State
		if p.State == revisions.ProposalOutdated {
			why = "outdated, because another revision came between: propose it again"
		}
		err = status.Errorf(codes.FailedPrecondition, "proposal %d is %s", number, why)
	}
	return p, err
}

func (s *Server) proposal(ctx context.Context, number uint64) (revisions.Proposal, error) {
	p, err := s.store.Proposal(ctx, number)
	switch {
	case errors.Is(err, revisions.ErrNoProposal):
		return p, status.Errorf(codes.NotFound, "no policy proposal %d", number)
	case err != nil:
		return p, status.Error(codes.Internal, err.Error())
	}
	return p, nil
}

// Approve implements policyv1.Admin.
func (s *adminService) Approve(ctx context.Context, req *policyv1.ApproveRequest) (*policyv1.ApproveResponse, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	p, err := s.open(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	id, err := bundle.VerifyApproval(req.Signature, s.approverKeys(), approved(p))
	if err == nil {
		err = s.ownApproval(p, id)
	}
	if err != nil {
		return nil, s.refuse(ctx, p, "approved", err.Error())
	}
	a := revisions.Approval{Approver: s.approver(id), KeyID: id, Actor: s.cfg.Actor(ctx), Time: s.cfg.Clock().UTC(), Signature: req.Signature}
	err = s.store.Approve(ctx, p.Number, a, func() error {
		return s.emitProposal(ctx, p, "approved", "", [2]string{"approver", a.Approver}, [2]string{"approver_key_id", a.KeyID})
	})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "approve policy: %v", err)
	}
	shown, err := s.shown(ctx, p.Number)
	if err != nil {
		return nil, err
	}
	return &policyv1.ApproveResponse{Proposal: shown}, nil
}

// Withdraw implements policyv1.Admin.
func (s *adminService) Withdraw(ctx context.Context, req *policyv1.WithdrawRequest) (*policyv1.WithdrawResponse, error) {
	if err := checkWords(req.Reason, ""); err != nil {
		return nil, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	p, err := s.open(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	err = s.store.Settle(ctx, p.Number, revisions.ProposalWithdrawn, func() error {
		return s.emitProposal(ctx, p, "withdrawn", "", [2]string{"why", req.Reason})
	})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "withdraw proposal: %v", err)
	}
	shown, err := s.shown(ctx, p.Number)
	if err != nil {
		return nil, err
	}
	return &policyv1.WithdrawResponse{Proposal: shown}, nil
}

// Activate implements policyv1.Admin. Everything is examined again: keys, grants
// and the time are those of today.
func (s *adminService) Activate(ctx context.Context, req *policyv1.ActivateRequest) (*policyv1.ActivateResponse, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	asked, err := rolloutOf(req.Rollout)
	if err != nil {
		return nil, err
	}
	p, err := s.open(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	c, problems, err := s.examine(ctx, p.Bundle)
	switch {
	case err != nil:
		return nil, status.Errorf(codes.Internal, "activate proposal: %v", err)
	case len(problems) > 0:
		return nil, s.refuse(ctx, p, "activated", policy.Refused(problems).Error())
	case c.content.Digest() != p.Digest:
		return nil, s.refuse(ctx, p, "activated", "it would not give what was proposed any more: propose it again")
	}
	approvals := s.valid(p)
	if missing := s.required(c.program.Catalogue(), c.pushed.KeyID, c.pushed.Publisher).missing(approvals); len(missing) > 0 {
		return nil, s.refuse(ctx, p, "activated", strings.Join(missing, "; "))
	}
	info := c.info(revisions.Info{Author: p.Author, Message: p.Message, SourceCommit: p.SourceCommit, Proposal: p.Number, Approvals: approvals})
	if err := s.prepareRollout(c, &info, asked); err != nil {
		return nil, err
	}
	if info, err = s.activate(ctx, c, info); err != nil {
		return nil, err
	}
	return &policyv1.ActivateResponse{Revision: revisionProto(info.Revision), Engine: info.Engine, EngineReason: info.EngineReason}, nil
}

// Proposals implements policyv1.Admin.
func (s *adminService) Proposals(ctx context.Context, _ *policyv1.ProposalsRequest) (*policyv1.ProposalsResponse, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	all, err := s.store.Proposals(ctx)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &policyv1.ProposalsResponse{}
	for _, p := range all {
		shown := s.proposalProto(p, requirement{})
		if p.State == revisions.ProposalOpen {
			if shown, err = s.shown(ctx, p.Number); err != nil {
				return nil, err
			}
		}
		resp.Proposals = append(resp.Proposals, shown)
	}
	return resp, nil
}

// ShowProposal implements policyv1.Admin.
func (s *adminService) ShowProposal(ctx context.Context, req *policyv1.ShowProposalRequest) (*policyv1.ShowProposalResponse, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	p, err := s.proposal(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	shown, err := s.shown(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	content, err := s.proposed(ctx, p)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "proposal %d: %v", p.Number, err)
	}
	return &policyv1.ShowProposalResponse{Proposal: shown, Files: filesProto(content, nil)}, nil
}

// proposed is the whole content that a proposal was made for: its part in what
// was in force then.
func (s *Server) proposed(ctx context.Context, p revisions.Proposal) (bundle.Content, error) {
	if p.Revision != 0 {
		_, content, err := s.store.Get(ctx, p.Revision)
		return content, err
	}
	var base []bundle.Part
	if p.Base.Number != 0 {
		var err error
		if base, err = s.store.Parts(ctx, p.Base.Number); err != nil {
			return nil, err
		}
	}
	content, err := s.merged(p, base)
	if err == nil && content.Digest() != p.Digest {
		err = errors.New("who may push what was configured otherwise when it was made")
	}
	return content, err
}

// merged is what a proposal gives over parts.
func (s *Server) merged(p revisions.Proposal, parts []bundle.Part) (bundle.Content, error) {
	archive, err := bundle.ReadArchive(p.Bundle)
	if err != nil {
		return nil, err
	}
	owner, part, problems := s.verify(archive)
	if len(problems) > 0 {
		return nil, policy.Refused(problems)
	}
	content, _, problems := owner.Merge(parts, part)
	if len(problems) > 0 {
		return nil, policy.Refused(problems)
	}
	return content, nil
}

// outdate settles the proposals that would not give what was proposed over what
// is in force now.
func (s *Server) outdate(ctx context.Context) {
	open, err := s.store.Proposals(ctx, revisions.ProposalOpen)
	if err != nil {
		s.cfg.Log.Error("open proposals cannot be looked at; activating one will", "error", err)
		return
	}
	for _, p := range open {
		p, err := s.store.Proposal(ctx, p.Number)
		if err == nil {
			var content bundle.Content
			if content, err = s.merged(p, s.parts); err == nil && content.Digest() == p.Digest {
				continue
			}
			err = s.store.Settle(ctx, p.Number, revisions.ProposalOutdated, func() error { return s.emitProposal(ctx, p, "outdated", "") })
		}
		if err != nil {
			s.cfg.Log.Error("a proposal that is outdated stays open; activating it is refused", "proposal", p.Number, "error", err)
		}
	}
}

// shown is a proposal with what it needs.
func (s *Server) shown(ctx context.Context, number uint64) (*policyv1.Proposal, error) {
	p, err := s.proposal(ctx, number)
	if err != nil {
		return nil, err
	}
	need := requirement{approvals: s.cfg.Approvals}
	if p.State == revisions.ProposalOpen {
		p.Approvals = s.valid(p)
		// It was checked when it was proposed; here it is only read.
		if content, err := s.merged(p, s.parts); err == nil {
			if program, err := opa.Load(content); err == nil {
				need = s.required(program.Catalogue(), p.KeyID, p.Publisher)
			}
		}
	}
	return s.proposalProto(p, need), nil
}

func (s *Server) proposalProto(p revisions.Proposal, need requirement) *policyv1.Proposal {
	out := &policyv1.Proposal{
		Number: p.Number, Digest: p.Digest[:], Author: p.Author, Publisher: p.Publisher, KeyId: p.KeyID, Message: p.Message,
		SourceCommit: p.SourceCommit, Proposed: p.Proposed.UnixNano(), Approvals: approvalsProto(p.Approvals),
		Tests: testsProto(p.Tests), State: p.State, Base: revisionProto(p.Base),
	}
	if p.State == revisions.ProposalOpen {
		out.ApprovalsRequired, out.RequiredBecause = uint32(need.count()), need.because()
	}
	if p.Revision != 0 {
		out.Revision = &policyv1.Revision{Epoch: p.Base.Epoch, Number: p.Revision, Digest: p.Digest[:]}
	}
	return out
}

// markActivated settles the proposal that a revision was, in its transaction.
func (s *Server) markActivated(ctx context.Context, tx *sql.Tx, info revisions.Info) error {
	if info.Proposal == 0 {
		return nil
	}
	return s.store.Activated(ctx, tx, info.Proposal, info.Revision.Number)
}
