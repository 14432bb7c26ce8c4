package fileset

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func set(n int) []File {
	v := []byte(strconv.Itoa(n))
	return []File{{"svid.pem", v, 0o644}, {"key.pem", v, 0o600}}
}

func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	versions := 0
	for _, e := range entries {
		if e.IsDir() {
			versions++
			continue
		}
		out[e.Name()], _ = os.Readlink(filepath.Join(dir, e.Name()))
	}
	out["versions"] = strconv.Itoa(versions)
	delete(out, Current)
	return out
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "set")
	for n := range 5 {
		files := set(n)
		if n < 3 {
			files = append(files, File{"partner.pem", []byte("x"), 0o644})
		}
		paths, err := Write(dir, files)
		if err != nil {
			t.Fatal(err)
		}
		for i, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil || string(data) != string(files[i].Data) {
				t.Errorf("%s holds %q, %v", path, data, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != files[i].Mode {
				t.Errorf("%s has mode %v, want %v", path, info.Mode(), files[i].Mode)
			}
		}
	}
	want := map[string]string{"svid.pem": "current/svid.pem", "key.pem": "current/key.pem", "versions": "2"}
	if diff := cmp.Diff(want, list(t, dir)); diff != "" {
		t.Errorf("after five writes (-want +got):\n%s", diff)
	}
}

// A directory that another program filled with plain files is taken over.
func TestWriteOverFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"svid.pem", "key.pem", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Write(dir, set(1)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"svid.pem": "current/svid.pem", "key.pem": "current/key.pem", "other": "", "versions": "1"}
	if diff := cmp.Diff(want, list(t, dir)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := Write(dir, set(1)); err != nil {
		t.Fatal(err)
	}
	before := list(t, dir)
	for _, name := range []string{"../x", ".hidden", "current", ""} {
		if _, err := Write(dir, append(set(2), File{Name: name})); err == nil {
			t.Errorf("%q was written", name)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "key.pem")); string(data) != "1" {
		t.Errorf("the key is that of %q after a failed write", data)
	}
	if diff := cmp.Diff(before, list(t, dir)); diff != "" {
		t.Errorf("a failed write left (-before +after):\n%s", diff)
	}
}

// Readers that follow current once never see two versions, however often it is
// replaced.
func TestReadersSeeOneVersion(t *testing.T) {
	dir := t.TempDir()
	if _, err := Write(dir, set(0)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		var err error
		for n := 1; n <= 100 && err == nil; n++ {
			_, err = Write(dir, set(n))
		}
		done <- err
	}()
	reads := 0
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if reads == 0 {
				t.Error("nothing was read")
			}
			return
		default:
		}
		root, err := os.OpenRoot(filepath.Join(dir, Current))
		if err != nil {
			t.Fatal(err)
		}
		svid, err1 := root.ReadFile("svid.pem")
		key, err2 := root.ReadFile("key.pem")
		root.Close()
		// Two versions later the files of this one are gone.
		if err1 != nil || err2 != nil {
			continue
		}
		if reads++; string(svid) != string(key) {
			t.Fatalf("certificate of version %s, key of version %s", svid, key)
		}
	}
}
