package ledger

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// forger takes a ledger's files apart and writes them again so that lengths
// and checksums fit: it can do everything but sign.
type forger struct {
	t      *testing.T
	name   string
	frames [][]byte
}

func forge(t *testing.T, dir string, index uint64) *forger {
	t.Helper()
	fo := &forger{t: t, name: filepath.Join(dir, segmentName(index))}
	f, err := os.Open(fo.name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fr, err := newFrameReader(f, 0, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	for {
		payload, err := fr.next()
		if err == io.EOF {
			return fo
		}
		if err != nil {
			t.Fatal(err)
		}
		fo.frames = append(fo.frames, slices.Clone(payload))
	}
}

func (fo *forger) write() {
	fo.t.Helper()
	out := []byte(segmentMagic)
	for _, payload := range fo.frames {
		var start int
		out, start = beginFrame(out)
		out = endFrame(append(out, payload...), start)
	}
	if err := os.WriteFile(fo.name, out, 0o600); err != nil {
		fo.t.Fatal(err)
	}
}

// edit changes the records of frame i.
func (fo *forger) edit(i int, change func(*batch)) {
	fo.t.Helper()
	var b batch
	if err := parseBatch(fo.frames[i], &b); err != nil {
		fo.t.Fatal(err)
	}
	b.records = slices.Clone(b.records)
	change(&b)
	fo.frames[i] = encodeBatch(&b)
}

func encodeBatch(b *batch) []byte {
	out := appendBatchHead(nil, b, len(b.records))
	for _, r := range b.records {
		out = appendStored(out, &auditv1.Record{Event: r.event, Salt: r.salt}, &r.hash)
	}
	return out
}

// rehash rebuilds sequences, hashes, chains, indices and states of everything,
// so that all of it fits together again.
func (fo *forger) rehash() {
	fo.t.Helper()
	st, err := parseState(fo.frames[0])
	if err != nil {
		fo.t.Fatal(err)
	}
	var h audit.Hasher
	for i := 1; i < len(fo.frames); i++ {
		fo.edit(i, func(b *batch) {
			p, ok := st.streams[b.stream]
			if !ok {
				p.Position = b.stream.Start(1)
			}
			b.index, b.first, b.prev = st.tree.size(), p.Sequence+1, p.Chain
			for j := range b.records {
				r := &b.records[j]
				p.Sequence++
				r.event = audit.AppendSequence(slices.Clone(r.event[:len(r.event)-10]), p.Sequence)
				r.hash = h.Salted([audit.SaltSize]byte(r.salt), r.event)
				p.Chain = audit.ChainNext(p.Chain, r.hash)
				st.tree.add(nil)
			}
			st.streams[b.stream] = p
		})
	}
}

// record makes an event as an attacker would like it to be.
func forged(sequence uint64) stored {
	var h audit.Hasher
	r := stored{salt: make([]byte, audit.SaltSize)}
	ev := &audit.Event{Kind: auditv1.Kind_KIND_DECISION, Time: time.Unix(1, 0), Outcome: auditv1.Outcome_OUTCOME_ALLOW, Reason: "forged"}
	r.event = audit.AppendSequence(audit.NewEncoder(nil).Append(nil, ev), sequence)
	r.hash = h.Salted([audit.SaltSize]byte(r.salt), r.event)
	return r
}

// found is what a test expects of a problem.
type found struct {
	Kind     Kind
	SPIFFEID string
	Sequence uint64
}

// evidenceFor builds the same evidence for each case: two streams in turns,
// two heads on the way, several frames in one segment:
//
//	frame 1: web 1-5   frame 2: api 1-5   frame 3: web 6-10  (head at 15)
//	frame 4: api 6-10  frame 5: web 11-15                    (head at 25)
func evidenceFor(t *testing.T) *fixture {
	f := newFixture(t)
	l := f.open()
	for i := range 5 {
		f.append(l, []audit.Stream{webs, apis}[i%2], 5)
		if i == 2 {
			if _, err := l.signHead(); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.close(l)
	f.verified(25)
	return f
}
