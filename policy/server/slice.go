package server

import (
	"context"
	"crypto"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

// Slice implements policyv1.Admin: what a workload gets, as it gets it.
func (s *adminService) Slice(ctx context.Context, req *policyv1.SliceRequest) (*policyv1.SliceResponse, error) {
	id, err := spiffeid.FromString(req.SpiffeId)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
	}
	a, _ := s.current()
	if req.Number != 0 || a == nil {
		info, content, err := s.get(ctx, req.Number)
		if err != nil {
			return nil, err
		}
		if a == nil || a.info.Revision != info.Revision {
			if a, err = s.prepare(ctx, info, content, nil); err != nil {
				return nil, status.Errorf(codes.FailedPrecondition, "revision %d: %v", info.Revision.Number, err)
			}
		}
	}
	sealed, err := a.slice(id, s.cfg.DecisionKey)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &policyv1.SliceResponse{Revision: revisionProto(a.info.Revision), Bundle: sealed}, nil
}

// sources seals what the publishers signed for a follower that trusts only
// them. It is not kept: of those followers there are as many as streams, and
// their envelopes differ. The parts are packed once, since any workload can ask.
func (a *active) sources(id spiffeid.ID, key crypto.Signer) ([]byte, error) {
	packed, err := a.packed()
	if err != nil {
		return nil, err
	}
	src := &bundle.Sources{Revision: a.info.Revision, Activated: a.info.Activated, SPIFFEID: id, Parts: a.parts, Packed: packed, Evaluate: a.compiled == nil}
	return src.Seal(key)
}
