// Package policy is the contract of a decision: what a decider is told
// (Input), what it answers (Decision), and what is in force (Snapshot).
//
// It holds no engine. policy/opa decides with OPA; other engines implement
// Decider beside it.
package policy

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"
)

// Decider answers one question. It always fills out and never panics; an
// evaluation that fails is a Decision with Verdict Error. It must not keep in
// or out after it returns, and it is safe for concurrent use.
type Decider interface {
	Decide(ctx context.Context, in *Input, out *Decision)
}

// Verdict is what a decision comes to. Only Allow lets a request pass.
type Verdict uint8

// The zero Verdict is none of these and never allows.
const (
	Deny Verdict = iota + 1
	Allow
	Undefined
	Error
)

func (v Verdict) String() string {
	switch v {
	case Deny:
		return "deny"
	case Allow:
		return "allow"
	case Undefined:
		return "undefined"
	case Error:
		return "error"
	}
	return "none"
}

// Tier is the layer of policy that made a decision, highest first.
type Tier uint8

// Tiers, in the order in which they win.
const (
	// Guardrail is absolute: nothing overrides its deny.
	Guardrail Tier = iota + 1
	// BreakGlass is a short, alarmed allow that two people signed.
	BreakGlass
	// OverridableGuardrail denies unless the glass is broken.
	OverridableGuardrail
	ServiceDeny
	ServiceAllow
	DefaultDeny
	// Enforcement is the enforcement point itself: no policy in force, policy
	// too old, malformed request.
	Enforcement
)

var tierNames = [...]string{"none", "guardrail", "break-glass", "overridable-guardrail", "service-deny", "service-allow", "default-deny", "enforcement"}

func (t Tier) String() string {
	if int(t) < len(tierNames) {
		return tierNames[t]
	}
	return tierNames[0]
}

// Rule names a rule that took part in a decision. File and Line are those of
// the source as its publisher wrote it; Line counts from 1, 0 is unknown.
type Rule struct {
	ID   string
	File string
	Line int
}

// Revision orders what is in force: epoch first, then number. Digest is the
// SHA-256 of the source content.
type Revision struct {
	Epoch  uint64
	Number uint64
	Digest [32]byte
}

// Newer reports whether r supersedes o.
func (r Revision) Newer(o Revision) bool {
	if r.Epoch != o.Epoch {
		return r.Epoch > o.Epoch
	}
	return r.Number > o.Number
}

// IsZero reports whether r names no revision.
func (r Revision) IsZero() bool { return r == Revision{} }

// String gives "epoch.number@digest", the digest cut to 12 hex digits.
func (r Revision) String() string {
	if r.IsZero() {
		return "none"
	}
	return fmt.Sprintf("%d.%d@%s", r.Epoch, r.Number, hex.EncodeToString(r.Digest[:6]))
}

// Obligation is something the enforcement point must do when it obeys the
// decision. The set is closed: an enforcement point that does not know a name
// denies.
type Obligation struct {
	Name  string
	Value string
}

// Decision is the answer to one Input.
type Decision struct {
	Verdict  Verdict
	Tier     Tier
	Rules    []Rule
	Revision Revision
	// Reason is for the operator and the record, never for the caller.
	Reason string
	// Expires ends the right to reuse the answer; zero is no limit.
	Expires     time.Time
	Obligations []Obligation
	// Unasked is set on an Error that says nothing of the policy: this builtin,
	// such as http.send, looks outside of the input, and who evaluated has no
	// way out.
	Unasked string
}

// Reset makes d ready for another answer and keeps its memory.
func (d *Decision) Reset() {
	*d = Decision{Rules: d.Rules[:0], Obligations: d.Obligations[:0]}
}

// Mode says what an enforcement point does with a verdict.
type Mode uint8

// Observe lets everything pass and records what would have been denied.
const (
	Enforce Mode = iota + 1
	Observe
)

func (m Mode) String() string {
	switch m {
	case Enforce:
		return "enforce"
	case Observe:
		return "observe"
	}
	return "none"
}

// Service is one entry of the signed service catalogue,
// data.writ.services[name].
type Service struct {
	Name      string
	SPIFFEIDs []string
	// Mode is Observe only until ObserveUntil; ModeAt says which is in force.
	Mode         Mode
	ObserveUntil time.Time
	// AllowDoubleSlash admits `//` in paths (path: allow-double-slash).
	AllowDoubleSlash bool
}

// ModeAt is the mode in force at t. Observing ends by itself.
func (s *Service) ModeAt(t time.Time) Mode {
	if s.Mode == Observe && t.Before(s.ObserveUntil) {
		return Observe
	}
	return Enforce
}

// Reads names the parts of an Input that a revision looks at beyond the fixed
// fields, so that the record can hold exactly those.
type Reads struct {
	// Lower-case header names and query parameter names.
	Headers []string
	Query   []string
	// The policy walks all of them; the names cannot be known.
	AllHeaders bool
	AllQuery   bool
}

// Snapshot is one verified revision, prepared and ready to decide. It is
// immutable.
type Snapshot struct {
	Revision Revision
	Services map[string]Service
	Reads    Reads
	Decider  Decider
	// Activated is when the control plane put the revision in force.
	Activated time.Time
}
