// Package audit is the contract of the record: what an event holds, and who
// takes it. An event is committed before the request it speaks of is answered
// or forwarded; audit can fail, and its failure is handled, unlike a log's.
package audit

import (
	"time"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

// Recorder commits events.
type Recorder interface {
	// Record commits ev to storage that survives the death of this process and
	// returns its receipt. It does not keep ev. After an error nothing was
	// recorded; on ErrFull the caller denies.
	Record(ev *Event) (Receipt, error)
}

// BatchRecorder commits many events together.
type BatchRecorder interface {
	Recorder
	// RecordAll commits events, in their order, and returns when the last is as
	// durable as Record would have made it. After an error some of them may be
	// recorded.
	RecordAll(events []Event) error
}

// Receipt says where an event went.
type Receipt struct {
	// Sequence in the stream's epoch, from 1. 0 when the event was dropped by
	// the recorder's full policy, which records the loss.
	Sequence uint64
	// DecisionID names the event to callers and operators; it tells nothing.
	DecisionID string
}

// Event is one thing that happened. For a decision, Input and Decision are set
// and Record writes only what Reads permits of headers and query.
type Event struct {
	Kind    auditv1.Kind
	Time    time.Time
	Outcome auditv1.Outcome
	Mode    policy.Mode
	// Enforced is false where the outcome was not applied (observe).
	Enforced bool
	Input    *policy.Input
	Decision *policy.Decision
	Reads    *policy.Reads
	// Reason is recorded when Decision is nil.
	Reason  string
	TraceID string
	Latency time.Duration
	Gap     *auditv1.Gap
	Action  *auditv1.Action
}
