package ledger

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-dev/writ/audit"
)

// FuzzVerify: no bytes of a segment make the verifier panic, and none but the
// true ones verify.
func FuzzVerify(f *testing.F) {
	fx := newFixture(f)
	l := fx.open()
	fx.append(l, webs, 3)
	fx.append(l, apis, 2)
	fx.close(l)
	name := filepath.Join(fx.cfg.Dir, segmentName(0))
	whole, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte(segmentMagic))
	heads, err := os.ReadFile(filepath.Join(fx.cfg.Dir, headsFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &evidence{files: map[string]*io.SectionReader{headsFile: section(heads), segmentName(0): section(b)}}
		r, err := verify(context.Background(), e, must(Keys(fx.cfg.VerifierKey)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.OK && !strings.HasPrefix(string(b), string(whole)) {
			t.Fatal("forged evidence verifies")
		}
	})
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// FuzzPayload: what the parsers accept, the encoders write again unchanged.
func FuzzPayload(f *testing.F) {
	fx := newFixture(f)
	st := &state{tree: newTree(), streams: map[audit.Stream]position{webs: {Position: webs.Start(1)}}}
	f.Add(appendState(nil, st))
	b := fx.batch(webs, 2)
	frame := appendBatchHead(nil, &batch{stream: webs, epoch: 1, first: 1, prev: b.Prev}, 2)
	for i, r := range b.Records {
		frame = appendStored(frame, r, &b.Hashes[i])
	}
	f.Add(frame)
	f.Add(appendResume(nil, &resume{stream: webs, at: audit.Position{Epoch: 1, Sequence: 5}}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) == 0 {
			return
		}
		var again []byte
		switch payload[0] {
		case typeState:
			st, err := parseState(payload)
			if err != nil {
				return
			}
			if _, err := parseState(appendState(nil, st)); err != nil {
				t.Fatal(err)
			}
			return
		case typeBatch:
			var b batch
			if parseBatch(payload, &b) != nil {
				return
			}
			again = encodeBatch(&b)
		case typeResume:
			r, err := parseResume(payload)
			if err != nil {
				return
			}
			again = appendResume(nil, &r)
		default:
			return
		}
		if string(again) != string(payload) {
			t.Fatalf("%x, written again %x", payload, again)
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add("writ/audit/a\n1\nAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\ntime 1970-01-01T00:00:01Z\n")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHead(s)
		if err != nil {
			return
		}
		if again, err := parseHead(h.text()); err != nil || again != h && !again.Time.Equal(h.Time) {
			t.Fatalf("%v, %v, want %v", again, err, h)
		}
	})
}
