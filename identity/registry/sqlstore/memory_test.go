package sqlstore

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzMemory: whatever the file holds, reading it ends; and what is read, is what
// is read of it once it is written.
func FuzzMemory(f *testing.F) {
	frame := endFrame(appendSeen(appendSeen(appendSeen(beginFrame(7), "a", &digest{1}), "b", &digest{2}), "a", nil))
	f.Add(frame)
	f.Add(append(frame, frame[:9]...))
	f.Add([]byte{0, 0, 0, 8, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte(nil))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, frames []byte) {
		path := filepath.Join(dir, "seen")
		if err := os.WriteFile(path, append([]byte(memoryHeader+"key\n"), frames...), 0o600); err != nil {
			t.Fatal(err)
		}
		was, err := readMemory(path, "key")
		if err != nil {
			t.Fatal(err)
		}
		m := &memory{path: path}
		if err := m.rewrite("key", was.revision, maps.All(was.entries)); err != nil {
			t.Fatal(err)
		}
		more := endFrame(appendSeen(beginFrame(was.revision+1), "more", &digest{3}))
		if err := m.add(more); err != nil {
			t.Fatal(err)
		}
		if err := m.close(); err != nil {
			t.Fatal(err)
		}
		again, err := readMemory(path, "key")
		if err != nil {
			t.Fatal(err)
		}
		was.revision++
		was.entries["more"] = digest{3}
		if diff := cmp.Diff(was.entries, again.entries); diff != "" || was.revision != again.revision {
			t.Errorf("revision %d, was %d: %s", again.revision, was.revision, diff)
		}
		if other, err := readMemory(path, "another"); err != nil || other.entries != nil {
			t.Errorf("of another key: %v, %v", other, err)
		}
	})
}
