// Package recheck decides a sample of what enforcement points decided again,
// by OPA's evaluator alone, and compares.
//
// Enforcement points decide by a compiled form that was proved equal to the
// evaluator, as far as tests prove anything. The sample is what watches over it
// in production: at the first difference an alarm goes up, and the policy is
// moved to the evaluator. A difference can also mean that an enforcement point
// does not enforce what it was given, which the alarm is for as well.
package recheck

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

const (
	// DefaultPerSecond bounds what the sample costs: an evaluation takes 0.1 ms
	// to some ms.
	DefaultPerSecond = 50
	// queued decisions wait for their turn; what comes then is not looked at.
	queued = 64
	// prepared revisions. During a rollout there are two.
	prepared = 3
	// timeout of one evaluation, far above an enforcement point's, so that what
	// it takes does not look like a difference.
	timeout = 5 * time.Second
)

// Recorded is a decision on record.
type Recorded struct {
	ID string
	// By is who decided: a recorder's stream.
	By       string
	Input    *policy.Input
	Decision policy.Decision
	// Missing names what the record does not hold as it was.
	Missing []string
}

// Policy is told when a revision is not decided as its sources say: the policy
// server, which halts a rollout and moves the policy to the evaluator.
type Policy interface {
	Diverged(ctx context.Context, revision policy.Revision, detail string) error
}

// Config is what a Sampler is made of.
type Config struct {
	// Every nth decision is looked at, by chance; 1 is all.
	Every int
	// PerSecond bounds them; DefaultPerSecond when 0.
	PerSecond int
	// Content gives the sources of a revision.
	Content func(context.Context, policy.Revision) (bundle.Content, error)
	// Agrees compares a recorded decision with one made again.
	Agrees func(recorded, again *policy.Decision) bool
	// Policy is told once per revision; it may be nil.
	Policy Policy
	// Emit puts an alarm on record, once per revision.
	Emit identity.Emit
	// Actor is who raises it.
	Actor string
	Log   *slog.Logger
	// Clock is time.Now when nil.
	Clock func() time.Time
}

// Counts says what became of decisions since the start.
type Counts struct {
	// Agreed and Diverged were decided again.
	Agreed, Diverged uint64
	// Skipped cannot be decided again: something is missing, the enforcement
	// point denied by itself, its evaluation had failed, or it looked outside of
	// the input, which is not done here.
	Skipped uint64
	// Unknown were decided by a revision whose sources are not here.
	Unknown uint64
	// Dropped were due when there were too many.
	Dropped uint64
}

// Sampler decides a sample again. Due and Offer never wait; Run does the work.
type Sampler struct {
	cfg   Config
	limit *rate.Limiter
	queue chan func() (Recorded, error)

	agreed, diverged, skipped, unknown, dropped atomic.Uint64

	// The rest is Run's.
	cache []entry
	// alarmed and told hold the revisions of which it was said already.
	alarmed, told map[policy.Revision]bool
}

// entry is a prepared revision; the snapshot is nil where it could not be.
type entry struct {
	revision policy.Revision
	snapshot *policy.Snapshot
}

