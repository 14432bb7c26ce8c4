package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

var (
	// ErrConflict means that a collector is at a position that this spool
	// does not continue: the spool was put back from a copy, or the chains
	// differ. The caller calls Abandon.
	ErrConflict = errors.New("spool: the collector's position is not in this spool")
	// ErrBehind means that a collector is at a position before the first
	// record held. The caller goes on only if the collector accepts the loss.
	ErrBehind = errors.New("spool: the collector lacks records that are no longer held")
	// errMoved means that what was read has been freed meanwhile.
	errMoved = errors.New("spool: segment was freed while it was read")
)

// Reader reads one epoch of a spool in order and computes its chain. There is
// one Reader at a time; it is not safe for concurrent use.
type Reader struct {
	s      *Spool
	epoch  uint32
	cur    *segment
	off    int64
	seq    uint64
	chain  audit.Hash
	hasher audit.Hasher
	buf    []byte
}

// Reader begins to read the oldest epoch that is held and is not below epoch;
// Position tells which. It returns nil when there is none.
func (s *Spool) Reader(epoch uint32) (*Reader, error) {
	s.mu.Lock()
	var first *segment
	for _, g := range s.segments {
		if g.epoch >= epoch {
			first = g
			break
		}
	}
	s.mu.Unlock()
	if first == nil {
		return nil, nil
	}
	r := &Reader{s: s, epoch: first.epoch}
	return r, r.rewind(first)
}

// rewind starts at the first record of a segment whose chain is known.
func (r *Reader) rewind(g *segment) error {
	r.cur, r.off, r.seq = g, headerSize, g.first-1
	switch {
	case g.first == 1:
		r.chain = audit.ChainStart(r.s.stream, g.epoch)
	case g.chainKnown:
		r.chain = g.chain
	default:
		return fmt.Errorf("segment %s: %w: chain before sequence %d is not known", g.name, ErrConflict, g.first)
	}
	return nil
}

// Hello is what a collector is told before the first batch.
func (r *Reader) Hello() *auditv1.Hello {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	h := &auditv1.Hello{Instance: r.s.stream.Instance, Epoch: r.epoch, First: r.seq + 1, Last: r.seq, Chain: r.chain[:]}
	for _, g := range r.s.segments {
		if g.epoch == r.epoch {
			h.Last = g.last.Load()
		}
	}
	return h
}

// Seek moves forward to a collector's position, and checks that the chains
// agree there.
func (r *Reader) Seek(p audit.Position) error {
	if p.Epoch != r.epoch {
		return fmt.Errorf("%w: epoch %d", ErrConflict, p.Epoch)
	}
	if p.Sequence < r.seq {
		return ErrBehind
	}
	for r.seq < p.Sequence {
		b, err := r.Next(int(min(p.Sequence-r.seq, 1<<10)), 1<<20)
		if err != nil {
			return err
		}
		if b == nil {
			return fmt.Errorf("%w: it has sequence %d, this spool ends at %d", ErrConflict, p.Sequence, r.seq)
		}
	}
	if r.chain != p.Chain {
		return fmt.Errorf("%w: the chains differ at sequence %d", ErrConflict, p.Sequence)
	}
	return nil
}

// Next returns committed records that were not yet read, at most as many and
// about as many bytes as told, or nil when there are none.
func (r *Reader) Next(maxRecords, maxBytes int) (*audit.Batch, error) {
	for {
		if end := r.cur.end.Load(); r.off < end {
			return r.batch(end, maxRecords, maxBytes)
		}
		// Sealed is read before end is read again: nothing is written after.
		if !r.cur.sealed.Load() || r.off < r.cur.end.Load() {
			return nil, nil
		}
		next := r.s.after(r.cur)
		if next == nil {
			return nil, nil
		}
		if next.first != r.seq+1 {
			return nil, fmt.Errorf("%w: sequence %d is followed by %d", ErrConflict, r.seq, next.first)
		}
		if err := r.s.keepChain(next, r.chain); err != nil {
			return nil, err
		}
		r.cur, r.off = next, headerSize
	}
}

// batch reads frames up to end of the current segment.
func (r *Reader) batch(end int64, maxRecords, maxBytes int) (*audit.Batch, error) {
	size := int(min(end-r.off, int64(max(maxBytes, frameSize(audit.MaxEventBytes)))))
	if cap(r.buf) < size {
		r.buf = make([]byte, size)
	}
	buf := r.buf[:size]
	if _, err := r.cur.f.ReadAt(buf, r.off); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return nil, errMoved
		}
		return nil, fmt.Errorf("read spool: %w", err)
	}
	b := &audit.Batch{Stream: r.s.stream, Epoch: r.epoch, First: r.seq + 1, Prev: r.chain}
	off := 0
	for len(b.Records) < maxRecords && (off == 0 || off < maxBytes) {
		salt, event, next, err := frame(buf, off)
		if err != nil {
			if off > 0 {
				// The last frame reaches past the buffer, or is damaged; the
				// next call tells.
				break
			}
			return nil, fmt.Errorf("%w: sequence %d: %v", ErrConflict, r.seq+1, err)
		}
		own := make([]byte, len(salt)+len(event))
		copy(own, salt)
		copy(own[len(salt):], event)
		rec := &auditv1.Record{Salt: own[:len(salt):len(salt)], Event: own[len(salt):]}
		h := r.hasher.Salted([audit.SaltSize]byte(salt), event)
		r.chain = audit.ChainNext(r.chain, h)
		r.seq++
		b.Records, b.Hashes = append(b.Records, rec), append(b.Hashes, h)
		off = next
	}
	r.off += int64(off)
	b.Last = r.chain
	return b, nil
}

