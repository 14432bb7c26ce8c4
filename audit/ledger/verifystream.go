package ledger

import (
	"errors"
	"slices"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// streamCheck is how far a stream has been checked.
type streamCheck struct {
	audit.Position
	start audit.Hash
	// chainKnown is false after a problem, until a batch names its chain.
	chainKnown bool
	// missing sequences of the epoch, each with the problem that names them.
	missing []hole
	report  StreamReport
}

type hole struct {
	from, to uint64
	problem  int
}

func (v *verifier) stream(name audit.Stream) *streamCheck {
	s := v.streams[name]
	if s == nil {
		s = &streamCheck{chainKnown: true, report: StreamReport{SPIFFEID: name.SPIFFEID, Instance: name.Instance}}
		v.streams[name] = s
	}
	return s
}

// records checks the records of a batch one by one. The sequence inside an
// event is what tells which record it is; the batch only claims.
func (v *verifier) records(b *batch) {
	s := v.stream(b.stream)
	if b.epoch > s.Epoch {
		if b.epoch > 1 && len(b.records) > 0 && audit.KindOf(b.records[0].event) != auditv1.Kind_KIND_GAP {
			v.note("epoch %d of %s does not begin with a gap event: its recorder does not say why it is there", b.epoch, b.stream)
		}
		s.Position, s.missing, s.chainKnown = b.stream.Start(b.epoch), nil, true
		s.start = s.Chain
	}
	here := place{stream: b.stream, epoch: b.epoch, sequence: b.first, time: time.Unix(0, b.received).UTC()}
	if s.chainKnown && b.epoch == s.Epoch && b.first == s.Sequence+1 && b.prev != s.Chain {
		here.index = v.tree.size()
		v.problem(Rewritten, here, uint64(len(b.records)), "the batch does not continue the chain of its stream")
	}
	chain, start := b.prev, s.start
	if b.epoch < s.Epoch {
		start = audit.ChainStart(b.stream, b.epoch)
	}
	s.chainKnown = true
	for i := range b.records {
		r := &b.records[i]
		here.index = v.tree.size()
		here.sequence = b.first + uint64(i)
		here.time = eventTime(r.event, b.received)
		intact := v.intact(r)
		if sequence, ok := audit.SequenceOf(r.event); ok && intact {
			here.sequence = sequence
		}
		if !intact {
			v.problem(Altered, here, 1, "the event, its salt or its hash is not what was recorded")
			s.chainKnown = false
		}
		if r.erased() {
			// Which record it was, and that it was that one, the signed root
			// says: leaf and chain hold its hash.
			v.report.Erased++
			v.note("the event of %s at epoch %d sequence %d was erased; only its hash is here", here.stream, here.epoch, here.sequence)
		}
		v.sequence(s, here)
		v.last = here
		chain = audit.ChainNext(chain, r.hash)
		s.report.Records++
		v.report.Events++
		if intact && audit.KindOf(r.event) == auditv1.Kind_KIND_GAP {
			v.gap(s, here, r.event)
		}
		v.add(leafOf(nil, start, here.sequence, b.received, r.hash, chain))
	}
	if b.epoch == s.Epoch {
		s.Chain = chain
	}
}

// intact reports whether a record is what was hashed, or erased as a whole.
func (v *verifier) intact(r *stored) bool {
	return r.erased() || v.hasher.Salted([audit.SaltSize]byte(r.salt), r.event) == r.hash
}

// sequence compares the place of a record with the one that is due.
func (v *verifier) sequence(s *streamCheck, at place) {
	due := s.Sequence + 1
	if at.epoch == s.Epoch && at.sequence == due {
		s.Sequence = due
		return
	}
	v.upset, s.chainKnown = true, false
	if at.epoch == s.Epoch && at.sequence > due {
		missing := at
		missing.sequence = due
		s.missing = append(s.missing, hole{due, at.sequence, len(v.report.Problems)})
		v.problem(Missing, missing, at.sequence-due, "records are missing before the one at sequence %d", at.sequence)
		s.Sequence = at.sequence
		return
	}
	for i, h := range s.missing {
		if at.epoch != s.Epoch || at.sequence < h.from || at.sequence >= h.to {
			continue
		}
		// What seemed missing stands later: the order was changed.
		p := &v.report.Problems[h.problem]
		if at.sequence == h.from {
			p.Kind, p.Detail = Reordered, "these records stand after later ones"
			if s.missing[i].from++; s.missing[i].from == h.to {
				s.missing = slices.Delete(s.missing, i, i+1)
			}
			return
		}
		v.problem(Reordered, at, 1, "the record stands after later ones")
		return
	}
	v.problem(Added, at, 1, "a record stands where the stream already had one, or none")
}

func (v *verifier) gap(s *streamCheck, at place, event []byte) {
	ev, err := decode(event)
	if err != nil || ev.Gap == nil {
		v.note("gap event of %s at epoch %d sequence %d cannot be read", at.stream, at.epoch, at.sequence)
		return
	}
	s.report.Gaps++
	s.report.Lost += ev.Gap.Count
	switch err := audit.CheckGap(at.stream, at.epoch, at.sequence, ev.Gap); {
	case errors.Is(err, audit.ErrGapUnsigned):
		v.note("gap of %s at epoch %d sequence %d is not signed", at.stream, at.epoch, at.sequence)
	case err != nil:
		v.problem(BadGap, at, 1, "%v", err)
	}
}

func eventTime(event []byte, received int64) time.Time {
	if ev, err := decode(event); err == nil && ev.Time != 0 {
		return time.Unix(0, ev.Time).UTC()
	}
	return time.Unix(0, received).UTC()
}

// finish judges what only the end shows.
func (v *verifier) finish() {
	size := v.tree.size()
	v.report.Entries = size
	explained := v.settle()
	if n := len(v.heads); n > 0 {
		if h := v.heads[n-1]; h.elsewhere {
			v.problem(Truncated, v.last, 0, "the head of %s, kept elsewhere, covers %s, there are %d; this is the last record", h.Time.Format(time.RFC3339Nano), audit.Count(h.Size, "entry", "entries"), size)
		} else if !v.upset || !explained {
			v.problem(Truncated, v.last, 0, "the head of %s covers %s, there are %d; this is the last record", h.Time.Format(time.RFC3339Nano), audit.Count(h.Size, "entry", "entries"), size)
		}
	}
	if h := v.report.LastHead; h != nil && size > h.Size {
		v.report.Uncovered = size - h.Size
		if !v.report.Live && !(v.upset && explained) {
			v.problem(Uncovered, v.since, v.report.Uncovered, "entries %d to %d follow the last signed head: the ledger was not stopped cleanly, or they were added", h.Size, size-1)
		}
	}
	for _, name := range sortedStreams(v.streams) {
		s := v.streams[name]
		s.report.Epoch, s.report.Sequence = s.Epoch, s.Sequence
		v.report.Streams = append(v.report.Streams, s.report)
		if s.report.Gaps > 0 {
			v.note("%s says that it lost records: %s, %s as far as known", name, audit.Count(s.report.Gaps, "gap", "gaps"), audit.Count(s.report.Lost, "record", "records"))
		}
	}
	v.report.OK = len(v.report.Problems) == 0
}