// New makes a Sampler.
func New(cfg Config) (*Sampler, error) {
	if cfg.Every < 1 || cfg.PerSecond < 0 || cfg.Content == nil || cfg.Agrees == nil || cfg.Emit == nil || cfg.Log == nil {
		return nil, errors.New("recheck: incomplete configuration")
	}
	if cfg.PerSecond == 0 {
		cfg.PerSecond = DefaultPerSecond
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Sampler{
		cfg: cfg, limit: rate.NewLimiter(rate.Limit(cfg.PerSecond), cfg.PerSecond),
		queue:   make(chan func() (Recorded, error), queued),
		alarmed: map[policy.Revision]bool{}, told: map[policy.Revision]bool{},
	}, nil
}

// Due reports whether the decision at hand is one of the sample. It is cheap,
// so that everything else can be left undone when it is not.
func (s *Sampler) Due() bool {
	if s.cfg.Every > 1 && rand.IntN(s.cfg.Every) > 0 {
		return false
	}
	if !s.limit.AllowN(s.cfg.Clock(), 1) {
		s.dropped.Add(1)
		return false
	}
	return true
}

// Offer hands in a decision that was due. open is called later, by Run.
func (s *Sampler) Offer(open func() (Recorded, error)) {
	select {
	case s.queue <- open:
	default:
		s.dropped.Add(1)
	}
}

// Counts may be asked for at any time.
func (s *Sampler) Counts() Counts {
	return Counts{
		Agreed: s.agreed.Load(), Diverged: s.diverged.Load(), Skipped: s.skipped.Load(),
		Unknown: s.unknown.Load(), Dropped: s.dropped.Load(),
	}
}

// Run decides what is offered until ctx ends.
func (s *Sampler) Run(ctx context.Context) {
	for {
		select {
		case open := <-s.queue:
			s.one(ctx, open)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Sampler) one(ctx context.Context, open func() (Recorded, error)) {
	r, err := open()
	if err != nil || !exact(&r) {
		s.skipped.Add(1)
		return
	}
	snapshot := s.snapshot(ctx, r.Decision.Revision)
	if snapshot == nil {
		s.unknown.Add(1)
		return
	}
	var again policy.Decision
	start := time.Now()
	snapshot.Decider.Decide(ctx, r.Input, &again)
	switch {
	case ctx.Err() != nil:
		return
	case again.Verdict == policy.Error && time.Since(start) >= timeout, again.Unasked != "":
		s.skipped.Add(1)
	case s.cfg.Agrees(&r.Decision, &again):
		s.agreed.Add(1)
	default:
		s.diverged.Add(1)
		s.differs(ctx, snapshot, &r, &again)
	}
}

// exact reports whether making the decision again must give the same.
func exact(r *Recorded) bool {
	switch {
	case r.Input == nil || len(r.Missing) > 0 || r.Decision.Revision.IsZero():
		return false
	case r.Decision.Verdict == policy.Deny && r.Decision.Tier == policy.Enforcement:
		return false // By no policy.
	}
	// An error may have been of its moment: a timeout, a caller who left.
	return r.Decision.Verdict != policy.Error
}

// snapshot prepares the sources of a revision for the evaluator, nil where they
// are not to be had. The last few are kept.
func (s *Sampler) snapshot(ctx context.Context, r policy.Revision) *policy.Snapshot {
	for i, e := range s.cache {
		if e.revision == r { // Not its digest alone: a recorder may make up a number.
			copy(s.cache[1:i+1], s.cache[:i])
			s.cache[0] = e
			return e.snapshot
		}
	}
	content, err := s.cfg.Content(ctx, r)
	if err != nil {
		s.cfg.Log.Debug("recorded decisions cannot be checked", "revision", r.String(), "error", err)
		return nil
	}
	e := entry{revision: r}
	if e.snapshot, err = prepare(content, r); err != nil {
		s.cfg.Log.Error("recorded decisions cannot be checked", "revision", r.String(), "error", err)
	}
	s.cache = append([]entry{e}, s.cache[:min(len(s.cache), prepared-1)]...)
	return e.snapshot
}

func prepare(content bundle.Content, r policy.Revision) (*policy.Snapshot, error) {
	if content.Digest() != r.Digest {
		return nil, errors.New("the content is not the revision's")
	}
	program, err := opa.Load(content)
	if err != nil {
		return nil, err
	}
	return program.Snapshot(opa.SnapshotConfig{Revision: r, Timeout: timeout})
}

// differs logs every difference, and raises an alarm and tells the policy
// server at the first of a revision. What fails is tried again at the next. What
// was not recorded by the service itself, which alone decides by policy, is an
// alarm and no more: not every workload is to move policy to the evaluator.
func (s *Sampler) differs(ctx context.Context, snapshot *policy.Snapshot, r *Recorded, again *policy.Decision) {
	revision := r.Decision.Revision
	recorded, now := describe(&r.Decision), describe(again)
	s.cfg.Log.Error("a decision is not what its policy says", "decision_id", r.ID, "by", r.By, "revision", revision.String(),
		"recorded", recorded, "evaluated", now)
	detail := fmt.Sprintf("decision %s by %s: recorded %s, evaluated %s", r.ID, r.By, recorded, now)
	if !s.alarmed[revision] {
		err := s.cfg.Emit(ctx, identity.Act{
			Kind: identity.ActAlarm, Verb: "diverged", Actor: s.cfg.Actor, Object: "policy", ObjectID: revision.String(), Reason: detail,
			Details: [][2]string{{"decision_id", r.ID}, {"by", r.By}, {"recorded", recorded}, {"evaluated", now}},
		})
		if err != nil {
			s.cfg.Log.Error("the alarm could not be recorded", "error", err)
		} else {
			s.alarmed[revision] = true
		}
	}
	if s.cfg.Policy == nil || s.told[revision] || !ownDecision(snapshot, r) {
		return
	}
	if err := s.cfg.Policy.Diverged(ctx, revision, detail); err != nil {
		s.cfg.Log.Error("the policy could not be moved to the evaluator", "revision", revision.String(), "error", err)
		return
	}
	s.told[revision] = true
}

// ownDecision reports whether who recorded a decision has the SPIFFE ID of the
// service that was called.
func ownDecision(snapshot *policy.Snapshot, r *Recorded) bool {
	id, _, _ := strings.Cut(r.By, "#")
	return slices.Contains(snapshot.Services[r.Input.Destination.Service].SPIFFEIDs, id)
}

// maxShown bounds the rules in a text.
const maxShown = 8

func describe(d *policy.Decision) string {
	text := d.Verdict.String() + " by " + d.Tier.String()
	var rules []string
	for _, r := range d.Rules[:min(len(d.Rules), maxShown)] {
		rules = append(rules, fmt.Sprintf("%q at %s:%d", r.ID, r.File, r.Line))
	}
	if len(d.Rules) > maxShown {
		rules = append(rules, fmt.Sprintf("and %d more", len(d.Rules)-maxShown))
	}
	if len(rules) > 0 {
		text += " (" + strings.Join(rules, ", ") + ")"
	}
	return text
}
