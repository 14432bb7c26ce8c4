package spool

import (
	"fmt"
	"runtime/debug"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// Record implements audit.Recorder. It returns audit.ErrFull, ErrTooLarge or
// ErrClosed, or the error of a disk that failed, after which nothing is
// recorded any more.
func (s *Spool) Record(ev *audit.Event) (audit.Receipt, error) {
	w := s.writers.Get().(*writer)
	w.buf = w.enc.Append(w.buf[:0], ev)
	salt := w.salt()

	s.mu.Lock()
	receipt, err := s.append(salt, w.buf)
	s.mu.Unlock()
	s.writers.Put(w)
	if err != nil {
		return audit.Receipt{}, err
	}
	if s.waiting.Load() {
		s.wakeReader()
	}
	return receipt, nil
}

// append commits an event that lacks its sequence. The lock is held.
func (s *Spool) append(salt *[audit.SaltSize]byte, event []byte) (audit.Receipt, error) {
	if len(event)+sequenceLen > audit.MaxEventBytes {
		return audit.Receipt{}, audit.ErrTooLarge
	}
	for {
		if s.closed {
			return audit.Receipt{}, audit.ErrClosed
		}
		if s.failed != nil {
			return audit.Receipt{}, s.failed
		}
		g := s.active()
		if g != nil && g.fits(len(event)) {
			return s.commit(g, salt, event)
		}
		if s.spare != nil {
			if err := s.take(s.spare); err != nil {
				return audit.Receipt{}, err
			}
			continue
		}
		if s.canPrepare() {
			s.cond.Wait()
			continue
		}
		s.setFull(true)
		if s.cfg.OnFull == Block {
			s.cond.Wait()
			continue
		}
		if s.cfg.OnFull == Drop {
			return s.drop()
		}
		return audit.Receipt{}, audit.ErrFull
	}
}

// commit writes into a segment that has room.
func (s *Spool) commit(g *segment, salt *[audit.SaltSize]byte, event []byte) (audit.Receipt, error) {
	sequence := g.last.Load() + 1
	if err := g.guardedPut(sequence, salt, event); err != nil {
		s.fail(err)
		return audit.Receipt{}, err
	}
	return audit.Receipt{Sequence: sequence, DecisionID: s.id(sequence)}, nil
}

// guardedPut is put under guard, without a closure that would allocate.
func (g *segment) guardedPut(sequence uint64, salt *[audit.SaltSize]byte, event []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer g.caught(&err)
	g.put(sequence, salt, event)
	return nil
}

// fail ends recording: what is under the mapping can no longer be trusted.
func (s *Spool) fail(err error) {
	s.failed = err
	s.turn()
	s.cfg.Log.Error("audit spool failed", "error", err)
	s.cond.Broadcast()
}

// id derives the ids of a run of sequences at once, so that each costs neither
// an allocation nor the start of a string of its own.
func (s *Spool) id(sequence uint64) string {
	const size = 26
	i := sequence - s.idFirst
	if s.idBlock == "" || sequence < s.idFirst || i >= idsAtOnce {
		b := make([]byte, 0, idsAtOnce*size)
		for n := range uint64(idsAtOnce) {
			b = s.ids.Append(b, sequence+n)
		}
		s.idBlock, s.idFirst, i = string(b), sequence, 0
	}
	return s.idBlock[i*size : (i+1)*size]
}

// drop counts an event that is not recorded. The segment is closed to later,
// smaller events: the gap event comes first.
func (s *Spool) drop() (audit.Receipt, error) {
	if n := len(s.segments); n > 0 {
		g := s.segments[n-1]
		if err := g.setDropped(g.dropped + 1); err != nil {
			s.fail(err)
			return audit.Receipt{}, err
		}
		g.seal()
	} else if n := len(s.gaps); n > 0 && s.gaps[n-1].Cause == audit.GapDrop {
		s.gaps[n-1].Count++
	} else {
		// No segment keeps the count, and none begins without the gap.
		s.gaps = append(s.gaps, &auditv1.Gap{Cause: audit.GapDrop, Count: 1})
	}
	s.dropped++
	return audit.Receipt{}, nil
}

// take makes a prepared segment the active one and records the gaps that are
// due, before anything else can be.
func (s *Spool) take(g *segment) error {
	h := header{epoch: s.meta.Epoch, first: 1, instance: s.instance}
	gaps := s.gaps
	if n := len(s.segments); n > 0 {
		prev := s.segments[n-1]
		if prev.epoch == h.epoch {
			h.first = prev.last.Load() + 1
		}
		if prev.dropped > 0 {
			gaps = append(gaps, &auditv1.Gap{Cause: audit.GapDrop, Count: prev.dropped})
		}
		prev.seal()
	}
	if err := g.activate(h); err != nil {
		s.fail(err)
		return err
	}
	s.spare = nil
	s.segments = append(s.segments, g)
	s.cond.Broadcast()
	for _, gap := range gaps {
		if err := s.recordGap(g, gap); err != nil {
			return err
		}
	}
	s.gaps = nil
	return nil
}

// recordGap commits a gap event into a fresh segment.
func (s *Spool) recordGap(g *segment, gap *auditv1.Gap) error {
	s.sign(gap, g.last.Load()+1)
	ev := audit.Event{
		Kind:    auditv1.Kind_KIND_GAP,
		Time:    s.cfg.Clock(),
		Outcome: auditv1.Outcome_OUTCOME_FAILURE,
		Gap:     gap,
	}
	w := s.writers.Get().(*writer)
	defer s.writers.Put(w)
	w.buf = w.enc.Append(w.buf[:0], &ev)
	if !g.fits(len(w.buf)) {
		return fmt.Errorf("record gap: %w", audit.ErrTooLarge)
	}
	if _, err := s.commit(g, w.salt(), w.buf); err != nil {
		return fmt.Errorf("record gap: %w", err)
	}
	return nil
}

// sign signs a gap. A gap that cannot be signed is recorded all the same: that
// something was lost matters more than who says so.
func (s *Spool) sign(gap *auditv1.Gap, sequence uint64) {
	if s.cfg.SignGap == nil {
		return
	}
	sig, chain, err := s.cfg.SignGap(audit.GapStatement(s.stream, s.meta.Epoch, sequence, gap))
	if err != nil {
		s.cfg.Log.Error("audit gap is not signed", "cause", gap.Cause, "error", err)
		return
	}
	size := len(sig)
	for i, c := range chain {
		if size += len(c); size > maxGapChain {
			chain = chain[:i]
			break
		}
	}
	gap.Signature, gap.Certificates = sig, chain
}
