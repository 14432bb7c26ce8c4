package supervise

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLogLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var echoed []string
	l, err := OpenLog(path, 1<<20, func(line string) { echoed = append(echoed, line) })
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"a\nb", "c\n\n", "end"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("wrote %d: %v", n, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"a", "bc", "", "end"}
	if diff := cmp.Diff(want, echoed); diff != "" {
		t.Errorf("echoed (-want +got):\n%s", diff)
	}
	data, err := os.ReadFile(path)
	if err != nil || string(data) != "a\nbc\n\nend\n" {
		t.Errorf("file %q, %v", data, err)
	}
}

func TestLogIsMovedAtItsLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(path, 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"one", "two", "three", "four"} {
		l.Write([]byte(line + "\n"))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{path + ".1": "three\n", path: "four\n"} {
		if data, err := os.ReadFile(name); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v, want %q", filepath.Base(name), data, err, want)
		}
	}
}

func TestLogCutsALineWithoutEnd(t *testing.T) {
	l, err := OpenLog(filepath.Join(t.TempDir(), "log"), 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Write([]byte(strings.Repeat("x", maxLine+1)))
	if tail := l.Tail(); len(tail) != 1 || len(tail[0]) != maxLine {
		t.Errorf("%d lines", len(tail))
	}
	for range 3 * tailLines {
		l.Write([]byte("y\n"))
	}
	if n := len(l.Tail()); n != tailLines {
		t.Errorf("tail of %d lines", n)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
