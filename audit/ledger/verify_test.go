package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestVerifyNames(t *testing.T) {
	web, api := webs.SPIFFEID, apis.SPIFFEID
	flip := func(b []byte) { b[len(b)/2] ^= 1 }
	heads := func(f *fixture) string { return filepath.Join(f.cfg.Dir, headsFile) }
	for _, tc := range []struct {
		name   string
		tamper func(t *testing.T, f *fixture)
		want   []found
	}{
		{"a byte of an event", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(3, func(b *batch) { flip(b.records[1].event) })
			fo.write()
		}, []found{{Altered, web, 7}}},
		{"a byte of an event, checksum not mended", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			var b batch
			if err := parseBatch(fo.frames[3], &b); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(fo.name)
			if err != nil {
				t.Fatal(err)
			}
			at := strings.Index(string(raw), string(b.records[1].event))
			flip(raw[at : at+len(b.records[1].event)])
			if err := os.WriteFile(fo.name, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []found{{Altered, web, 7}}},
		{"a byte of a salt", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(2, func(b *batch) { flip(b.records[4].salt) })
			fo.write()
		}, []found{{Altered, api, 5}}},
		{"a byte of a stored hash", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(2, func(b *batch) { flip(b.records[2].hash[:]) })
			fo.write()
		}, []found{{Altered, api, 3}}},
		{"the time of arrival", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(3, func(b *batch) { b.received++ })
			fo.write()
		}, []found{{Rewritten, web, 1}}},
		{"a record removed", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(3, func(b *batch) { b.records = slices.Delete(b.records, 1, 2) })
			fo.write()
		}, []found{{Missing, web, 7}}},
		{"the first record removed", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(1, func(b *batch) { b.records = slices.Delete(b.records, 0, 1) })
			fo.write()
		}, []found{{Missing, web, 1}}},
		{"a batch removed", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.frames = slices.Delete(fo.frames, 2, 3)
			fo.write()
		}, []found{{Missing, api, 1}}},
		{"a record added", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(3, func(b *batch) { b.records = slices.Insert(b.records, 1, forged(6)) })
			fo.write()
		}, []found{{Added, web, 6}}},
		{"a batch twice", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.frames = slices.Insert(fo.frames, 2, fo.frames[1])
			fo.write()
		}, []found{{Added, web, 1}, {Added, web, 2}, {Added, web, 3}, {Added, web, 4}, {Added, web, 5}}},
		{"a record added at the end", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(5, func(b *batch) { b.records = append(b.records, forged(16)) })
			fo.write()
		}, []found{{Uncovered, web, 16}}},
		{"two records swapped", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(3, func(b *batch) { b.records[1], b.records[2] = b.records[2], b.records[1] })
			fo.write()
		}, []found{{Reordered, web, 7}}},
		{"two batches of a stream swapped", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.frames[1], fo.frames[3] = fo.frames[3], fo.frames[1]
			fo.write()
		}, []found{{Reordered, web, 1}}},
		{"two batches of two streams swapped", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.frames[1], fo.frames[2] = fo.frames[2], fo.frames[1]
			fo.write()
		}, []found{{Reordered, web, 1}}},
		{"the tail cut off between frames", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.frames = fo.frames[:5]
			fo.write()
		}, []found{{Truncated, api, 10}}},
		{"the tail cut off in a frame", func(t *testing.T, f *fixture) {
			name := filepath.Join(f.cfg.Dir, segmentName(0))
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, b[:len(b)-40], 0o600); err != nil {
				t.Fatal(err)
			}
		}, []found{{Truncated, api, 10}}},
		{"history rewritten", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(4, func(b *batch) { b.records[2] = forged(8) })
			fo.rehash()
			fo.write()
		}, []found{{Rewritten, api, 6}}},
		{"history rewritten without a record", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(1, func(b *batch) { b.records = slices.Delete(b.records, 2, 3) })
			fo.rehash()
			fo.write()
		}, []found{{Rewritten, web, 1}}},
		{"a frame's index", func(t *testing.T, f *fixture) {
			fo := forge(t, f.cfg.Dir, 0)
			fo.edit(5, func(b *batch) { b.index-- })
			fo.write()
		}, []found{{Reordered, web, 11}}},
		{"all heads removed", func(t *testing.T, f *fixture) {
			if err := os.Remove(heads(f)); err != nil {
				t.Fatal(err)
			}
		}, []found{{Kind: BadHead}}},
		{"a head signed by another key", func(t *testing.T, f *fixture) {
			b, err := os.ReadFile(heads(f))
			if err != nil {
				t.Fatal(err)
			}
			list, _ := splitHeads(b)
			h, err := OpenHead(list[1], must(Keys(f.cfg.VerifierKey)))
			if err != nil {
				t.Fatal(err)
			}
			other, _, err := LoadSigner(domain, filepath.Join(t.TempDir(), "key"))
			if err != nil {
				t.Fatal(err)
			}
			h.Size = 26
			signed, err := h.sign(other)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(heads(f), append(append(b, signed...), '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []found{{Kind: BadHead}}},
		{"heads in another order", func(t *testing.T, f *fixture) {
			b, err := os.ReadFile(heads(f))
			if err != nil {
				t.Fatal(err)
			}
			list, _ := splitHeads(b)
			slices.Reverse(list)
			var out []byte
			for _, h := range list {
				out = append(append(out, h...), '\n')
			}
			if err := os.WriteFile(heads(f), out, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []found{{Kind: BadHead}, {Kind: BadHead}}},
		{"no segment left", func(t *testing.T, f *fixture) {
			if err := os.Remove(filepath.Join(f.cfg.Dir, segmentName(0))); err != nil {
				t.Fatal(err)
			}
		}, []found{{Kind: Truncated}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := evidenceFor(t)
			tc.tamper(t, f)
			check(t, f, tc.want)
			// An archive of the same files shows the same.
			name := filepath.Join(t.TempDir(), "evidence.tar")
			if out, err := exec.Command("tar", "-cf", name, "-C", f.cfg.Dir, ".").CombinedOutput(); err != nil {
				t.Skipf("no tar: %v %s", err, out)
			}
			f.cfg.Dir = name
			check(t, f, tc.want)
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(t *testing.T, f *fixture, want []found) {
	t.Helper()
	r := f.verify()
	if r.OK {
		t.Error("it verifies")
	}
	var got []found
	for _, p := range r.Problems {
		t.Log(p)
		got = append(got, found{p.Kind, p.SPIFFEID, p.Sequence})
		if p.SPIFFEID != "" && (p.Instance == "" || p.Epoch != 1 || p.Time == nil) {
			t.Errorf("position is not whole: %+v", p)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

// Whoever cuts heads and records back to an earlier head is found by a head
// kept elsewhere, and by nothing else.
func TestExpectHead(t *testing.T) {
	f := evidenceFor(t)
	b, err := os.ReadFile(filepath.Join(f.cfg.Dir, headsFile))
	if err != nil {
		t.Fatal(err)
	}
	list, _ := splitHeads(b)
	kept := list[len(list)-1]
	fo := forge(t, f.cfg.Dir, 0)
	fo.frames = fo.frames[:4]
	fo.write()
	early := slices.Concat(list[0], []byte("\n"), list[1], []byte("\n"))
	if err := os.WriteFile(filepath.Join(f.cfg.Dir, headsFile), early, 0o600); err != nil {
		t.Fatal(err)
	}
	f.verified(15)

	cfg := VerifyConfig{Path: f.cfg.Dir, Keys: f.cfg.VerifierKey, ExpectHeads: kept}
	r, err := Verify(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) != 1 || r.Problems[0].Kind != Truncated || r.Problems[0].Sequence != 10 {
		t.Errorf("problems %v, want a truncation after web 10", r.Problems)
	}
	cfg.ExpectHeads = list[1]
	if r, err = Verify(context.Background(), cfg); err != nil || !r.OK {
		t.Errorf("an earlier head: %v, %v", r, err)
	}
	cfg.ExpectHeads = []byte("nothing")
	if _, err := Verify(context.Background(), cfg); err == nil {
		t.Error("a file without a head: no error")
	}
}

// Evidence in several segments: a segment taken out, and what follows it.
func TestVerifySegments(t *testing.T) {
	f := newFixture(t)
	f.cfg.SegmentBytes = 2 << 10
	l := f.open()
	for range 20 {
		f.append(l, webs, 5)
	}
	segments, _ := l.view()
	f.close(l)
	f.verified(100)
	if len(segments) < 4 {
		t.Fatalf("%d segments", len(segments))
	}
	for i, want := range map[int][]found{
		0:                 {{Kind: Missing}},
		1:                 {{Kind: Missing}},
		len(segments) - 1: {{Kind: Truncated}},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			b, err := os.ReadFile(segments[i].name)
			if err != nil {
				t.Fatal(err)
			}
			defer os.WriteFile(segments[i].name, b, 0o600)
			if err := os.Remove(segments[i].name); err != nil {
				t.Fatal(err)
			}
			r := f.verify()
			if len(r.Problems) == 0 || r.Problems[0].Kind != want[0].Kind {
				t.Errorf("problems %v, want %s", r.Problems, want[0].Kind)
			}
		})
	}
}

// Streams that are only in one segment, taken out of it: the rest fits, and
// the next segment goes on as if nothing were missing.
func TestVerifyStreamTakenOut(t *testing.T) {
	f := newFixture(t)
	f.cfg.SegmentBytes = 4 << 10
	l := f.open()
	f.append(l, webs, 5)
	f.append(l, apis, 5)
	for range 10 {
		f.append(l, webs, 5)
	}
	f.close(l)
	fo := forge(t, f.cfg.Dir, 0)
	fo.frames = slices.Delete(fo.frames, 2, 3)
	fo.write()
	r := f.verify()
	if len(r.Problems) != 1 || r.Problems[0].Kind != Missing || r.Problems[0].Index != 5 || r.Problems[0].Count != 5 {
		t.Errorf("problems %v, want entries 5 to 9 missing", r.Problems)
	}
}

func TestVerifyErrors(t *testing.T) {
	f := evidenceFor(t)
	for name, cfg := range map[string]VerifyConfig{
		"no key":    {Path: f.cfg.Dir},
		"no file":   {Path: f.cfg.Dir + "x", Keys: f.cfg.VerifierKey},
		"no ledger": {Path: t.TempDir(), Keys: f.cfg.VerifierKey},
		"no tar":    {Path: filepath.Join(f.cfg.Dir, headsFile), Keys: f.cfg.VerifierKey},
	} {
		if _, err := Verify(context.Background(), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Verify(ctx, VerifyConfig{Path: f.cfg.Dir, Keys: f.cfg.VerifierKey}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
