package pep

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// Now is the wall clock, but never below the highest signed time seen: a clock
// that was set back must not bring expired rights to life.
func (e *Enforcer) Now() time.Time {
	now := e.cfg.Now()
	if floor := e.floor.Load(); floor > now.UnixNano() {
		return time.Unix(0, floor)
	}
	return now
}

// SawSignedTime tells of a time that somebody trusted has signed: a policy
// revision's activation, the own SVID's NotBefore.
func (e *Enforcer) SawSignedTime(t time.Time) {
	if !t.IsZero() {
		raise(&e.floor, t.UnixNano())
	}
}

// Contacted tells when the control plane last confirmed what is in force.
func (e *Enforcer) Contacted(t time.Time) { raise(&e.contact, t.UnixNano()) }

func raise(v *atomic.Int64, to int64) {
	for {
		old := v.Load()
		if old >= to || v.CompareAndSwap(old, to) {
			return
		}
	}
}

func (e *Enforcer) stale(now time.Time) bool {
	if e.cfg.MaxPolicyAge <= 0 {
		return false
	}
	if now.UnixNano()-e.contact.Load() > int64(e.cfg.MaxPolicyAge) {
		return true
	}
	if e.staleSaid.Load() && e.staleSaid.Swap(false) {
		e.cfg.Log.Info("control plane confirms policy again")
	}
	return false
}

// keepsDeciding reports whether a stale policy is still obeyed, and raises the
// alarm once per outage. An alarm that cannot be recorded is not lost: the
// decision that comes with it cannot be recorded either, and denies.
func (e *Enforcer) keepsDeciding(now time.Time) bool {
	if !e.staleSaid.Swap(true) {
		e.cfg.Log.Error("policy is older than its limit", "max_age", e.cfg.MaxPolicyAge, "last_contact", e.lastContact())
		_, err := e.cfg.Recorder.Record(&audit.Event{
			Kind: auditv1.Kind_KIND_ALARM, Time: now, Outcome: auditv1.Outcome_OUTCOME_FAILURE,
			Reason: e.staleReason(),
			Action: &auditv1.Action{Verb: "aged", Actor: e.id, Object: "policy", ObjectId: e.cfg.Service},
		})
		if err != nil {
			e.staleSaid.Store(false)
		}
	}
	return e.cfg.OnStale == Alarm
}

func (e *Enforcer) staleReason() string {
	return fmt.Sprintf("policy not confirmed by the control plane for more than %s (last contact %s)", e.cfg.MaxPolicyAge, e.lastContact())
}

func (e *Enforcer) lastContact() string {
	if c := e.contact.Load(); c != 0 {
		return time.Unix(0, c).UTC().Format(time.RFC3339)
	}
	return "never"
}
