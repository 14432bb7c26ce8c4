package server

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
)

const (
	defaultMinDecisions = 100
	maxInstance         = 128
	// itself is the actor of what the control plane does without being asked.
	itself = "writd"
	// EngineTopdown, in revisions.Info, keeps a revision from being compiled.
	EngineTopdown = "topdown"
)

// rollout is a revision on its way, guarded by Server.mu. canary does not
// change.
type rollout struct {
	canary *active
	revisions.Running
}

// followerHash puts a follower into a place between 0 and 2^64 that stays the
// same, so that a share of the followers is a part of that range.
func followerHash(id spiffeid.ID, instance string) uint64 {
	sum := sha256.Sum256([]byte("writ rollout v1\n" + id.String() + "\n" + instance))
	return binary.BigEndian.Uint64(sum[:8])
}

// instanceOf is what a follower says to be told from its replicas.
func instanceOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get(policyv1.InstanceKey); len(values) == 1 && len(values[0]) <= maxInstance {
		return values[0]
	}
	return ""
}

// choose takes of the followers that are connected as many of the lowest hashes
// as are nearest to the share, at least one, and not all of several. Who
// connects later has it by the share of the range, so that a small fleet that
// grows keeps to the share.
func choose(hashes []uint64, percent int) (r revisions.Running) {
	r.Threshold = math.MaxUint64 / 100 * uint64(percent)
	n := len(hashes)
	if n == 0 {
		return r
	}
	r.Settled = true
	chosen := hashes[:max(1, min((n*percent+50)/100, n-1))]
	for _, hash := range chosen {
		if hash > r.Threshold {
			r.Chosen = append(r.Chosen, hash)
		}
	}
	r.Threshold = min(r.Threshold, chosen[len(chosen)-1])
	return r
}

// rolloutOf reads what an admin asked for; the zero value is everybody.
func rolloutOf(r *policyv1.Rollout) (revisions.Rollout, error) {
	switch {
	case r == nil:
		return revisions.Rollout{}, nil
	case r.Percent < 1 || r.Percent > 99:
		return revisions.Rollout{}, status.Errorf(codes.InvalidArgument, "rollout: percent: want 1 to 99, got %d", r.Percent)
	case r.MaxDenyIncrease > 1000:
		return revisions.Rollout{}, status.Errorf(codes.InvalidArgument, "rollout: max_deny_increase: want at most 1000 per mille, got %d", r.MaxDenyIncrease)
	case r.MinDecisions > math.MaxInt64:
		return revisions.Rollout{}, status.Errorf(codes.InvalidArgument, "rollout: min_decisions: too many")
	}
	out := revisions.Rollout{Percent: int(r.Percent), MaxDenyIncrease: int(r.MaxDenyIncrease), MinDecisions: r.MinDecisions}
	if out.MinDecisions == 0 {
		out.MinDecisions = defaultMinDecisions
	}
	return out, nil
}

// rolling is the revision that is rolled out, nil for none.
func (s *Server) rolling() *active {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rollout == nil {
		return nil
	}
	return s.rollout.canary
}

// free refuses what cannot be done while a rollout runs.
func (s *Server) free() error {
	if a := s.rolling(); a != nil {
		return status.Errorf(codes.FailedPrecondition,
			"revision %v is being rolled out: end that first (policyctl policy promote, or policyctl policy halt)", a.info.Revision)
	}
	return nil
}

// offered is what a follower is to run, and a channel that is closed when that
// may change. Who runs the revision that is rolled out keeps it.
func (s *Server) offered(p *peer) (*active, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rollout; r != nil && (r.Has(p.hash) || s.peers.runs(p, r.Number)) {
		return r.canary, s.changed
	}
	return s.active, s.changed
}

// settle gives a rollout that has found no follower yet to this one.
func (s *Server) settle(ctx context.Context, p *peer) {
	s.mu.Lock()
	r := s.rollout
	if r == nil || r.Settled {
		s.mu.Unlock()
		return
	}
	if r.Settled = true; !r.Has(p.hash) {
		r.Chosen = append(r.Chosen, p.hash)
	}
	now := r.Running
	s.mu.Unlock()
	if err := s.store.SettleRollout(ctx, now); err != nil {
		s.cfg.Log.Error("a restart may choose other followers for the rollout", "error", err)
	}
}

