package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-dev/writ/audit"
)

// VerifyConfig is what evidence is verified against.
type VerifyConfig struct {
	// Path of a ledger's directory, or of an archive of it.
	Path string
	// Keys are verifier keys, one per line, obtained apart from the evidence.
	Keys string
	// ExpectHeads are signed heads kept elsewhere. They bound what can be cut
	// off together with the heads in the evidence.
	ExpectHeads []byte
}

// Verify checks a ledger without the server that made it. The error is one of
// reading; what is wrong with the evidence is in the report.
func Verify(ctx context.Context, cfg VerifyConfig) (*Report, error) {
	keys, err := Keys(cfg.Keys)
	if err != nil {
		return nil, err
	}
	e, err := openEvidence(cfg.Path)
	if err != nil {
		return nil, err
	}
	defer e.close()
	return verify(ctx, e, keys, cfg.ExpectHeads)
}

func verify(ctx context.Context, e *evidence, keys note.Verifiers, expect []byte) (*Report, error) {
	v := &verifier{
		keys: keys, tree: newTree(), streams: make(map[audit.Stream]*streamCheck),
		report: &Report{Live: e.live, Streams: []StreamReport{}, Problems: []Problem{}, Notes: []string{}},
	}
	b, err := e.heads()
	if err != nil {
		return nil, err
	}
	v.readHeads(b, headsFile)
	if len(expect) > 0 {
		if err := v.expect(expect); err != nil {
			return nil, err
		}
	}
	v.checkHeads()
	names := e.segments()
	for i, name := range names {
		if err := v.segment(ctx, name, e.files[name], i == len(names)-1); err != nil {
			return nil, err
		}
	}
	v.finish()
	return v.report, nil
}

// expected is a head to be met on the way.
type expected struct {
	Head
	elsewhere bool
}

// verifier goes through a ledger once, from the first entry to the last.
type verifier struct {
	keys   note.Verifiers
	report *Report
	heads  []expected
	tree   tree
	// upset: the tree differs from the one signed for a reason that has been
	// named, until a segment's state sets it right.
	upset   bool
	streams map[audit.Stream]*streamCheck
	// next is the index after the highest one seen, skipped what the indices
	// say is missing below it, late the frames that came after later ones.
	next    uint64
	skipped []span
	late    []place
	// settled is how many problems there were when the tree was last set
	// right.
	settled int
	file    string
	last    place
	// since is the first entry after the last head that matched.
	since  place
	hasher audit.Hasher
	batch  batch
}

type span struct{ from, to uint64 }

// place is where in the record something is.
type place struct {
	stream   audit.Stream
	epoch    uint32
	sequence uint64
	time     time.Time
	index    uint64
}

func (v *verifier) problem(kind Kind, at place, count uint64, format string, args ...any) {
	p := Problem{
		Kind: kind, SPIFFEID: at.stream.SPIFFEID, Instance: at.stream.Instance, Epoch: at.epoch, Sequence: at.sequence,
		Count: count, Index: at.index, File: v.file, Detail: fmt.Sprintf(format, args...),
	}
	if !at.time.IsZero() {
		p.Time = &at.time
	}
	v.report.Problems = append(v.report.Problems, p)
}

func (v *verifier) note(format string, args ...any) {
	v.report.Notes = append(v.report.Notes, fmt.Sprintf(format, args...))
}

func (v *verifier) readHeads(b []byte, file string) {
	v.file = file
	signed, rest := splitHeads(b)
	if len(rest) > 0 {
		v.note("the last head is unfinished (%d bytes)", len(rest))
	}
	for i, s := range signed {
		h, err := OpenHead(s, v.keys)
		if err != nil {
			v.problem(BadHead, place{}, 0, "head %d: %v", i+1, err)
			continue
		}
		if n := len(v.heads); n > 0 {
			prev := v.heads[n-1]
			if h.Size < prev.Size || h.Time.Before(prev.Time) {
				v.problem(BadHead, place{time: h.Time}, 0, "head %d goes back: size %d after %d, time %s after %s", i+1, h.Size, prev.Size, h.Time, prev.Time)
				continue
			}
			if pause := h.Time.Sub(prev.Time); pause > 2*time.Minute {
				v.note("no head was signed for %s after %s: the ledger was not running, or heads were removed", pause.Round(time.Second), prev.Time.Format(time.RFC3339))
			}
		}
		v.heads = append(v.heads, expected{Head: h})
	}
	v.report.Heads = len(v.heads)
	if n := len(v.heads); n > 0 {
		h := v.heads[n-1]
		v.report.LastHead = &HeadReport{Size: h.Size, Root: h.Root[:], Time: h.Time}
	} else {
		v.problem(BadHead, place{}, 0, "no head is signed by the key given: nothing proves this record")
	}
}

