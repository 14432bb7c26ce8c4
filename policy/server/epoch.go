package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
)

// maxHeardEpochs is how far ahead of us an epoch may be that an enforcement
// point reports. Beyond, it is not believed: one of them must not be able to
// use up the epochs.
const maxHeardEpochs = 1000

// maxEpoch bounds the epoch that a person may name.
const maxEpoch = 1 << 40

// RaiseEpoch implements policyv1.Admin.
func (s *adminService) RaiseEpoch(ctx context.Context, req *policyv1.RaiseEpochRequest) (*policyv1.RaiseEpochResponse, error) {
	revision, err := s.Server.RaiseEpoch(ctx, req.Epoch, req.Reason)
	if err != nil {
		return nil, err
	}
	return &policyv1.RaiseEpochResponse{Revision: revisionProto(revision)}, nil
}

// RaiseEpoch puts what is in force under a higher epoch, so that enforcement
// points take it whatever they run; 0 is one more than the highest that was had
// or heard of. The decision key signs that it was done. The revision is zero
// when nothing is in force.
func (s *Server) RaiseEpoch(ctx context.Context, epoch uint64, reason string) (policy.Revision, error) {
	if len(reason) > maxMessage {
		return policy.Revision{}, status.Errorf(codes.InvalidArgument, "reason: longer than %d bytes", maxMessage)
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if err := s.free(); err != nil {
		return policy.Revision{}, err
	}
	return s.raiseEpoch(ctx, epoch, reason)
}

// Restored raises the epoch after a backup was restored. A rollout that ran
// when it was made is halted first. raised is whether followers will take what
// is in force from now on, whatever else went wrong.
func (s *Server) Restored(ctx context.Context, reason string) (raised bool, err error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	before, err := s.store.Epoch(ctx)
	if err != nil {
		return false, err
	}
	if s.rolling() != nil {
		if _, err := s.halt(ctx, s.cfg.Actor(ctx), reason, nil); err != nil {
			return false, err
		}
	}
	_, err = s.raiseEpoch(ctx, 0, reason)
	after, epochErr := s.store.Epoch(ctx)
	return after > before, errors.Join(err, epochErr)
}

// raiseEpoch does it; admin is held.
func (s *Server) raiseEpoch(ctx context.Context, epoch uint64, reason string) (policy.Revision, error) {
	have, err := s.store.Epoch(ctx)
	if err != nil {
		return policy.Revision{}, status.Error(codes.Internal, err.Error())
	}
	switch {
	case epoch == 0:
		// Not bounded: whatever a person named once, the next restore works.
		epoch = max(have, s.heardEpoch(have)) + 1
	case epoch <= have || epoch > maxEpoch:
		return policy.Revision{}, status.Errorf(codes.InvalidArgument, "epoch: want more than %d, the present one, and at most %d", have, uint64(maxEpoch))
	}
	info, content, err := s.get(ctx, 0)
	if err != nil && status.Code(err) != codes.NotFound {
		return policy.Revision{}, err
	}
	if err := s.raise(ctx, epoch, info.Revision, reason); err != nil {
		return policy.Revision{}, err
	}
	if info.Revision.IsZero() {
		return policy.Revision{}, nil
	}
	program, err := opa.Load(content)
	if err != nil {
		return policy.Revision{}, status.Errorf(codes.FailedPrecondition,
			"the epoch is %d now, but what is in force cannot be put under it: push a policy: %v", epoch, err)
	}
	parts, err := s.store.PartsOf(ctx, info, content)
	if err != nil {
		return policy.Revision{}, status.Error(codes.Internal, err.Error())
	}
	info, err = s.activate(ctx, &candidate{content: content, parts: parts, program: program}, revisions.Info{
		KeyID: info.KeyID, Publisher: info.Publisher, SourceCommit: info.SourceCommit, Tests: info.Tests,
		Message: cut(fmt.Sprintf("epoch raised to %d: %s", epoch, reason), maxMessage),
	})
	return info.Revision, err
}

// raise stores and records the raise; after an error nothing has changed.
func (s *Server) raise(ctx context.Context, epoch uint64, from policy.Revision, reason string) error {
	now, actor := s.cfg.Clock().UTC(), s.cfg.Actor(ctx)
	statement, err := bundle.EpochStatement{Epoch: epoch, From: from.String(), Actor: actor, Reason: reason, Raised: now}.Sign(s.cfg.DecisionKey)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "raised", Actor: actor, Object: "policy epoch", ObjectID: strconv.FormatUint(epoch, 10), Reason: reason,
		Details: [][2]string{{"from", from.String()}, {"statement", statement}},
	}
	raise := revisions.EpochRaise{Epoch: epoch, From: from, Raised: now, Actor: actor, Reason: reason, Statement: statement}
	err = s.store.RaiseEpoch(ctx, raise, func() error {
		if err := s.cfg.Emit(ctx, act); err != nil {
			return fmt.Errorf("cannot be put on record: %w", err)
		}
		return nil
	})
	if errors.Is(err, revisions.ErrEpoch) {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err != nil {
		return status.Errorf(codes.Internal, "raise epoch: %v", err)
	}
	s.cfg.Log.Warn("policy epoch raised", "epoch", epoch, "actor", actor, "reason", reason)
	return nil
}

// heardEpoch is the highest epoch that an enforcement point has told of.
func (s *Server) heardEpoch(have uint64) uint64 {
	highest := have
	for _, r := range s.Reports() {
		if epoch := r.Report.GetRevision().GetEpoch(); epoch <= have+maxHeardEpochs {
			highest = max(highest, epoch)
		}
	}
	return highest
}

// Ahead tells which enforcement points run something that this control plane
// never had and that is not older than all it has, and the newest of it. That
// is so after a backup was restored without raising the epoch: they refuse what
// they are offered.
func (s *Server) Ahead(ctx context.Context) (ids []spiffeid.ID, newest policy.Revision, err error) {
	here, err := s.store.Newest(ctx)
	if err != nil {
		return nil, policy.Revision{}, err
	}
	for _, r := range s.Reports() {
		reported := r.Report.GetRevision()
		theirs := policy.Revision{Epoch: reported.GetEpoch(), Number: reported.GetNumber()}
		copy(theirs.Digest[:], reported.GetDigest())
		if !r.Connected || theirs.IsZero() || theirs == here || here.Newer(theirs) {
			continue
		}
		ids = append(ids, r.SPIFFEID)
		if newest.IsZero() || theirs.Newer(newest) {
			newest = theirs
		}
	}
	return ids, newest, nil
}

func (s *Server) epochsProto(ctx context.Context) ([]*policyv1.EpochRaise, error) {
	raises, err := s.store.EpochRaises(ctx)
	if err != nil {
		return nil, err
	}
	var all []*policyv1.EpochRaise
	for _, r := range raises {
		all = append(all, &policyv1.EpochRaise{
			Epoch: r.Epoch, From: revisionProto(r.From), Raised: r.Raised.UnixNano(), Actor: r.Actor, Reason: r.Reason, Statement: r.Statement,
		})
	}
	return all, nil
}

// cut shortens a text to n bytes.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n-3], "") + "…"
}