// prepareRollout fills in what activate needs to start one.
func (s *Server) prepareRollout(c *candidate, info *revisions.Info, asked revisions.Rollout) error {
	if asked.Percent == 0 {
		return nil
	}
	if a, _ := s.current(); a == nil {
		return status.Error(codes.FailedPrecondition, "nothing is in force: a rollout needs something to go back to")
	}
	info.Stage, info.Rollout = revisions.Canary, asked
	c.running = choose(s.peers.hashes(), asked.Percent)
	return nil
}

// resume finds the rollout that ran when the control plane stopped.
func (s *Server) resume(ctx context.Context) error {
	running, err := s.store.Running(ctx)
	if errors.Is(err, revisions.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	info, content, err := s.store.Get(ctx, running.Number)
	if err != nil {
		return err
	}
	parts, err := s.store.PartsOf(ctx, info, content)
	if err != nil {
		return err
	}
	a, err := s.prepare(ctx, info, content, parts)
	if err != nil {
		// Nobody can be given it, and nothing else can be pushed beside it.
		s.cfg.Log.Error("policy that is rolled out cannot be prepared: going back", "revision", info.Revision.String(), "error", err)
		a = &active{info: info}
	}
	s.rollout = &rollout{canary: a, Running: running}
	if err == nil {
		return nil
	}
	reason := "it cannot be prepared: " + err.Error()
	if s.before() == nil {
		return s.giveUp(ctx, info.Revision, reason)
	}
	_, err = s.halt(ctx, itself, reason, nil)
	return err
}

// giveUp ends a rollout where neither it nor what was in force before can be
// prepared: followers keep what they have, and a push mends it.
func (s *Server) giveUp(ctx context.Context, canary policy.Revision, reason string) error {
	err := s.store.EndRollout(ctx, nil, revisions.Halted, func() error {
		return s.cfg.Emit(ctx, identity.Act{Kind: identity.ActAlarm, Verb: "halted", Actor: itself, Object: "policy rollout",
			ObjectID: canary.String(), Reason: reason, Details: [][2]string{{"why", reason}}})
	})
	if err != nil {
		return fmt.Errorf("end policy rollout: %w", err)
	}
	s.rollout = nil
	return nil
}

// Promote implements policyv1.Admin.
func (s *adminService) Promote(ctx context.Context, _ *policyv1.PromoteRequest) (*policyv1.PromoteResponse, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	a := s.rolling()
	if a == nil {
		return nil, status.Error(codes.FailedPrecondition, "no revision is being rolled out")
	}
	err := s.store.EndRollout(ctx, nil, revisions.All, func() error {
		return s.cfg.Emit(ctx, identity.Act{Kind: identity.ActPolicy, Verb: "promoted", Actor: s.cfg.Actor(ctx), Object: "policy", ObjectID: a.info.Revision.String()})
	})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "promote policy: %v", err)
	}
	s.parts = a.parts
	s.swap(a)
	s.outdate(context.WithoutCancel(ctx))
	s.cfg.Log.Info("policy promoted", "revision", a.info.Revision.String())
	return &policyv1.PromoteResponse{Revision: revisionProto(a.info.Revision)}, nil
}