// expect adds heads kept elsewhere. One that the key did not sign is an error
// of the caller's.
func (v *verifier) expect(b []byte) error {
	signed, rest := splitHeads(append(bytes.TrimRight(b, "\n"), "\n\n"...))
	if len(rest) > 0 || len(signed) == 0 {
		return errors.New("expected head: no signed head in the file")
	}
	for _, s := range signed {
		h, err := OpenHead(s, v.keys)
		if err != nil {
			return fmt.Errorf("expected head: %w", err)
		}
		v.heads = append(v.heads, expected{Head: h, elsewhere: true})
	}
	slices.SortStableFunc(v.heads, func(a, b expected) int { return cmp.Compare(a.Size, b.Size) })
	return nil
}

// segment checks one file. The error is one of reading.
func (v *verifier) segment(ctx context.Context, name string, r *io.SectionReader, last bool) error {
	v.file = name
	fr, err := newFrameReader(r, 0, r.Size())
	if err != nil {
		v.upset = true
		v.problem(Altered, v.last, 0, "not a segment")
		return nil
	}
	first := true
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := fr.off
		payload, err := fr.next()
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, errTorn) && last && v.covered():
			v.note("%s ends in an unfinished frame of %d bytes that no head covers", name, r.Size()-at)
			return nil
		case errors.Is(err, errTorn):
			v.upset = true
			v.problem(Truncated, v.last, 0, "segment ends inside the frame at offset %d, after this record", at)
			return nil
		case errors.Is(err, errFormat):
			v.upset = true
			v.problem(Altered, v.last, 0, "frame at offset %d, after this record, cannot be read, nor what follows it: %v", at, err)
			return nil
		case err != nil && !errors.Is(err, errChecksum):
			return err
		}
		if first {
			v.state(payload, err == nil)
			first = false
			continue
		}
		v.frame(payload, at, err == nil)
	}
}

// covered reports whether every head has been met.
func (v *verifier) covered() bool {
	n := len(v.heads)
	return n > 0 && v.tree.size() >= v.heads[n-1].Size
}

// state compares the state at the start of a segment with what came before,
// and takes it over where that is incomplete.
func (v *verifier) state(payload []byte, whole bool) {
	st, err := parseState(payload)
	if err != nil || !whole {
		v.problem(Altered, v.last, 0, "the state at the start of the segment is damaged")
		return
	}
	index, ok := segmentIndex(v.file)
	have := v.tree.size()
	same := st.tree.size() == have && st.tree.root() == v.tree.root()
	switch {
	case !ok || index != st.tree.size():
		v.problem(Altered, v.last, 0, "the state at the start of the segment is not that of its name")
		return
	case same, v.upset:
	case index > have:
		v.problem(Missing, place{index: have, time: v.last.time}, index-have, "entries %d to %d, in files before this one, are missing", have, index-1)
	default:
		v.problem(Rewritten, v.last, 0, "the state at the start of the segment is not that of what comes before")
	}
	v.settle()
	if same {
		return
	}
	v.tree, v.upset, v.next, v.skipped, v.late = st.tree, false, index, nil, nil
	v.since = place{index: index}
	for name, p := range st.streams {
		s := v.stream(name)
		s.Position, s.start, s.chainKnown, s.missing = p.Position, p.start, true, nil
	}
	v.checkHeads()
}

