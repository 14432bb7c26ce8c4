package spool

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
)

// A record whose length word was not stored is not there.
func TestPartialRecordDiscarded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	record(t, s, 3)
	name, end := s.active().name, s.active().end.Load()
	closeSpool(t, s)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("garbage!", 40)), end+4); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for range 2 {
		s = open(t, config(dir))
		record(t, s, 1)
		closeSpool(t, s)
	}
	s = open(t, config(dir))
	all := readAll(t, s)
	if n := contiguous(t, all); n != 5 || all[4].Epoch != 1 {
		t.Errorf("%d records, want 5 of epoch 1: %v", n, all)
	}
}

func edit(t *testing.T, name string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func segments(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "0*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Whatever happens to the files, the spool opens, keeps what is whole, and
// opens a new epoch that begins with a gap.
func TestDamage(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		cause  string
		// kept records of epoch 1, of 400 in several segments.
		kept func(n int) bool
	}{
		{"first record", func(t *testing.T, dir string) { edit(t, segments(t, dir)[0], flip(headerSize+40)) }, audit.GapSpoolCorrupt, func(n int) bool { return n == 0 }},
		{"segment in the middle", func(t *testing.T, dir string) { edit(t, segments(t, dir)[1], flip(headerSize+40)) }, audit.GapSpoolCorrupt, func(n int) bool { return n > 50 && n < 400 }},
		{"length word", func(t *testing.T, dir string) { edit(t, segments(t, dir)[1], flip(headerSize+2)) }, audit.GapSpoolCorrupt, func(n int) bool { return n > 50 && n < 400 }},
		{"header", func(t *testing.T, dir string) { edit(t, segments(t, dir)[1], flip(17)) }, audit.GapSpoolCorrupt, func(n int) bool { return n > 50 && n < 400 }},
		{"segment gone", func(t *testing.T, dir string) { os.Remove(segments(t, dir)[1]) }, audit.GapSpoolCorrupt, func(n int) bool { return n > 50 && n < 400 }},
		{"segment cut", func(t *testing.T, dir string) {
			edit(t, segments(t, dir)[1], func(b []byte) []byte { return b[:headerSize+100] })
		}, audit.GapSpoolCorrupt, func(n int) bool { return n > 50 && n < 400 }},
		{"all segments gone", func(t *testing.T, dir string) {
			for _, name := range segments(t, dir) {
				os.Remove(name)
			}
		}, audit.GapSpoolLost, func(n int) bool { return n == 0 }},
		{"identity damaged", func(t *testing.T, dir string) { edit(t, filepath.Join(dir, metaFile), flip(0)) }, audit.GapSpoolCorrupt, func(n int) bool { return n == 400 }},
		{"identity gone", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, metaFile)) }, audit.GapSpoolCorrupt, func(n int) bool { return n == 400 }},
		{"machine died", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, metaFile), func(b []byte) []byte {
				var m meta
				if err := json.Unmarshal(b, &m); err != nil {
					t.Fatal(err)
				}
				m.Boot, m.Clean = "another", false
				b, _ = json.Marshal(m)
				return b
			})
		}, audit.GapSpoolLost, func(n int) bool { return n == 400 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, config(dir))
			for range 400 {
				if _, err := s.Record(note(strings.Repeat("x", 1000))); err != nil {
					t.Fatal(err)
				}
			}
			instance := s.Stream().Instance
			closeSpool(t, s)
			tc.damage(t, dir)

			s = open(t, config(dir))
			record(t, s, 1)
			all := readAll(t, s)
			contiguous(t, all)
			old := 0
			for _, r := range all {
				if r.Epoch == 1 {
					old++
				}
			}
			if !tc.kept(old) {
				t.Errorf("%d records kept", old)
			}
			if s.Stream().Instance != instance {
				t.Errorf("instance %s, want %s", s.Stream().Instance, instance)
			}
			fresh := all[old:]
			if len(fresh) < 2 || fresh[0].Epoch != 2 || fresh[0].Sequence != 1 || fresh[0].Gap != tc.cause {
				t.Errorf("new epoch %+v, want a gap of cause %s", fresh, tc.cause)
			}
			closeSpool(t, s)
			s = open(t, config(dir))
			if st := s.Status(); st.Epoch != 2 {
				t.Errorf("epoch %d after another restart, want 2", st.Epoch)
			}
		})
	}
}

// A reboot after a clean stop loses nothing, and opens no epoch.
func TestCleanReboot(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	record(t, s, 3)
	closeSpool(t, s)
	edit(t, filepath.Join(dir, metaFile), func(b []byte) []byte {
		return []byte(strings.ReplaceAll(string(b), bootID(), "another"))
	})
	if st := open(t, config(dir)).Status(); st.Epoch != 1 || st.Committed != 3 {
		t.Errorf("status %+v", st)
	}
}

// A disk without room shows at Open, and while recording as ErrFull.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 2<<20-64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(filepath.Join(dir, "spool"))
	cfg.MaxBytes = 16 << 20
	if s, err := Open(cfg); err == nil {
		s.Close()
		t.Fatal("Open on a full disk: no error")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	n := fill(t, s)
	if n == 0 {
		t.Error("nothing was recorded")
	}
	if got := contiguous(t, readAll(t, s)); got != uint64(n) {
		t.Errorf("%d records, want %d", got, n)
	}
	closeSpool(t, s)
}
