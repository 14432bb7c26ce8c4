package ledger

import (
	"fmt"

	"github.com/writ-dev/writ/audit"
)

// recorder records the events of the ledger's owner.
type recorder struct {
	l   *Ledger
	ids audit.DecisionIDs
}

// Recorder records under Config.Self, in a stream of the ledger's own. An event
// is synced to disk before Record returns; concurrent callers share a sync. At
// the cap it goes on in the reserve, which remote streams have no part in, and
// returns audit.ErrFull when that is used up as well.
func (l *Ledger) Recorder() audit.Recorder {
	return &recorder{l: l, ids: audit.NewDecisionIDs(l.own, 1)}
}

// Record implements audit.Recorder.
func (r *recorder) Record(ev *audit.Event) (audit.Receipt, error) {
	event := audit.NewEncoder(nil).Append(make([]byte, 0, 512), ev)
	if len(event)+16 > audit.MaxEventBytes {
		return audit.Receipt{}, audit.ErrTooLarge
	}
	type result struct {
		sequence uint64
		err      error
	}
	ch := make(chan result, 1)
	r.l.enqueue(request{event: event, reserve: true, done: func(sequence uint64, err error) { ch <- result{sequence, err} }})
	got := <-ch
	if got.err != nil {
		return audit.Receipt{}, fmt.Errorf("record in ledger: %w", got.err)
	}
	return audit.Receipt{Sequence: got.sequence, DecisionID: r.ids.At(got.sequence)}, nil
}