// frame checks a batch or a resume.
func (v *verifier) frame(payload []byte, at int64, whole bool) {
	switch payload[0] {
	case typeBatch:
		if err := parseBatch(payload, &v.batch); err != nil {
			v.upset = true
			v.problem(Altered, v.last, 0, "batch at offset %d, after this record, cannot be read", at)
			return
		}
		b := &v.batch
		first := place{stream: b.stream, epoch: b.epoch, sequence: b.first, time: time.Unix(0, b.received).UTC(), index: v.tree.size()}
		if !whole && !slices.ContainsFunc(b.records, func(r stored) bool { return !v.intact(&r) }) {
			// Named before the root can differ for the same reason.
			v.problem(Altered, first, uint64(len(b.records)), "the head of this batch does not match its checksum")
		}
		v.order(first, b.index, uint64(len(b.records)))
		v.records(b)
	case typeResume:
		f, err := parseResume(payload)
		if err != nil || !whole {
			v.upset = true
			v.problem(Altered, v.last, 0, "frame at offset %d, after this record, cannot be read", at)
			return
		}
		v.last = place{stream: f.stream, epoch: f.at.Epoch, sequence: f.at.Sequence, time: time.Unix(0, f.received).UTC(), index: v.tree.size()}
		v.order(v.last, f.index, 1)
		s := v.stream(f.stream)
		v.note("%s goes on at epoch %d sequence %d: the ledger lost what came before", f.stream, f.at.Epoch, f.at.Sequence+1)
		s.Position, s.start, s.chainKnown = f.at, audit.ChainStart(f.stream, f.at.Epoch), true
		v.add(leafOfResume(nil, &f))
	default:
		v.upset = true
		v.problem(Altered, v.last, 0, "frame of unknown type %d at offset %d", payload[0], at)
		return
	}
}

// order compares the indices that a frame of n entries carries with those seen
// so far. What it finds is told at the end, where no stream explains it.
func (v *verifier) order(at place, index, n uint64) {
	v.upset = v.upset || index != v.tree.size()
	end := index + n
	switch {
	case index > v.next:
		v.skipped = append(v.skipped, span{v.next, index})
	case index < v.next:
		at.index = v.tree.size()
		v.late = append(v.late, at)
		var left []span
		for _, s := range v.skipped {
			if s.from < min(index, s.to) {
				left = append(left, span{s.from, min(index, s.to)})
			}
			if max(end, s.from) < s.to {
				left = append(left, span{max(end, s.from), s.to})
			}
		}
		v.skipped = left
	}
	v.next = max(v.next, end)
}

// settle names what the indices show where nothing else has explained it: no
// tree that differs from the signed one goes without a problem.
func (v *verifier) settle() bool {
	count := func() bool {
		return slices.ContainsFunc(v.report.Problems[v.settled:], func(p Problem) bool { return p.Kind != BadHead && p.Kind != BadGap })
	}
	if !count() {
		for _, at := range v.late {
			v.problem(Reordered, at, 1, "the batch that begins with this record stands after later ones")
		}
		for _, s := range v.skipped {
			v.problem(Missing, place{index: s.from, time: v.last.time}, s.to-s.from, "entries %d to %d are missing", s.from, s.to-1)
		}
		if v.upset && !count() {
			v.problem(Rewritten, v.last, 0, "entries up to this record are not where they say they are")
		}
	}
	explained := count()
	v.settled, v.late, v.skipped = len(v.report.Problems), nil, nil
	return explained
}

// add appends a leaf and compares the root where a head was signed.
func (v *verifier) add(leaf []byte) {
	if v.since.stream == (audit.Stream{}) {
		v.since = v.last
	}
	v.tree.add(leaf)
	v.checkHeads()
}

func (v *verifier) checkHeads() {
	size := v.tree.size()
	for len(v.heads) > 0 && v.heads[0].Size <= size {
		h := v.heads[0]
		v.heads = v.heads[1:]
		switch {
		case h.Size < size:
			v.note("the head of %s cannot be compared: the entries before it are incomplete", h.Time.Format(time.RFC3339Nano))
		case v.tree.root() == h.Root:
			v.since = place{}
		case v.upset:
		default:
			v.upset = true
			if v.alteredSince() {
				v.note("the head of %s does not match, as follows from what is altered before it", h.Time.Format(time.RFC3339Nano))
				continue
			}
			v.problem(Rewritten, v.since, size-v.since.index, "entries %d to %d are not those that were signed on %s", v.since.index, size-1, h.Time.Format(time.RFC3339Nano))
		}
	}
}

// alteredSince reports whether a problem was found after the last head that
// matched.
func (v *verifier) alteredSince() bool {
	return slices.ContainsFunc(v.report.Problems, func(p Problem) bool { return p.Kind != BadHead && p.Index >= v.since.index })
}