// Position is the last record read.
func (r *Reader) Position() audit.Position {
	return audit.Position{Epoch: r.epoch, Sequence: r.seq, Chain: r.chain}
}

// Done reports whether everything of the epoch was read and a later epoch
// follows.
func (r *Reader) Done() bool {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if n := len(r.s.segments); n == 0 || r.s.segments[n-1].epoch <= r.epoch {
		return false
	}
	for _, g := range r.s.segments {
		if g.epoch == r.epoch && g.last.Load() > r.seq {
			return false
		}
	}
	return true
}

// Wait returns when there is something to read, when d has passed (false), or
// with the error of ctx. Close of the spool ends it too.
func (r *Reader) Wait(ctx context.Context, d time.Duration) (bool, error) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		r.s.waiting.Store(true)
		if ready, err := r.ready(); ready || err != nil {
			r.s.waiting.Store(false)
			return ready, err
		}
		select {
		case <-r.s.wake:
		case <-t.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

func (r *Reader) ready() (bool, error) {
	if r.off < r.cur.end.Load() || r.Done() || r.cur.sealed.Load() && r.s.after(r.cur) != nil {
		return true, nil
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.s.closed {
		return false, audit.ErrClosed
	}
	return false, nil
}

// wakeReader is called by a recorder that saw the reader wait.
func (s *Spool) wakeReader() {
	if s.waiting.CompareAndSwap(true, false) {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// after is the segment that continues g in its epoch; g itself may have been
// freed.
func (s *Spool) after(g *segment) *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, next := range s.segments {
		if next.epoch == g.epoch && next.first > g.first {
			return next
		}
	}
	return nil
}

func (s *Spool) keepChain(g *segment, chain audit.Hash) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.chainKnown && g.chain == chain {
		return nil
	}
	if err := g.setChain(chain); err != nil {
		return err
	}
	g.chain, g.chainKnown = chain, true
	return nil
}

// Acknowledge frees what a collector has made durable, up to p.
func (s *Spool) Acknowledge(p audit.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Epoch < s.acked.Epoch || p.Epoch == s.acked.Epoch && p.Sequence <= s.acked.Sequence {
		return
	}
	s.acked = p
	freed := 0
	for len(s.segments) > 1 {
		g, next := s.segments[0], s.segments[1]
		done := g.epoch < p.Epoch || g.epoch == p.Epoch && g.last.Load() <= p.Sequence
		if !done || next.epoch == g.epoch && !next.chainKnown {
			break
		}
		g.remove()
		s.segments = s.segments[1:]
		freed++
	}
	if freed > 0 {
		s.cond.Broadcast()
	}
}

// Abandon gives up the epochs up to p's, since a collector is at p and this
// spool does not continue it. What they hold that was not acknowledged is set
// aside in files, counted, and recorded as a gap at the start of an epoch that
// no collector has seen. Where the collector is further on than this spool in
// the same epoch, it has those records, or others of the same numbers: none of
// them is counted, and a gap of count 0 says that the loss is not known.
func (s *Spool) Abandon(p audit.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return audit.ErrClosed
	}
	var held uint64
	for _, g := range s.segments {
		if g.epoch == p.Epoch {
			held = g.last.Load()
		}
	}
	if held > 0 && held < p.Sequence && p.Epoch >= s.acked.Epoch {
		s.acked = p
	}
	var lost uint64
	var names []string
	var keep []*segment
	for _, g := range s.segments {
		if g.epoch > p.Epoch {
			keep = append(keep, g)
			continue
		}
		first := g.first
		if g.epoch == s.acked.Epoch {
			first = max(first, s.acked.Sequence+1)
		}
		if last := g.last.Load(); g.epoch >= s.acked.Epoch && last >= first {
			lost += last - first + 1
		}
		g.close()
		names = append(names, g.name)
	}
	s.gaps = append(s.gaps, &auditv1.Gap{Cause: audit.GapSpoolLost, Count: lost})
	s.cfg.Log.Error("the collector's record does not continue this spool: opening a new epoch", "lost", lost, "collector_epoch", p.Epoch, "collector_sequence", p.Sequence)
	m := s.meta
	m.Epoch = max(m.Epoch, p.Epoch) + 1
	if err := m.write(s.cfg.Dir); err != nil {
		s.fail(err)
		return err
	}
	s.meta, s.segments = m, keep
	s.ids, s.idBlock = audit.NewDecisionIDs(s.stream, m.Epoch), ""
	if g := s.active(); g != nil {
		g.seal()
	}
	if err := s.setAside(names); err != nil {
		s.fail(fmt.Errorf("set aside %s: %w", filepath.Base(s.cfg.Dir), err))
		return s.failed
	}
	if s.spare != nil {
		if err := s.take(s.spare); err != nil {
			return err
		}
	}
	s.cond.Broadcast()
	return nil
}

// Acknowledged is the last sequence acknowledged in p's epoch; all of it where
// a later epoch was acknowledged.
func (s *Spool) Acknowledged(p audit.Position) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.acked.Epoch > p.Epoch:
		return p.Sequence
	case s.acked.Epoch < p.Epoch:
		return 0
	}
	return s.acked.Sequence
}