// Halt implements policyv1.Admin.
func (s *adminService) Halt(ctx context.Context, req *policyv1.HaltRequest) (*policyv1.HaltResponse, error) {
	if err := checkWords(req.Reason, ""); err != nil {
		return nil, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.rolling() == nil {
		return nil, status.Error(codes.FailedPrecondition, "no revision is being rolled out")
	}
	info, err := s.halt(ctx, s.cfg.Actor(ctx), req.Reason, nil)
	if err != nil {
		return nil, err
	}
	return &policyv1.HaltResponse{Revision: revisionProto(info.Revision), Engine: info.Engine, EngineReason: info.EngineReason}, nil
}

// halt gives everybody the content from before the rollout as a new revision.
// It takes no approvals: that content was in force. diverged is nil, or why it is
// not to be compiled. admin is held.
func (s *Server) halt(ctx context.Context, actor, reason string, diverged *divergence) (revisions.Info, error) {
	canary, before := s.rolling(), s.before()
	if before == nil {
		return revisions.Info{}, status.Error(codes.FailedPrecondition, "what was in force before the rollout cannot be prepared: promote it, or run the build that took it")
	}
	program, err := opa.Load(before.content)
	if err != nil {
		return revisions.Info{}, status.Errorf(codes.Internal, "halt rollout: %v", err)
	}
	act := identity.Act{Kind: identity.ActPolicy, Verb: "halted", Actor: actor, Object: "policy rollout", ObjectID: canary.info.Revision.String(), Details: [][2]string{{"why", reason}}}
	if actor == itself {
		act.Kind, act.Reason = identity.ActAlarm, reason
	}
	c := &candidate{content: before.content, parts: before.parts, program: program, actor: actor, acts: []identity.Act{act}, halts: true}
	if diverged != nil {
		c.diverged = &divergence{diverged.detail, append(slices.Clone(diverged.digests), before.info.Revision.Digest)}
	}
	return s.activate(ctx, c, revisions.Info{
		Author: actor, KeyID: before.info.KeyID, Publisher: before.info.Publisher, SourceCommit: before.info.SourceCommit, Tests: before.info.Tests,
		RollbackOf: before.info.Revision.Number, Message: cut(fmt.Sprintf("rollout of %v halted: %s", canary.info.Revision, reason), maxMessage),
	})
}

// before is what is in force for those who do not have the rollout.
func (s *Server) before() *active {
	a, _ := s.current()
	return a
}

// endRollout is halt's part of the transaction.
func (s *Server) endRollout(ctx context.Context, tx *sql.Tx) error {
	return s.store.EndRollout(ctx, tx, revisions.Halted, func() error { return nil })
}

// haltFor halts the rollout of a revision for a reason that a follower gave, if
// it still runs.
func (s *Server) haltFor(ctx context.Context, revision policy.Revision, reason string) {
	s.admin.Lock()
	defer s.admin.Unlock()
	if a := s.rolling(); a == nil || a.info.Revision != revision {
		return
	}
	if _, err := s.halt(ctx, itself, reason, nil); err != nil {
		s.cfg.Log.Error("rollout cannot be halted", "revision", revision.String(), "reason", reason, "error", err)
	}
}

// judge finds a reason to halt the rollout in what a follower has just
// reported; empty for none.
func (s *Server) judge(p *peer) (revision policy.Revision, reason string) {
	s.mu.Lock()
	r, before := s.rollout, s.active
	s.mu.Unlock()
	if r == nil || before == nil {
		return policy.Revision{}, ""
	}
	revision = r.canary.info.Revision
	if refused := s.peers.refusedOffer(p, revision); refused != "" {
		return revision, fmt.Sprintf("%s refused it: %s", p.id, refused)
	}
	asked := r.canary.info.Rollout
	if asked.MaxDenyIncrease == 0 {
		return revision, ""
	}
	here, there := s.peers.shares(revision, before.info.Revision, asked.MinDecisions)
	if here.Decisions < asked.MinDecisions || there.Decisions == 0 {
		return revision, ""
	}
	if here.share()-there.share() > float64(asked.MaxDenyIncrease)/1000 {
		return revision, fmt.Sprintf("%v are denied there, %v elsewhere", here, there)
	}
	return revision, ""
}

// Share is how many decisions were made, and how many of them not to allow.
type Share struct{ Decisions, Denied uint64 }

func (s Share) share() float64 {
	if s.Decisions == 0 {
		return 0
	}
	return float64(s.Denied) / float64(s.Decisions)
}

func (s Share) String() string {
	return fmt.Sprintf("%.1f%% of %d decisions", 100*s.share(), s.Decisions)
}

// RolloutStatus is how a rollout stands.
type RolloutStatus struct {
	Revision  policy.Revision
	Percent   int
	Started   time.Time
	Followers int
	// Chosen of the followers are offered the revision, Running report it.
	Chosen, Running int
	// Here is what those with the revision say, There the others.
	Here, There Share
}

func (r *RolloutStatus) String() string {
	return fmt.Sprintf("revision %v is for %d%% of the followers: %d of %d have it, %d run it; denied are %v there, %v elsewhere",
		r.Revision, r.Percent, r.Chosen, r.Followers, r.Running, r.Here, r.There)
}

// Rollout is the one that runs, nil for none.
func (s *Server) Rollout() *RolloutStatus {
	s.mu.Lock()
	r, before := s.rollout, s.active
	if r == nil {
		s.mu.Unlock()
		return nil
	}
	running := r.Running
	s.mu.Unlock()
	info := r.canary.info
	out := &RolloutStatus{Revision: info.Revision, Percent: info.Rollout.Percent, Started: info.Activated}
	for _, hash := range s.peers.hashes() {
		if out.Followers++; running.Has(hash) {
			out.Chosen++
		}
	}
	for _, p := range s.peers.list() {
		if p.Connected && p.Report.GetRevision().GetNumber() == info.Revision.Number {
			out.Running++
		}
	}
	if before != nil {
		out.Here, out.There = s.peers.shares(info.Revision, before.info.Revision, info.Rollout.MinDecisions)
	}
	return out
}
