package pep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// StaleAction is what happens to requests when the control plane has not
// confirmed the policy for longer than Config.MaxPolicyAge.
type StaleAction uint8

// Alarm keeps deciding and raises an alarm; DenyStale denies.
const (
	Alarm StaleAction = iota
	DenyStale
)

// Config is what an Enforcer is made of.
type Config struct {
	// Service is the name under which the signed catalogue knows what this
	// enforcement point protects.
	Service string
	// ID is the SPIFFE ID of the protected workload. The catalogue must list
	// it under Service, or every request is denied.
	ID spiffeid.ID
	// Recorder takes every decision and refusal before it is acted on.
	Recorder audit.Recorder
	// MaxPolicyAge counts from the last contact with the control plane; 0 is
	// no limit.
	MaxPolicyAge time.Duration
	OnStale      StaleAction
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
	// Observe, when set, sees each Result after it is on record. It must be
	// quick and safe for concurrent use.
	Observe func(Result)
}

// Result is what a transport obeys.
type Result struct {
	// Allow is the only yes. In observe mode it is true for any verdict.
	Allow bool
	// DecisionID names the event on record. It may be told to the caller. It
	// is empty when nothing was recorded.
	DecisionID string
	Outcome    auditv1.Outcome
	Verdict    policy.Verdict
	Tier       policy.Tier
	Mode       policy.Mode
	// Status is the HTTP status for the caller when Allow is false.
	Status int
	// Reason is for the operator, never for the caller.
	Reason string
	// Latency is the time that the decision took, without the record.
	Latency time.Duration
	// Expires is when an Allow has to be decided again; zero is never.
	Expires time.Time
	// Recorded is false when the recorder failed; the answer is then no.
	Recorded bool
}

// Enforcer decides and records for one service. It is safe for concurrent use.
type Enforcer struct {
	cfg     Config
	id      string
	current atomic.Pointer[inForce]
	changed atomic.Pointer[chan struct{}]
	// Highest signed time seen and last contact with the control plane, in
	// nanoseconds since the Unix epoch.
	floor   atomic.Int64
	contact atomic.Int64
	// What has been said once, until it stops being true.
	staleSaid  atomic.Bool
	recordSaid atomic.Bool
	scratch    sync.Pool
}

// inForce is a snapshot with what is looked up once instead of per request.
type inForce struct {
	snapshot *policy.Snapshot
	service  policy.Service
	// broken says why this snapshot cannot decide for this service.
	broken string
}

// scratch is the memory of one decision.
type scratch struct {
	decision policy.Decision
	event    audit.Event
}

