package ledger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

func segmentName(index uint64) string { return fmt.Sprintf("%016x%s", index, segmentExt) }

// segmentIndex reads the tree index of a segment's first entry from its name.
func segmentIndex(name string) (index uint64, ok bool) {
	_, err := fmt.Sscanf(name, "%016x"+segmentExt, &index)
	return index, err == nil && name == segmentName(index)
}

// openHeads reads the heads, and cuts off one that a crash left unfinished.
func (l *Ledger) openHeads() error {
	f, err := os.OpenFile(filepath.Join(l.cfg.Dir, headsFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	l.heads = f
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	heads, rest := splitHeads(b)
	l.headBytes = int64(len(b) - len(rest))
	if len(rest) > 0 {
		l.cfg.Log.Warn("an unfinished head was cut off", "bytes", len(rest))
		if err := f.Truncate(l.headBytes); err != nil {
			return err
		}
	}
	if _, err := f.Seek(l.headBytes, io.SeekStart); err != nil {
		return err
	}
	if len(heads) == 0 {
		return nil
	}
	h, err := OpenHead(heads[len(heads)-1], l.keys)
	if err != nil {
		// What it covers is not known: no better than none.
		l.cfg.Log.Warn("the last head is not signed by the audit key", "error", err)
		return nil
	}
	l.last, l.haveHead = h, true
	return nil
}

// load finds the last segment and rebuilds the state from it.
func (l *Ledger) load() error {
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		index, ok := segmentIndex(e.Name())
		if !ok {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		l.segments = append(l.segments, segmentRef{name: filepath.Join(l.cfg.Dir, e.Name()), index: index, size: info.Size()})
	}
	slices.SortFunc(l.segments, func(a, b segmentRef) int { return strings.Compare(a.name, b.name) })
	var begun uint64
	for len(l.segments) > 0 {
		index := l.segments[len(l.segments)-1].index
		ok, err := l.loadLast(begun)
		if err != nil || ok {
			return err
		}
		begun = max(begun, index)
	}
	if begun > 0 {
		return fmt.Errorf("%w: no segment, though one was begun after %s", ErrDamaged, audit.Count(begun, "entry", "entries"))
	}
	if l.haveHead && l.last.Size > 0 {
		return fmt.Errorf("%w: no segment, though a head was signed for %s", ErrDamaged, audit.Count(l.last.Size, "entry", "entries"))
	}
	l.work = &state{id: uuid.New(), tree: newTree(), streams: make(map[audit.Stream]position)}
	return l.newSegment()
}

// loadLast rebuilds the state from the last segment. It reports false when
// that was never begun in earnest, and removes it. A segment removed before began
// after begun entries.
func (l *Ledger) loadLast(begun uint64) (bool, error) {
	ref := &l.segments[len(l.segments)-1]
	f, err := os.OpenFile(ref.name, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	l.file = f
	end, rootAtHead, err := l.replay(f, ref)
	if err != nil && !isDamage(err) {
		return false, err
	}
	if l.work == nil {
		earnest, readErr := begunInEarnest(f, ref)
		if readErr != nil {
			return false, readErr
		}
		if earnest || l.haveHead && l.last.Size > ref.index {
			return false, fmt.Errorf("%w: segment %s: %v", ErrDamaged, filepath.Base(ref.name), err)
		}
		// The crash came while the segment was begun; its predecessor is whole.
		l.cfg.Log.Warn("an unfinished segment was removed", "file", ref.name, "error", err)
		l.segments = l.segments[:len(l.segments)-1]
		return false, errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if size := l.work.tree.size(); l.haveHead && l.last.Size > size {
		return false, fmt.Errorf("%w: it holds %s, the head of %s covers %d", ErrDamaged, audit.Count(size, "entry", "entries"), l.last.Time, l.last.Size)
	}
	if size := l.work.tree.size(); size < begun {
		return false, fmt.Errorf("%w: it holds %s, the next segment was begun after %d", ErrDamaged, audit.Count(size, "entry", "entries"), begun)
	}
	if size := l.work.tree.size(); !l.haveHead && size > 0 {
		// A head of the empty ledger is synced before the first record is
		// taken, so one has been lost. To sign what is here would make it true.
		return false, fmt.Errorf("%w: it holds %s, and %q does not end in a head that the audit key signed: "+
			"put back that file, or the audit key that was changed; or else keep this directory as evidence and begin with an empty one",
			ErrDamaged, audit.Count(size, "entry", "entries"), headsFile)
	}
	if rootAtHead != nil && *rootAtHead != l.last.Root {
		return false, fmt.Errorf("%w: the root differs from the head of %s", ErrDamaged, l.last.Time)
	}
	if end < ref.size {
		if err := l.cutTail(f, ref, end, err); err != nil {
			return false, err
		}
	}
	_, err = f.Seek(end, io.SeekStart)
	return true, err
}

// replay applies a segment's frames to l.work. It returns where the last whole
// one ends, the tree's root at the size of the last head where the segment has
// it, and why it stopped early.
func (l *Ledger) replay(f *os.File, ref *segmentRef) (end int64, rootAtHead *audit.Hash, err error) {
	fr, err := newFrameReader(f, 0, ref.size)
	if err != nil {
		return 0, nil, err
	}
	payload, err := fr.next()
	if err == io.EOF {
		err = errTorn
	}
	if err != nil {
		return 0, nil, err
	}
	st, err := parseState(payload)
	if err != nil {
		return 0, nil, err
	}
	if st.tree.size() != ref.index {
		return 0, nil, fmt.Errorf("%w: state of %d entries", errFormat, st.tree.size())
	}
	l.work = st
	atHead := func() {
		if l.haveHead && rootAtHead == nil && st.tree.size() == l.last.Size {
			root := st.tree.root()
			rootAtHead = &root
		}
	}
	atHead()
	for {
		end = fr.off
		payload, err := fr.next()
		if err == io.EOF {
			return end, rootAtHead, nil
		}
		if err != nil {
			return end, rootAtHead, err
		}
		if err := st.apply(payload, atHead); err != nil {
			return end, rootAtHead, err
		}
	}
}

// apply adds a frame read back to the state; each is called after every leaf.
func (s *state) apply(payload []byte, each func()) error {
	switch payload[0] {
	case typeBatch:
		var b batch
		if err := parseBatch(payload, &b); err != nil {
			return err
		}
		p, err := s.check(b.stream, b.epoch, b.first, b.prev)
		if err != nil || b.index != s.tree.size() {
			return fmt.Errorf("%w: batch is out of order", errFormat)
		}
		for i := range b.records {
			r := &b.records[i]
			p.Sequence++
			p.Chain = audit.ChainNext(p.Chain, r.hash)
			p.lost += lostBy(r.event)
			s.tree.add(leafOf(nil, p.start, p.Sequence, b.received, r.hash, p.Chain))
			each()
		}
		s.streams[b.stream], s.received = p, b.received
	case typeResume:
		f, err := parseResume(payload)
		if err != nil || f.index != s.tree.size() {
			return fmt.Errorf("%w: resume is out of order", errFormat)
		}
		s.resume(&f)
		each()
	default:
		return fmt.Errorf("%w: frame of type %d", errFormat, payload[0])
	}
	return nil
}

// check returns the position of a stream when a batch continues it.
func (s *state) check(name audit.Stream, epoch uint32, first uint64, prev audit.Hash) (position, error) {
	p, ok := s.streams[name]
	if !ok || epoch > p.Epoch {
		start := name.Start(epoch)
		p = position{Position: start, lost: p.lost, start: start.Chain}
	}
	if epoch != p.Epoch || first != p.Sequence+1 || prev != p.Chain {
		return p, fmt.Errorf("%w: %s is at epoch %d sequence %d, got epoch %d sequence %d", ErrStale, name, p.Epoch, p.Sequence, epoch, first)
	}
	return p, nil
}

// before reports whether p, which may be the zero position of an unknown
// stream, comes before q.
func (p position) before(q audit.Position) bool {
	return p.Epoch < q.Epoch || p.Epoch == q.Epoch && p.Sequence < q.Sequence
}

func (s *state) resume(f *resume) {
	lost := s.streams[f.stream].lost
	had := s.streams[f.stream].Position
	if had.Epoch == f.at.Epoch && had.Sequence < f.at.Sequence {
		lost += f.at.Sequence - had.Sequence
	} else {
		lost += f.at.Sequence
	}
	s.streams[f.stream] = position{Position: f.at, lost: lost, start: audit.ChainStart(f.stream, f.at.Epoch)}
	s.received = f.received
	s.tree.add(leafOfResume(nil, f))
}

// lostBy is the count of a gap event.
func lostBy(event []byte) uint64 {
	if audit.KindOf(event) != auditv1.Kind_KIND_GAP {
		return 0
	}
	ev, err := decode(event)
	if err != nil {
		return 0
	}
	return ev.GetGap().GetCount()
}
