package unix

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/writ-dev/writ/internal/peercred"
)

const (
	callEnv = "ATTEST_TEST_CALL"
	thenEnv = "ATTEST_TEST_THEN"
)

// TestMain lets the test binary be a workload: it connects to a socket, or if
// told to then becomes another program, says what it did and waits for the end
// of its standard input.
func TestMain(m *testing.M) {
	path := os.Getenv(callEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	if path != "-" {
		if _, err := net.Dial("unix", path); err != nil {
			os.Exit(1)
		}
		if then := os.Getenv(thenEnv); then != "" {
			os.Setenv(callEnv, "-")
			syscall.Exec(then, []string{then}, os.Environ())
			os.Exit(1)
		}
	}
	os.Stdout.WriteString("ready\n")
	io.Copy(io.Discard, os.Stdin)
}

// callFrom runs the program at exe as a workload and returns it as a peer.
func callFrom(t *testing.T, exe string, attr *syscall.SysProcAttr, env ...string) peercred.Peer {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(openDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := os.Chmod(ln.Addr().String(), 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), callEnv+"="+ln.Addr().String()), env...)
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("cannot start a workload like that here: %v", err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("workload said %q, %v", line, err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p, err := peercred.Of(conn.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// openDir is a temporary directory that other users can enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "attest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// program copies the test binary to name in a directory of its own.
func program(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(openDir(t), name)
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func sumFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func attestor() *Attestor { return New(Config{Log: slog.New(slog.DiscardHandler)}) }

func everything(string) bool { return true }

func only(kinds ...string) func(string) bool {
	return func(k string) bool { return slices.Contains(kinds, k) }
}

// of keeps the selectors of the given kinds.
func of(selectors []string, kinds ...string) []string {
	var got []string
	for _, s := range selectors {
		if kind := strings.Split(s, ":")[1]; slices.Contains(kinds, kind) {
			got = append(got, s)
		}
	}
	return got
}

func TestSelectors(t *testing.T) {
	exe := program(t, "app")
	p := callFrom(t, exe, nil)
	got, err := attestor().Attest(t.Context(), p, everything)
	if err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"unix:uid:" + me.Uid, "unix:gid:" + me.Gid, "unix:user:" + me.Username, "unix:group:" + group.Name,
		"unix:path:" + exe, "unix:sha256:" + sumFile(t, exe),
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("no %s in %q", w, got)
		}
	}
}

func TestOnlyWhatIsAsked(t *testing.T) {
	p := callFrom(t, os.Args[0], nil)
	for _, tc := range []struct {
		asked  []string
		absent []string
	}{
		{nil, []string{"user", "group", "path", "sha256"}},
		{[]string{"unix:path"}, []string{"user", "group", "sha256"}},
		{[]string{"unix:sha256"}, []string{"user", "group", "path"}},
		{[]string{"unix:user"}, []string{"path", "sha256"}},
	} {
		got, err := attestor().Attest(t.Context(), p, only(tc.asked...))
		if err != nil {
			t.Fatal(err)
		}
		if extra := of(got, tc.absent...); len(extra) > 0 {
			t.Errorf("asked for %q, got also %q", tc.asked, extra)
		}
		if len(of(got, "uid")) != 1 {
			t.Errorf("no uid in %q", got)
		}
	}
}

func TestSupplementaryGroups(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can choose groups")
	}
	p := callFrom(t, program(t, "app"), &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1, Gid: 2, Groups: []uint32{3, 54321}}})
	got, err := attestor().Attest(t.Context(), p, only("unix:group"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"unix:uid:1", "unix:gid:2", "unix:gid:3", "unix:gid:54321"}
	if diff := cmp.Diff(want, of(got, "uid", "gid")); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	for _, id := range []uint32{2, 3} {
		if g, err := user.LookupGroupId(strconv.Itoa(int(id))); err == nil && !slices.Contains(got, "unix:group:"+g.Name) {
			t.Errorf("no unix:group:%s in %q", g.Name, got)
		}
	}
}

func TestPathOfAnotherFileNeverMatches(t *testing.T) {
	remove := func(t *testing.T, exe string) {
		if err := os.Remove(exe); err != nil {
			t.Fatal(err)
		}
	}
	write := func(t *testing.T, path string) {
		if err := os.WriteFile(path, []byte("another program"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name  string
		apply func(t *testing.T, exe string)
	}{
		{"deleted", remove},
		{"replaced", func(t *testing.T, exe string) { remove(t, exe); write(t, exe) }},
		{"deleted, and the kernel's mark is a file", func(t *testing.T, exe string) {
			remove(t, exe)
			write(t, exe)
			write(t, exe+" (deleted)")
		}},
		{"replaced by a link to another", func(t *testing.T, exe string) {
			remove(t, exe)
			if err := os.Symlink("/bin/sh", exe); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			exe := program(t, "app")
			sum := sumFile(t, exe)
			p := callFrom(t, exe, nil)
			tc.apply(t, exe)
			got, err := attestor().Attest(t.Context(), p, everything)
			if err != nil {
				t.Fatal(err)
			}
			if paths := of(got, "path"); len(paths) > 0 {
				t.Errorf("got %q", paths)
			}
			// The hash is of what runs, not of what has its name now.
			if diff := cmp.Diff([]string{"unix:sha256:" + sum}, of(got, "sha256")); diff != "" {
				t.Errorf("sha256 (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHardLinksAreToldApart(t *testing.T) {
	a := program(t, "a")
	b := filepath.Join(filepath.Dir(a), "b")
	if err := os.Link(a, b); err != nil {
		t.Fatal(err)
	}
	for _, exe := range []string{a, b} {
		got, err := attestor().Attest(t.Context(), callFrom(t, exe, nil), only("unix:path"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"unix:path:" + exe}, of(got, "path")); diff != "" {
			t.Errorf("path of %s (-want +got):\n%s", exe, diff)
		}
	}
	t.Run("in another mount namespace", func(t *testing.T) {
		attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if os.Getuid() != 0 {
			attr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
			}
		}
		got, err := attestor().Attest(t.Context(), callFrom(t, b, attr), only("unix:path"))
		if err != nil {
			t.Fatal(err)
		}
		if paths := of(got, "path"); len(paths) > 0 {
			t.Errorf("got %q for a file with two names", paths)
		}
	})
}

func TestSizeLimit(t *testing.T) {
	p := callFrom(t, program(t, "app"), nil)
	a := New(Config{MaxExecutable: 1000, Log: slog.New(slog.DiscardHandler)})
	got, err := a.Attest(t.Context(), p, everything)
	if err != nil {
		t.Fatal(err)
	}
	if sums := of(got, "sha256"); len(sums) > 0 {
		t.Errorf("hashed a program above the limit: %q", sums)
	}
	if len(of(got, "path")) != 1 {
		t.Errorf("the limit is on hashing, but the path is gone too: %q", got)
	}
}

// A caller that becomes a set-user-ID program must not get that program's path
// for its connection.
func TestRefusesChangedUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make a program that sets its user id")
	}
	setuid := program(t, "privileged")
	if err := os.Chmod(setuid, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	p := callFrom(t, program(t, "app"), attr, thenEnv+"="+setuid)
	if uid, _, err := p.Effective(); err != nil || uid != 0 {
		t.Skipf("set-user-ID programs do not work here (uid %d, %v)", uid, err)
	}
	got, err := attestor().Attest(t.Context(), p, everything)
	if err == nil {
		t.Fatalf("got %q", got)
	}
	if !strings.Contains(err.Error(), "connected as uid 65534") {
		t.Errorf("error %q does not say why", err)
	}
}

func TestRefusesTheDead(t *testing.T) {
	p := callFrom(t, os.Args[0], nil)
	process, err := os.FindProcess(p.PID)
	if err != nil {
		t.Fatal(err)
	}
	process.Kill()
	process.Wait()
	if got, err := attestor().Attest(t.Context(), p, everything); err == nil {
		t.Fatalf("got %q for a process that has ended", got)
	}
}

func TestHashIsRemembered(t *testing.T) {
	a := attestor()
	exe := program(t, "app")
	for range 2 {
		if _, err := a.Attest(t.Context(), callFrom(t, exe, nil), only("unix:sha256")); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.hashes) != 1 {
		t.Errorf("remembered %d hashes of one program", len(a.hashes))
	}
}