// New makes an Enforcer that denies everything until SetSnapshot.
func New(cfg Config) (*Enforcer, error) {
	switch {
	case cfg.Service == "":
		return nil, errors.New("enforcement point without a service name")
	case cfg.ID.IsZero():
		return nil, errors.New("enforcement point without a SPIFFE ID")
	case cfg.Recorder == nil:
		return nil, errors.New("enforcement point without a recorder")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Enforcer{cfg: cfg, id: cfg.ID.String()}
	e.scratch.New = func() any { return new(scratch) }
	first := make(chan struct{})
	e.changed.Store(&first)
	return e, nil
}

// SetSnapshot puts a verified revision in force for every decision that begins
// after it returns. Nil takes policy away: everything is denied.
func (e *Enforcer) SetSnapshot(s *policy.Snapshot) {
	if s == nil {
		e.current.Store(nil)
	} else {
		e.SawSignedTime(s.Activated)
		f := &inForce{snapshot: s}
		svc, ok := s.Services[e.cfg.Service]
		switch {
		case !ok:
			f.broken = fmt.Sprintf("service %q is not in the catalogue of revision %s", e.cfg.Service, s.Revision)
		case !slices.Contains(svc.SPIFFEIDs, e.id):
			f.broken = fmt.Sprintf("the catalogue of revision %s does not list %s under service %q", s.Revision, e.id, e.cfg.Service)
		default:
			f.service = svc
		}
		if f.broken != "" {
			e.cfg.Log.Warn("policy denies everything", "reason", f.broken)
		}
		e.current.Store(f)
	}
	next := make(chan struct{})
	close(*e.changed.Swap(&next))
}

// Snapshot is what is in force, nil when nothing is.
func (e *Enforcer) Snapshot() *policy.Snapshot {
	if f := e.current.Load(); f != nil {
		return f.snapshot
	}
	return nil
}

// Changed is closed at the next SetSnapshot. What was taken before Snapshot
// was read misses no change.
func (e *Enforcer) Changed() <-chan struct{} { return *e.changed.Load() }

// Problem says why everything is denied at the moment; empty when policy is
// being decided.
func (e *Enforcer) Problem() string {
	f := e.current.Load()
	switch {
	case f == nil:
		return "no policy"
	case f.broken != "":
		return f.broken
	case e.cfg.OnStale == DenyStale && e.stale(e.Now()):
		return e.staleReason()
	}
	return ""
}

// ID is the SPIFFE ID of the protected workload.
func (e *Enforcer) ID() spiffeid.ID { return e.cfg.ID }

// AllowDoubleSlash reports whether the catalogue admits `//` in paths of the
// service.
func (e *Enforcer) AllowDoubleSlash() bool {
	f := e.current.Load()
	return f != nil && f.service.AllowDoubleSlash
}

// Enforce decides in, records the decision, and answers. It sets what a
// request must not choose: destination service and ID, and the time. It keeps
// nothing of in.
//
// A request that is denied in observe mode is recorded as denied and not
// enforced, and allowed.
func (e *Enforcer) Enforce(ctx context.Context, in *policy.Input) Result {
	start := time.Now()
	s := e.scratch.Get().(*scratch)
	defer e.release(s)
	f := e.decide(ctx, in, &s.decision)
	d := &s.decision
	res := Result{
		Verdict: d.Verdict, Tier: d.Tier, Reason: d.Reason, Outcome: outcome(d.Verdict),
		Mode: policy.Enforce, Status: http.StatusForbidden, Latency: time.Since(start),
	}
	s.event = audit.Event{
		Kind: auditv1.Kind_KIND_DECISION, Time: in.Time, Outcome: res.Outcome,
		Input: in, Decision: d, TraceID: traceID(in), Latency: res.Latency,
	}
	if f != nil {
		res.Mode = f.service.ModeAt(in.Time)
		s.event.Reads = &f.snapshot.Reads
	}
	s.event.Mode = res.Mode
	s.event.Enforced = res.Mode == policy.Enforce || d.Verdict == policy.Allow
	if e.record(&s.event, &res) {
		res.Allow = d.Verdict == policy.Allow || res.Mode == policy.Observe
		res.Expires = d.Expires
	}
	e.observe(res)
	return res
}

// Recheck decides in again, for a stream that is still open. A stream that is
// still allowed leaves no record; one that is not is recorded as denied and
// must be closed.
func (e *Enforcer) Recheck(ctx context.Context, in *policy.Input) Result {
	s := e.scratch.Get().(*scratch)
	defer e.release(s)
	again := *in
	again.Time = time.Time{}
	f := e.decide(ctx, &again, &s.decision)
	if s.decision.Verdict == policy.Allow || f != nil && f.service.ModeAt(again.Time) == policy.Observe {
		return Result{Allow: true, Verdict: s.decision.Verdict, Outcome: outcome(s.decision.Verdict), Mode: policy.Enforce, Expires: s.decision.Expires}
	}
	return e.Enforce(ctx, &again)
}

// decide fills d. The inForce it returns is the one whose mode counts; nil
// means that the answer came from the enforcement point itself and is
// enforced.
func (e *Enforcer) decide(ctx context.Context, in *policy.Input, d *policy.Decision) *inForce {
	now := e.Now()
	if in.Time.Before(now) {
		in.Time = now
	}
	in.Destination.Service, in.Destination.ID = e.cfg.Service, e.id
	d.Reset()
	f := e.current.Load()
	switch {
	case f == nil:
		own(d, "no policy")
		return nil
	case f.broken != "":
		own(d, f.broken)
		d.Revision = f.snapshot.Revision
		return nil
	}
	if e.stale(now) && !e.keepsDeciding(now) {
		own(d, e.staleReason())
		d.Revision = f.snapshot.Revision
		return nil
	}
	f.snapshot.Decider.Decide(ctx, in, d)
	if d.Revision.IsZero() {
		d.Revision = f.snapshot.Revision
	}
	if d.Verdict < policy.Deny || d.Verdict > policy.Error {
		d.Verdict, d.Reason = policy.Error, "the decider gave no verdict"
	}
	for _, o := range d.Obligations {
		if !supported(o) {
			// The decision stands only together with what it asks for.
			d.Verdict, d.Tier = policy.Deny, policy.Enforcement
			d.Reason = fmt.Sprintf("obligation %q is not supported here", o.Name)
			break
		}
	}
	return f
}

// supported reports whether this enforcement point can do what a decision asks
// for. Version 1 of the set of obligations is empty.
func supported(policy.Obligation) bool { return false }

// own makes d a denial of the enforcement point itself.
func own(d *policy.Decision, reason string) {
	d.Verdict, d.Tier, d.Reason = policy.Deny, policy.Enforcement, reason
}

func outcome(v policy.Verdict) auditv1.Outcome {
	switch v {
	case policy.Allow:
		return auditv1.Outcome_OUTCOME_ALLOW
	case policy.Deny:
		return auditv1.Outcome_OUTCOME_DENY
	case policy.Undefined:
		return auditv1.Outcome_OUTCOME_UNDEFINED
	}
	return auditv1.Outcome_OUTCOME_ERROR
}

// record commits ev and completes res. False means that nothing is on record
// and the answer is no.
func (e *Enforcer) record(ev *audit.Event, res *Result) bool {
	receipt, err := e.cfg.Recorder.Record(ev)
	if err != nil {
		res.Status = http.StatusServiceUnavailable
		if !e.recordSaid.Swap(true) {
			e.cfg.Log.Error("decisions cannot be recorded: denying", "error", err)
		}
		return false
	}
	if e.recordSaid.Load() && e.recordSaid.Swap(false) {
		e.cfg.Log.Info("decisions are recorded again")
	}
	res.DecisionID, res.Recorded = receipt.DecisionID, true
	return true
}

func (e *Enforcer) observe(res Result) {
	if e.cfg.Observe != nil {
		e.cfg.Observe(res)
	}
}

func (e *Enforcer) release(s *scratch) {
	s.event = audit.Event{}
	s.decision.Reset()
	e.scratch.Put(s)
}
