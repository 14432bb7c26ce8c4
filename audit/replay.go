package audit

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// ErrNotDecided is returned for an event that is no decision: of another kind,
// or of a request that was refused before it could be decided.
var ErrNotDecided = errors.New("the event is not a decision")

// InputOf rebuilds what was decided from its record, so that it can be decided
// again at the time it was decided first.
//
// missing is Event.omitted: what policy could read and the record does not
// hold as it was. With nothing missing, every policy that reads no more headers
// and query parameters than the one that decided (policy.Reads) is told exactly
// what it would have been told then. A header that policy did not read is not
// on record and cannot be told from one that was not sent.
//
// The error is ErrNotDecided, or says why the event cannot be what an
// enforcement point wrote.
func InputOf(ev *auditv1.Event) (in *policy.Input, missing []string, err error) {
	if err := decided(ev); err != nil {
		return nil, nil, err
	}
	s, d, c := ev.Source, ev.Destination, ev.Connection
	in = &policy.Input{
		Direction:   ev.Direction,
		Layer:       ev.Layer,
		Source:      policy.Source{ID: s.GetId(), TrustDomain: s.GetTrustDomain(), Path: s.GetPath(), Authn: s.GetAuthn(), Serial: s.GetSerial()},
		Destination: policy.Destination{Service: d.GetService(), ID: d.GetId(), Port: int(d.GetPort())},
		Connection: policy.Connection{
			PeerIP: c.GetPeerIp(), PeerPort: int(c.GetPeerPort()), KeyExchange: c.GetKeyExchange(), ClientIP: c.GetClientIp(),
			TLSVersion: c.GetTlsVersion(), SNI: c.GetSni(), ALPN: c.GetAlpn(),
		},
		TokenStatus: ev.TokenStatus,
		Time:        time.Unix(0, ev.Time).UTC(),
	}
	missing = slices.Clone(ev.Omitted)
	switch {
	case ev.Time == 0:
		return nil, nil, errNoTime
	case ev.Layer == policy.LayerConnection && ev.Request == nil:
		return in, missing, nil
	case ev.Layer != policy.LayerRequest || ev.Request == nil:
		return nil, nil, errLayer(ev.Layer)
	}
	r := ev.Request
	in.Request = policy.Request{
		Protocol: r.Protocol, Method: r.Method, Host: r.Host, Path: r.Path,
		GRPCService: r.GrpcService, GRPCMethod: r.GrpcMethod, ContentLength: r.ContentLength,
		Headers: valuesOf(r.Headers), Query: valuesOf(r.Query),
	}
	if in.Request.Segments, err = segmentsOf(nil, r.Path, missing); err != nil {
		return nil, nil, err
	}
	return in, missing, nil
}

var errNoTime = errors.New("decision without a time")

func errLayer(layer string) error {
	return fmt.Errorf("decision at layer %q: the request does not fit it", layer)
}

// segmentsOf splits a path that was decided, and so was admitted: with `//`
// where its service admitted that.
func segmentsOf(dst []string, path string, missing []string) ([]string, error) {
	segments, refusal := policy.SplitPath(dst, path, true)
	if refusal != "" && !slices.Contains(missing, "path") {
		return nil, fmt.Errorf("decision on a path that is not decided: %s", refusal)
	}
	return segments, nil
}

// DecisionOf reads the decision of an event: verdict, tier, rules, revision and
// reason. The errors are those of InputOf.
func DecisionOf(ev *auditv1.Event) (*policy.Decision, error) {
	if err := decided(ev); err != nil {
		return nil, err
	}
	d := &policy.Decision{Verdict: verdictOf(ev.Outcome), Tier: policy.Tier(ev.Tier), Reason: ev.Reason}
	for _, r := range ev.Rules {
		d.Rules = append(d.Rules, policy.Rule{ID: r.Id, File: r.File, Line: int(r.Line)})
	}
	if v := ev.Revision; v != nil {
		if len(v.Digest) != len(d.Revision.Digest) {
			return nil, fmt.Errorf("decision by a revision whose digest has %d bytes", len(v.Digest))
		}
		d.Revision = policy.Revision{Epoch: v.Epoch, Number: v.Number, Digest: [32]byte(v.Digest)}
	}
	return d, nil
}

func verdictOf(o auditv1.Outcome) policy.Verdict {
	switch o {
	case auditv1.Outcome_OUTCOME_ALLOW:
		return policy.Allow
	case auditv1.Outcome_OUTCOME_DENY:
		return policy.Deny
	case auditv1.Outcome_OUTCOME_UNDEFINED:
		return policy.Undefined
	}
	return policy.Error
}

// decided says why an event is no decision of policy or of the enforcement
// point that obeys it.
func decided(ev *auditv1.Event) error {
	return decidedAs(ev.GetKind(), ev.GetOutcome(), ev.GetTier())
}

func decidedAs(kind auditv1.Kind, outcome auditv1.Outcome, tier auditv1.Tier) error {
	switch {
	case kind != auditv1.Kind_KIND_DECISION || outcome == auditv1.Outcome_OUTCOME_REFUSED:
		return ErrNotDecided
	case outcome < auditv1.Outcome_OUTCOME_ALLOW || outcome > auditv1.Outcome_OUTCOME_ERROR:
		return fmt.Errorf("decision with outcome %s", outcome)
	case tier < 0 || tier > auditv1.Tier_TIER_ENFORCEMENT:
		return fmt.Errorf("decision in tier %s", tier)
	}
	return nil
}

// valuesOf is never nil, and keeps a name without values apart from one that is
// not there.
func valuesOf(fields []*auditv1.Field) policy.MapValues {
	m := make(policy.MapValues, len(fields))
	for _, f := range fields {
		values := f.GetValues()
		if values == nil {
			values = []string{}
		}
		m[f.GetName()] = values
	}
	return m
}

// SameDecision reports whether a decision that was made again is the one on
// record, as far as the record holds it: verdict, tier and rules, in their
// order. The record cuts what is longer than its bounds.
func SameDecision(recorded, again *policy.Decision) bool {
	if recorded.Verdict != again.Verdict || recorded.Tier != again.Tier || len(recorded.Rules) != min(len(again.Rules), maxRules) {
		return false
	}
	for i, r := range recorded.Rules {
		a := again.Rules[i]
		// A line is a positive number of 32 bits on the wire.
		if !sameText(r.ID, a.ID) || !sameText(r.File, a.File) || r.Line != max(a.Line, 0) {
			return false
		}
	}
	return true
}

// sameText compares a text with what the record made of it.
func sameText(recorded, s string) bool {
	if recorded == s {
		return true
	}
	e := Encoder{}
	e.cut(s, maxRule)
	return recorded == string(e.b)
}
