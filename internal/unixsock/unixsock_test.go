package unixsock

import (
	"bufio"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const serveEnv = "UNIXSOCK_TEST_SERVE"

// TestMain lets the test binary serve a socket as a process of its own, for a
// test to kill.
func TestMain(m *testing.M) {
	if path := os.Getenv(serveEnv); path != "" {
		if _, err := Listen(path); err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Stdout.WriteString("serving\n")
		select {}
	}
	os.Exit(m.Run())
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func TestModes(t *testing.T) {
	for _, tc := range []struct {
		name      string
		opts      []Option
		dir, sock fs.FileMode
	}{
		{"private", nil, 0o700, 0o600},
		{"public", []Option{Public()}, 0o755, 0o777},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "run", "a.sock")
			ln, err := Listen(path, tc.opts...)
			if err != nil {
				t.Fatal(err)
			}
			if got := mode(t, filepath.Dir(path)).Perm(); got != tc.dir {
				t.Errorf("directory has mode %04o, want %04o", got, tc.dir)
			}
			if got := mode(t, path).Perm(); got != tc.sock {
				t.Errorf("socket has mode %04o, want %04o", got, tc.sock)
			}
			if err := ln.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after Close the socket is still there: %v", err)
			}
		})
	}
}

func TestRefusesDirectories(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, base string) string
		want    string
	}{
		{"world-writable", func(t *testing.T, base string) string {
			return made(t, filepath.Join(base, "d"), 0o777)
		}, "others can write"},
		{"world-writable and sticky", func(t *testing.T, base string) string {
			return made(t, filepath.Join(base, "d"), 0o777|fs.ModeSticky)
		}, "others can write"},
		{"group-writable", func(t *testing.T, base string) string {
			return made(t, filepath.Join(base, "d"), 0o770)
		}, "others can write"},
		{"below a world-writable one", func(t *testing.T, base string) string {
			return made(t, filepath.Join(made(t, filepath.Join(base, "d"), 0o777), "e"), 0o700)
		}, "anybody can write"},
		{"of another user", func(t *testing.T, base string) string {
			if os.Getuid() != 0 {
				t.Skip("only root can give a directory away")
			}
			d := made(t, filepath.Join(base, "d"), 0o700)
			if err := os.Chown(d, 12345, -1); err != nil {
				t.Fatal(err)
			}
			return d
		}, "belongs to uid 12345"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(tc.prepare(t, t.TempDir()), "a.sock")
			ln, err := Listen(path)
			if err == nil {
				ln.Close()
				t.Fatal("Listen accepted the directory")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not contain %q", err, tc.want)
			}
			if _, err := os.Lstat(path); err == nil {
				t.Error("a socket was made")
			}
		})
	}
}

func made(t *testing.T, dir string, mode fs.FileMode) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("second Listen: %v, want ErrInUse", err)
	}
	dial(t, path)
	ln.Close()
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v, want net.ErrClosed", err)
	}
	again, err := Listen(path)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	again.Close()
}

// A program that knows nothing of our lock keeps its socket.
func TestKeepsForeignLiveSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	foreign, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("Listen: %v, want ErrInUse", err)
	}
	dial(t, path)
}

func TestKeepsOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Fatal("Listen took the place of a file")
	}
	if data, _ := os.ReadFile(path); string(data) != "precious" {
		t.Errorf("the file now holds %q", data)
	}
}

func TestTakesOverFromKilledProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "serving\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("while the child lives: %v, want ErrInUse", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the killed process left no socket to take over: %v", err)
	}
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dial(t, path)
}

func TestLongPaths(t *testing.T) {
	base := t.TempDir()
	long := filepath.Join(base, strings.Repeat("d", 60), strings.Repeat("e", 60), "a.sock")
	before := Path(long)
	if len(before) > MaxPath {
		t.Fatalf("Path has %d bytes", len(before))
	}
	for _, tc := range []struct {
		name string
		opts []Option
		dir  fs.FileMode
	}{{"private", nil, 0o700}, {"public", []Option{Public()}, 0o755}} {
		t.Run(tc.name, func(t *testing.T) {
			path := strings.Replace(long, "a.sock", tc.name, 1)
			effective := Path(path)
			ln, err := Listen(path, tc.opts...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(filepath.Dir(effective)) })
			defer ln.Close()
			if after := Path(path); after != effective {
				t.Errorf("Path was %s and is now %s", effective, after)
			}
			if got := mode(t, filepath.Dir(effective)).Perm(); got != tc.dir {
				t.Errorf("directory has mode %04o, want %04o", got, tc.dir)
			}
			dial(t, effective)
		})
	}
	if a, b := Path(long), Path(long+"2"); a == b {
		t.Error("two paths share one socket")
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(filepath.Join(base, strings.Repeat("d", 60)), link); err != nil {
		t.Fatal(err)
	}
	through := filepath.Join(link, strings.Repeat("e", 60), "a.sock")
	if got, want := Path(through), Path(long); got != want {
		t.Errorf("through a link Path is %s, want %s", got, want)
	}
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Path("run/a.sock"), filepath.Join(wd, "run/a.sock"); got != want {
		t.Errorf("Path = %s, want %s", got, want)
	}
}

func dial(t *testing.T, path string) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody answers: %v", err)
	}
	conn.Close()
}
