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
func (l *Ledger) Recorder() audit.BatchRecorder {
	return &recorder{l: l, ids: audit.NewDecisionIDs(l.own, 1)}
}

// maxTogether bounds the events of one RecordAll, in bytes; a frame may have
// twice that.
const maxTogether = maxFrame / 2

// Record implements audit.Recorder.
func (r *recorder) Record(ev *audit.Event) (audit.Receipt, error) {
	event := audit.NewEncoder(nil).Append(make([]byte, 0, 512), ev)
	if len(event)+16 > audit.MaxEventBytes {
		return audit.Receipt{}, audit.ErrTooLarge
	}
	sequence, err := r.commit([][]byte{event})
	if err != nil {
		return audit.Receipt{}, err
	}
	return audit.Receipt{Sequence: sequence, DecisionID: r.ids.At(sequence)}, nil
}

// RecordAll implements audit.BatchRecorder: all events are recorded, in one frame
// and by one sync, or none is.
func (r *recorder) RecordAll(events []audit.Event) error {
	if len(events) == 0 {
		return nil
	}
	encoder := audit.NewEncoder(nil)
	encoded := make([][]byte, len(events))
	total := 0
	for i := range events {
		encoded[i] = encoder.Append(make([]byte, 0, 512), &events[i])
		if len(encoded[i])+16 > audit.MaxEventBytes {
			return audit.ErrTooLarge
		}
		if total += recordHead + len(encoded[i]) + 16; total > maxTogether {
			return audit.ErrTooLarge
		}
	}
	_, err := r.commit(encoded)
	return err
}

// commit waits until events are durable and returns the sequence of the first.
func (r *recorder) commit(events [][]byte) (uint64, error) {
	type result struct {
		sequence uint64
		err      error
	}
	ch := make(chan result, 1)
	r.l.enqueue(request{events: events, reserve: true, done: func(sequence uint64, err error) { ch <- result{sequence, err} }})
	got := <-ch
	if got.err != nil {
		return 0, fmt.Errorf("record in ledger: %w", got.err)
	}
	return got.sequence, nil
}
