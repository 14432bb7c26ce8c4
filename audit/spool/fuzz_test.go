package spool

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/writ-dev/writ/audit"
)

// FuzzSegment: whatever a segment file holds, it is read without a panic, and
// what is taken from it is a contiguous run of whole records.
func FuzzSegment(f *testing.F) {
	cfg := config(f.TempDir())
	s := open(f, cfg)
	record(f, s, 3)
	whole, err := os.ReadFile(s.active().name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:headerSize+300])
	f.Add(whole[:headerSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseSegment(b)
		if got.unused || got.damage != nil && got.end == 0 {
			return
		}
		off, n := headerSize, got.first
		for off < got.end {
			_, event, next, err := frame(b, off)
			if err != nil {
				t.Fatalf("offset %d below the end %d: %v", off, got.end, err)
			}
			if seq, ok := audit.SequenceOf(event); !ok || seq != n {
				t.Fatalf("sequence %d, want %d", seq, n)
			}
			off, n = next, n+1
		}
		if off != got.end || n != got.last+1 {
			t.Fatalf("end %d of sequence %d, want %d, %d", off, n-1, got.end, got.last)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add([]byte(`{"version":1,"stream":"spiffe://a/b","instance":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","epoch":1,"boot":"","clean":true}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseMeta(again); err != nil || *got != *m {
			t.Fatalf("%v, %v, want %v", got, err, m)
		}
	})
}
