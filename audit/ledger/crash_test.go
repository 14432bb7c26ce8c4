package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// A crash leaves anything after the last sync. What was acknowledged stays.
func TestTornTail(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	f.append(l, webs, 5)
	f.close(l)
	name := filepath.Join(f.cfg.Dir, segmentName(0))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	l = f.open()
	f.append(l, webs, 5)
	f.close(l)
	more, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	heads := filepath.Join(f.cfg.Dir, headsFile)
	signed, err := os.ReadFile(heads)
	if err != nil {
		t.Fatal(err)
	}
	list, _ := splitHeads(signed)
	// The heads as they were before the second run.
	early := 0
	for _, h := range list[:2] {
		early += len(h) + 1
	}
	for cut := len(whole); cut < len(more); cut += 41 {
		for _, garbage := range []string{"", "\x01\x00\x00\x00\x00\x00\x00\x00\x00", strings.Repeat("g", 50)} {
			if err := os.WriteFile(name, append(slices.Clone(more[:cut]), garbage...), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(heads, append(slices.Clone(signed[:early]), "writ/audit/exa"...), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(f.cfg)
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			got, err := l.Resume(webs, &auditv1.Hello{Epoch: 1, First: 1, Chain: make([]byte, 32)})
			if err != nil || got.Sequence != 5 {
				t.Fatalf("cut at %d: at %v, %v, want 5 events", cut, got, err)
			}
			f.at[webs] = got
			f.append(l, webs, 1)
			f.close(l)
			// What no killed process leaves is kept, with an alarm.
			kept, err := filepath.Glob(filepath.Join(f.cfg.Dir, damagedPrefix+"*"))
			if err != nil {
				t.Fatal(err)
			}
			if len(kept) > 0 && garbage == "" {
				t.Errorf("cut at %d: an unfinished frame was kept", cut)
			}
			f.verified(6 + uint64(len(kept)))
			for _, name := range kept {
				os.Remove(name)
			}
		}
	}
	// What a head covers is never cut off.
	if err := os.WriteFile(name, more[:len(more)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(heads, signed, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Open(f.cfg); !errors.Is(err, ErrDamaged) {
		if err == nil {
			l.Close()
		}
		t.Errorf("open: %v, want ErrDamaged", err)
	}
	if got, err := os.ReadFile(name); err != nil || len(got) != len(more)-1 {
		t.Error("a damaged ledger was changed")
	}
}

// A crash while a segment is begun leaves a stump.
func TestTornSegment(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	f.append(l, webs, 5)
	f.close(l)
	for _, stump := range []string{"", "WRIT", segmentMagic, segmentMagic + "\x40\x00\x00\x00\x00\x00\x00\x00\x01"} {
		if err := os.WriteFile(filepath.Join(f.cfg.Dir, segmentName(5)), []byte(stump), 0o600); err != nil {
			t.Fatal(err)
		}
		l := f.open()
		if got := l.Status().Events; got != 5 {
			t.Errorf("%q: %d events, want 5", stump, got)
		}
		f.close(l)
		f.verified(5)
	}
}

func TestCap(t *testing.T) {
	f := newFixture(t)
	f.cfg.MaxBytes = MinBytes
	l := f.open()
	rec := l.Recorder()
	turned, err := l.Err()
	if err != nil {
		t.Errorf("in trouble from the beginning: %v", err)
	}
	n := uint64(0)
	for {
		before := f.at[webs]
		err := appendBatch(l, f.batch(webs, 100))
		if errors.Is(err, audit.ErrFull) {
			f.at[webs] = before
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n += 100
	}
	<-turned // or it waits for ever
	if _, err := l.Err(); !errors.Is(err, audit.ErrFull) {
		t.Errorf("Err: %v, want ErrFull", err)
	}
	// What the control plane itself does goes on record from the reserve.
	for _, kind := range []auditv1.Kind{auditv1.Kind_KIND_CREDENTIAL, auditv1.Kind_KIND_POLICY, auditv1.Kind_KIND_ADMIN} {
		if _, err := rec.Record(&audit.Event{Kind: kind}); err != nil {
			t.Errorf("%v at the cap: %v", kind, err)
		}
	}
	if got := all(t, l, &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_ALARM}}, 0); len(got) != 1 {
		t.Errorf("%d alarms, want 1", len(got))
	}
	if st := l.Status(); st.Bytes > MinBytes || uint64(len(all(t, l, nil, 0))) != n+4 {
		t.Errorf("status %v", st)
	}
	f.close(l)
	f.verified(n + 4)
	// A higher cap lets it go on.
	f.cfg.MaxBytes = 2 * MinBytes
	l = f.open()
	f.append(l, webs, 100)
	f.close(l)
	f.verified(n + 104)
}

// A disk without room is like the cap: nothing half-written stays.
func TestDiskFull(t *testing.T) {
	f := newFixture(t)
	if err := os.Mkdir(f.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", f.cfg.Dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	defer unix.Unmount(f.cfg.Dir, unix.MNT_DETACH)
	ballast := filepath.Join(f.cfg.Dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l := f.open()
	n := uint64(0)
	var before audit.Position
	var err error
	for {
		before = f.at[webs]
		if err = appendBatch(l, f.batch(webs, 100)); err != nil {
			break
		}
		n += 100
	}
	if !errors.Is(err, audit.ErrFull) {
		t.Fatalf("error %v, want ErrFull", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.at[webs] = before
	f.append(l, webs, 100)
	f.close(l)
	f.verified(n + 101)
}

// Who watches the ledger is told when a record finds no room on the disk, with the
// disk's name, and when there is some again, though nobody records anything.
func TestDiskFullIsTold(t *testing.T) {
	f := newFixture(t)
	if err := os.Mkdir(f.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", f.cfg.Dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	defer unix.Unmount(f.cfg.Dir, unix.MNT_DETACH)
	f.cfg.RetryInterval = time.Millisecond
	f.cfg.SegmentBytes = 64 << 10 // one has to be begun while there is no room
	l := f.open()
	turned, err := l.Err()
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(f.cfg.Dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 768<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for {
		before := f.at[webs]
		if err := appendBatch(l, f.batch(webs, 100)); err != nil {
			f.at[webs] = before
			break
		}
		n += 100
	}
	<-turned
	if turned, err = l.Err(); !errors.Is(err, audit.ErrFull) || !strings.Contains(err.Error(), "no room on the disk of "+f.cfg.Dir) {
		t.Fatalf("Err: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for err != nil {
		<-turned
		turned, err = l.Err()
	}
	f.append(l, webs, 100)
	alarms := all(t, l, &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_ALARM}}, 0)
	if len(alarms) != 1 || !strings.Contains(alarms[0].String(), "had no room since") {
		t.Errorf("alarms: %v", alarms)
	}
	f.close(l)
	f.verified(n + 101)
}

// A ledger does not sign what it finds without a head of its own: that is how
// an altered record would become a signed one.
func TestNoHead(t *testing.T) {
	otherSigner, otherKey, err := LoadSigner(domain, filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, segmentBytes := range map[string]int64{"one segment": 0, "many segments": 2 << 10} {
		for _, otherKeys := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, another key %v", name, otherKeys), func(t *testing.T) {
				f := newFixture(t)
				f.cfg.SegmentBytes = segmentBytes
				l := f.open()
				for range 11 {
					f.append(l, webs, 3)
				}
				segments, _ := l.view()
				f.close(l)
				cfg := f.cfg
				if otherKeys {
					cfg.Signer, cfg.VerifierKey = otherSigner, otherKey
				} else if err := os.Remove(filepath.Join(f.cfg.Dir, headsFile)); err != nil {
					t.Fatal(err)
				}
				last := segments[len(segments)-1]
				fo := forge(t, f.cfg.Dir, last.index)
				if len(fo.frames) > 1 {
					fo.edit(1, func(b *batch) { b.records[1] = forged(b.first + 1) })
					fo.rehash()
					fo.write()
				}
				if l, err := Open(cfg); !errors.Is(err, ErrDamaged) {
					if err == nil {
						l.Close()
					}
					t.Errorf("open: %v, want ErrDamaged", err)
				}
			})
		}
	}
}

// A first start that was killed leaves a ledger that opens.
func TestKilledAtFirstStart(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	f.close(l)
	heads := filepath.Join(f.cfg.Dir, headsFile)
	segment := filepath.Join(f.cfg.Dir, segmentName(0))
	whole, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	for _, head := range []string{"", "writ/audit/exa"} {
		for _, cut := range []int{0, 4, len(segmentMagic) + 5, len(whole)} {
			if err := os.WriteFile(segment, whole[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(heads, []byte(head), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(f.cfg)
			if err != nil {
				t.Fatalf("head %q, segment of %d bytes: %v", head, cut, err)
			}
			if !l.haveHead {
				t.Error("a ledger is open without a head")
			}
			clear(f.at)
			f.append(l, webs, 2)
			f.close(l)
			f.verified(2)
		}
	}
}

// Damage before the end is not an unfinished end: what follows it was
// acknowledged. It is kept, and an alarm tells of it.
func TestDamageBeforeTheEnd(t *testing.T) {
	for name, at := range map[string]int{"length": 0, "checksum": 4, "payload": frameHead + 60} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			l := f.open()
			f.close(l)
			heads, err := os.ReadFile(filepath.Join(f.cfg.Dir, headsFile))
			if err != nil {
				t.Fatal(err)
			}
			l = f.open()
			var off int64
			for i := range 10 {
				if i == 4 {
					segments, _ := l.view()
					off = segments[0].size
				}
				f.append(l, webs, 1)
			}
			f.close(l)
			segment := filepath.Join(f.cfg.Dir, segmentName(0))
			b, err := os.ReadFile(segment)
			if err != nil {
				t.Fatal(err)
			}
			b[off+int64(at)] ^= 1
			if err := errors.Join(os.WriteFile(segment, b, 0o600), os.WriteFile(filepath.Join(f.cfg.Dir, headsFile), heads, 0o600)); err != nil {
				t.Fatal(err)
			}
			l = f.open()
			// The alarm is on record when what comes after it is.
			if _, err := l.Recorder().Record(&audit.Event{Kind: auditv1.Kind_KIND_LIFECYCLE}); err != nil {
				t.Fatal(err)
			}
			if got := all(t, l, &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_ALARM}}, 0); len(got) != 1 {
				t.Errorf("%d alarms, want 1", len(got))
			}
			f.close(l)
			f.verified(6)
			kept, err := filepath.Glob(filepath.Join(f.cfg.Dir, damagedPrefix+"*"))
			if err != nil || len(kept) != 1 {
				t.Fatalf("kept %v, %v", kept, err)
			}
			if got, err := os.ReadFile(kept[0]); err != nil || !slices.Equal(got, b[off:]) {
				t.Errorf("kept %d bytes, %v, want %d", len(got), err, len(b[off:]))
			}
		})
	}
}

// A segment whose state is damaged is not removed while there are records in it.
func TestDamagedState(t *testing.T) {
	f := newFixture(t)
	f.cfg.SegmentBytes = 1 << 10
	l := f.open()
	for segments, _ := l.view(); len(segments) < 3; segments, _ = l.view() {
		f.append(l, webs, 2)
	}
	f.append(l, webs, 1)
	segments, _ := l.view()
	f.close(l)
	last := segments[len(segments)-1]
	if fo := forge(t, f.cfg.Dir, last.index); len(fo.frames) < 2 {
		t.Fatal("the last segment holds nothing")
	}
	heads := filepath.Join(f.cfg.Dir, headsFile)
	signed, err := os.ReadFile(heads)
	if err != nil {
		t.Fatal(err)
	}
	// The heads as they were at the start.
	list, _ := splitHeads(signed)
	b, err := os.ReadFile(last.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{2, len(segmentMagic) + 1, len(segmentMagic) + 5, len(segmentMagic) + frameHead + 20} {
		changed := slices.Clone(b)
		changed[at] ^= 1
		if err := errors.Join(os.WriteFile(last.name, changed, 0o600), os.WriteFile(heads, append(slices.Clone(list[0]), '\n'), 0o600)); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(f.cfg); !errors.Is(err, ErrDamaged) {
			if err == nil {
				l.Close()
			}
			t.Errorf("byte %d: open: %v, want ErrDamaged", at, err)
		}
		if got, err := os.ReadFile(last.name); err != nil || !slices.Equal(got, changed) {
			t.Errorf("byte %d: a damaged segment was changed: %v", at, err)
		}
	}
}
