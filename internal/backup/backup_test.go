package backup_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/backup"
)

var (
	now   = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	files = map[string]string{"writ.db": "database", "keys/ca.pem": "secret", "public/bundle.pem": "public", "audit/heads": ""}
	order = []string{"keys/ca.pem", "writ.db", "public/bundle.pem", "audit/heads"}
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sample(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := backup.NewWriter(&buf, backup.Manifest{TrustDomain: "example.org", Created: now, Keys: true})
	for _, name := range order {
		check(t, w.Add(name, int64(len(files[name])), !strings.HasPrefix(name, "public/"), strings.NewReader(files[name])))
	}
	check(t, w.Close())
	return buf.Bytes()
}

func restore(t testing.TB, data []byte, dir string) (*backup.Manifest, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backup.tar")
	check(t, os.WriteFile(file, data, 0o600))
	return backup.Restore(file, dir, now)
}

// left tells what is in the directory around dir.
func left(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(dir))
	check(t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRestore(t *testing.T) {
	for name, prepare := range map[string]func(string) error{
		"new":   func(string) error { return nil },
		"empty": func(dir string) error { return os.Mkdir(dir, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			check(t, prepare(dir))
			m, err := restore(t, sample(t), dir)
			check(t, err)
			if len(m.Files) != len(files) || m.TrustDomain != "example.org" || !m.Keys {
				t.Errorf("manifest: %+v", m)
			}
			for name, want := range files {
				got, err := os.ReadFile(filepath.Join(dir, name))
				check(t, err)
				if string(got) != want {
					t.Errorf("%s: %q", name, got)
				}
			}
			modes := map[string]string{}
			for _, name := range []string{".", "keys", "public", "audit", "writ.db", "keys/ca.pem", "public/bundle.pem"} {
				info, err := os.Stat(filepath.Join(dir, name))
				check(t, err)
				modes[name] = info.Mode().String()
			}
			want := map[string]string{".": "drwx------", "keys": "drwx------", "public": "drwxr-xr-x", "audit": "drwx------",
				"writ.db": "-rw-------", "keys/ca.pem": "-rw-------", "public/bundle.pem": "-rw-r--r--"}
			if diff := cmp.Diff(want, modes); diff != "" {
				t.Errorf("modes (-want +got):\n%s", diff)
			}
			mark, err := backup.ReadMark(dir)
			check(t, err)
			if diff := cmp.Diff(&backup.Mark{Created: now, Restored: now}, mark); diff != "" {
				t.Error(diff)
			}
			check(t, backup.RemoveMark(dir))
			if mark, err := backup.ReadMark(dir); mark != nil || err != nil {
				t.Errorf("mark: %v, %v", mark, err)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	good := sample(t)
	flip := func(what string) []byte {
		data := bytes.Clone(good)
		i := bytes.Index(data, []byte(what))
		data[i] ^= 1
		return data
	}
	evil := func(name string, kind byte) []byte {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		check(t, tw.WriteHeader(&tar.Header{Typeflag: kind, Name: name, Linkname: "/etc/passwd", Mode: 0o600}))
		check(t, tw.Close())
		return buf.Bytes()
	}
	// The file before the manifest, cut out.
	without := func() []byte {
		var buf bytes.Buffer
		tw, tr := tar.NewWriter(&buf), tar.NewReader(bytes.NewReader(good))
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			check(t, err)
			if h.Name == "audit/heads" {
				continue
			}
			check(t, tw.WriteHeader(h))
			_, err = io.Copy(tw, tr)
			check(t, err)
		}
		check(t, tw.Close())
		return buf.Bytes()
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"a changed file":     {flip("database"), "writ.db is not what the manifest says"},
		"a missing file":     {without(), "names 4"},
		"cut short":          {good[:len(good)/2], "the backup"},
		"nothing":            {nil, "no manifest"},
		"another version":    {bytes.Replace(good, []byte(`"version": 1`), []byte(`"version": 2`), 1), "version 2"},
		"a path that leaves": {evil("../x", tar.TypeReg), "no file of a control plane"},
		"an absolute path":   {evil("/keys/x", tar.TypeReg), "no file of a control plane"},
		"a hidden file":      {evil("keys/.x", tar.TypeReg), "no file of a control plane"},
		"a link":             {evil("keys/x", tar.TypeSymlink), "no file of one"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if _, err := restore(t, c.data, dir); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if got := left(t, dir); len(got) > 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
	t.Run("a directory with files", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		check(t, os.Mkdir(dir, 0o700))
		check(t, os.WriteFile(filepath.Join(dir, "writ.db"), nil, 0o600))
		if _, err := restore(t, good, dir); err == nil || !strings.Contains(err.Error(), "not empty (writ.db)") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAdd(t *testing.T) {
	w := backup.NewWriter(io.Discard, backup.Manifest{})
	if err := w.Add("keys/a.pem", 4, true, strings.NewReader("abc")); err == nil {
		t.Error("a file that is shorter than it was said to be")
	}
	if err := backup.NewWriter(io.Discard, backup.Manifest{}).Add("../a", 0, true, strings.NewReader("")); err == nil {
		t.Error("a path that leaves the directory")
	}
}

// FuzzVerify: whatever is read, it is refused or its sums hold.
func FuzzVerify(f *testing.F) {
	f.Add(sample(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := backup.Verify(bytes.NewReader(data))
		if err == nil && m.Version != backup.Version {
			t.Errorf("version %d", m.Version)
		}
	})
}
