// Package simulate decides recorded requests again, by a candidate policy and
// by a baseline, and tells what would change: for whom, where, and by which
// rules.
//
// A record is replayed at the time it was decided first. Whatever the record
// does not hold is never guessed: such a decision is counted as not
// replayable, with the reason. The package knows nothing of where records are
// kept; it is handed an iterator.
package simulate

import (
	"time"

	"github.com/writ-dev/writ/policy"
)

// Recorded is one decision as the record holds it.
type Recorded struct {
	// ID of the decision.
	ID string
	// Input that was decided. nil where it cannot be rebuilt: Problem says why.
	Input *policy.Input
	// Problem is one of Erased, Malformed and Refused, and Detail what about it.
	Problem, Detail string
	// Decision as recorded, and the mode it was recorded in.
	Decision policy.Decision
	Mode     policy.Mode
	// Missing names what policy could read and the record does not hold as it
	// was: headers.<name>, query.<name>, headers, query, tokens, path and so on.
	Missing []string
	// Reads is what the policy that decided read of headers and query
	// parameters, and therefore what the record can hold of them. nil says that
	// this policy is not known. It is compared by its address: the same Reads
	// should be the same pointer.
	Reads *policy.Reads
	// Raw is for Config.Open.
	Raw any
}

// Why a record is not replayable.
const (
	// Erased records are gone; their hash is in the chain.
	Erased = "erased"
	// Refused requests were turned away before policy was asked, which no policy
	// changes. They count apart from what is not replayable.
	Refused = "refused"
	// Malformed records cannot have been written by an enforcement point.
	Malformed = "malformed"
	// Omitted: the recorder was not allowed to hold what is read, or it was too
	// large.
	Omitted = "omitted"
	// NotRecorded: a header or query parameter is read that the policy which
	// decided did not read, so that it is not on record.
	NotRecorded = "not-recorded"
	// UnknownRevision: a header or query parameter is read, and which ones the
	// record holds is not known, because the policy that decided is not.
	UnknownRevision = "unknown-revision"
	// NotByPolicy: the enforcement point denied by itself (no policy, or one
	// that was too old), so that there is no decision to compare with.
	NotByPolicy = "not-by-policy"
	// LooksOutside: a side asks something outside of the input, such as by
	// http.send. A simulation does not, and what was answered is not on record.
	LooksOutside = "looks-outside"
)

// Side is one of the two policies that are compared.
type Side struct {
	Decider policy.Decider
	// Digest of the content, to tell whether a record was decided by it.
	Digest [32]byte
	// Services is the catalogue. A service that is not in it, or that it does
	// not give the enforcement point's SPIFFE ID, is denied everything there.
	Services map[string]policy.Service
	// Reads is what the enforcement point at a destination reads of headers and
	// query parameters; it is called from several goroutines. Its answers are
	// compared by address, as Recorded.Reads is.
	Reads func(policy.Destination) *policy.Reads
}

// Change is what a candidate makes of a decision.
type Change uint8

// Changes, the gravest first. The first four are of the verdict; the others
// leave it as it is.
const (
	Same Change = iota
	NewlyAllowed
	NewlyDenied
	NewlyUndefined
	NewlyError
	// ModeChanged: the verdict stands, and whether it is enforced does not.
	ModeChanged
	TierChanged
	RulesChanged
	changes
)

var changeNames = [changes]string{"same", "newly-allowed", "newly-denied", "newly-undefined", "newly-error", "mode", "tier", "rules"}

func (c Change) String() string {
	if c < changes {
		return changeNames[c]
	}
	return changeNames[Same]
}

// MarshalText writes the name.
func (c Change) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Config says what to replay, and by what.
type Config struct {
	// Next fills r with the next record, whose memory is the caller's until r
	// is handed to it again; io.EOF ends. It is called by one goroutine.
	Next func(r *Recorded) error
	// Open, where set, completes what Next filled, from Raw: the part of the
	// work that can be done side by side. It is called from several goroutines.
	Open func(r *Recorded)

	Candidate Side
	// Baseline is what the candidate is compared with; nil compares with the
	// decisions as they were recorded.
	Baseline *Side

	// At is when the candidate would be in force, which decides whether a
	// service is still observed. Verdicts are those of the recorded time.
	At time.Time
	// Agrees compares a recorded decision with one made again by the same
	// content. Verdict, tier and ids of rules are compared when nil.
	Agrees func(recorded, again *policy.Decision) bool
	// Limit ends after this many records; 0 is none.
	Limit uint64
	// Workers decide side by side; GOMAXPROCS when 0.
	Workers int
	// Progress, where set, is told now and then how many records are done.
	Progress func(records uint64)
}
