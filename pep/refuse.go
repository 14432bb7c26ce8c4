package pep

import (
	"context"
	"net/http"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// Refusal says why something was turned away before it could be decided.
type Refusal struct {
	// Status is the HTTP status for the caller, where there is one to answer.
	Status int
	// Reason is for the record: what was wrong, in a sentence.
	Reason string
}

// Refuse records that a request (Layer request) or connection (Layer
// connection) was refused before a decision, whatever the mode: there is
// nothing that observing could let pass.
func (e *Enforcer) Refuse(_ context.Context, in *policy.Input, r Refusal) Result {
	kind := auditv1.Kind_KIND_DECISION
	if in.Layer == policy.LayerConnection {
		kind = auditv1.Kind_KIND_CONNECTION
	}
	if in.Direction == policy.Inbound {
		in.Destination.Service, in.Destination.ID = e.cfg.Service, e.id
	}
	return e.note(in, kind, auditv1.Outcome_OUTCOME_REFUSED, r)
}

// Unreachable records that a request could not be carried to its destination.
// It is no refusal: nobody's right was in question.
func (e *Enforcer) Unreachable(_ context.Context, in *policy.Input, r Refusal) Result {
	return e.note(in, auditv1.Kind_KIND_CONNECTION, auditv1.Outcome_OUTCOME_FAILURE, r)
}

func (e *Enforcer) note(in *policy.Input, kind auditv1.Kind, o auditv1.Outcome, r Refusal) Result {
	if now := e.Now(); in.Time.Before(now) {
		in.Time = now
	}
	res := Result{
		Outcome: o, Verdict: policy.Deny, Tier: policy.Enforcement,
		Mode: policy.Enforce, Status: r.Status, Reason: r.Reason,
	}
	if res.Status == 0 {
		res.Status = http.StatusForbidden
	}
	s := e.scratch.Get().(*scratch)
	defer e.release(s)
	s.event = audit.Event{
		Kind: kind, Time: in.Time, Outcome: o, Mode: policy.Enforce, Enforced: true,
		Input: in, Reason: r.Reason, TraceID: traceID(in),
	}
	e.record(&s.event, &res)
	e.observe(res)
	return res
}

// traceID takes the trace id out of a W3C Trace Context `traceparent` header
// (00-<32 hex>-<16 hex>-<2 hex>), or gives "".
func traceID(in *policy.Input) string {
	if in.Layer != policy.LayerRequest || in.Request.Headers == nil {
		return ""
	}
	v := in.Request.Headers.Get("traceparent")
	if len(v) != 1 || len(v[0]) < 55 || v[0][2] != '-' || v[0][35] != '-' {
		return ""
	}
	id := v[0][3:35]
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
	}
	return id
}
