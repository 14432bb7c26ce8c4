package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const roleEnv = "SUPERVISE_TEST_ROLE"

// TestMain lets the test binary be the programs that the tests run.
func TestMain(m *testing.M) {
	role, arg, _ := strings.Cut(os.Getenv(roleEnv), " ")
	switch role {
	case "":
		os.Exit(m.Run())
	case "ready":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("about to be ready")
		say("STATUS=warming up\nREADY=1")
		<-term
		fmt.Println("bye")
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		say("READY=1")
		select {}
	case "mute":
		select {}
	case "waits":
		say("STATUS=waiting")
		say("STATUS=waiting for " + arg)
		select {}
	case "dies":
		fmt.Fprintln(os.Stderr, "cannot open the database")
		os.Exit(3)
	case "once":
		// Dies the first time, as told by a file that it leaves.
		if _, err := os.Stat(arg); err != nil {
			_ = os.WriteFile(arg, nil, 0o600)
			os.Exit(4)
		}
		say("READY=1")
		select {}
	case "listens":
		ln, err := net.Listen("tcp", arg)
		if err != nil {
			os.Exit(5)
		}
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	case "parent":
		// A child in the same process group, which outlives this program
		// unless the group is taken along.
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), roleEnv+"=mute")
		if err := child.Start(); err != nil {
			os.Exit(6)
		}
		fmt.Println(child.Process.Pid)
		say("READY=1")
		select {}
	case "supervisor":
		supervisor(arg)
	}
}

func say(state string) {
	if ok, err := daemon.SdNotify(false, state); !ok || err != nil {
		os.Exit(7)
	}
}

// supervisor runs a program that runs another, tells their pids and waits to
// be killed.
func supervisor(dir string) {
	g, err := NewGroup(dir)
	if err != nil {
		os.Exit(8)
	}
	p := g.Start(Config{Name: "x", Path: os.Args[0], Env: []string{roleEnv + "=ready"}})
	if err := p.WaitReady(context.Background()); err != nil {
		os.Exit(9)
	}
	fmt.Println(p.PID())
	select {}
}

type recorder struct{ changes chan Change }

func (r recorder) next(t *testing.T) Change {
	t.Helper()
	select {
	case c := <-r.changes:
		return c
	case <-t.Context().Done():
		t.Fatal("no change")
		return Change{}
	}
}

func group(t *testing.T) *Group {
	t.Helper()
	g, err := NewGroup(filepath.Join(t.TempDir(), "n"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// start runs the test binary in a role and stops it at the end of the test.
func start(t *testing.T, g *Group, role string, change func(*Config)) (*Process, recorder) {
	t.Helper()
	r := recorder{changes: make(chan Change, 100)}
	cfg := Config{
		Name: "prog", Path: os.Args[0], Env: []string{roleEnv + "=" + role},
		OnChange: func(c Change) { r.changes <- c },
		Backoff:  Backoff{First: time.Millisecond, Max: 4 * time.Millisecond},
	}
	if change != nil {
		change(&cfg)
	}
	p := g.Start(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.Stop(ctx)
	})
	return p, r
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestReadyAndStop(t *testing.T) {
	log, err := OpenLog(filepath.Join(t.TempDir(), "log"), 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, r := start(t, group(t), "ready", func(c *Config) { c.Output = log })
	ctx := bounded(t)
	if err := p.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	if !alive(pid) {
		t.Fatal("ready, but not alive")
	}
	p.Stop(ctx)
	if alive(pid) || p.PID() != 0 {
		t.Error("stopped, but alive")
	}
	var states []State
	for len(states) < 3 {
		states = append(states, r.next(t).State)
	}
	if diff := cmp.Diff([]State{Starting, Ready, Stopped}, states); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	// SIGTERM gave it the time to say good-bye.
	if diff := cmp.Diff([]string{"about to be ready", "bye"}, log.Tail()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

func TestStopKillsTheStubborn(t *testing.T) {
	p, _ := start(t, group(t), "stubborn", nil)
	if err := p.WaitReady(bounded(t)); err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p.Stop(ctx)
	if alive(pid) {
		t.Error("still alive")
	}
}

func TestRestartAfterKill(t *testing.T) {
	p, r := start(t, group(t), "ready", nil)
	ctx := bounded(t)
	if err := p.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	r.next(t)
	first := r.next(t).PID
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if c := r.next(t); c.State != Restarting || c.Err == nil || c.Err.Error() != "signal: killed" || c.Delay <= 0 {
		t.Errorf("after the kill: %+v", c)
	}
	if c := r.next(t); c.State != Starting {
		t.Errorf("then: %+v", c)
	}
	if c := r.next(t); c.State != Ready || c.PID == first {
		t.Errorf("at last: %+v", c)
	}
}

func TestSecondAttemptSucceeds(t *testing.T) {
	p, r := start(t, group(t), "once "+filepath.Join(t.TempDir(), "seen"), func(c *Config) { c.Attempts = 2 })
	if err := p.WaitReady(bounded(t)); err != nil {
		t.Fatal(err)
	}
	r.next(t)
	if c := r.next(t); c.State != Restarting || c.Err.Error() != "exit status 4" {
		t.Errorf("first attempt: %+v", c)
	}
}

func TestGivesUp(t *testing.T) {
	log, err := OpenLog(filepath.Join(t.TempDir(), "log"), 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := start(t, group(t), "dies", func(c *Config) { c.Attempts, c.Output = 2, log })
	err = p.WaitReady(bounded(t))
	if err == nil || err.Error() != "prog: exit status 3" {
		t.Errorf("got %v", err)
	}
	<-p.Done()
	if diff := cmp.Diff([]string{"cannot open the database", "cannot open the database"}, log.Tail()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

func TestMissingProgram(t *testing.T) {
	p, _ := start(t, group(t), "", func(c *Config) { c.Path, c.Attempts = "/nonexistent/program", 1 })
	if err := p.WaitReady(bounded(t)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestNotReadyInTime(t *testing.T) {
	p, _ := start(t, group(t), "mute", func(c *Config) { c.Attempts, c.ReadyTimeout = 1, 20*time.Millisecond })
	if err := p.WaitReady(bounded(t)); err == nil || err.Error() != "prog: not ready after 20ms" {
		t.Errorf("got %v", err)
	}
}

// What a program says that it waits for is why it is not ready.
func TestNotReadySaysWhatFor(t *testing.T) {
	p, r := start(t, group(t), "waits a policy: p.rego:3", func(c *Config) { c.Attempts, c.ReadyTimeout = 1, time.Second })
	if err := p.WaitReady(bounded(t)); err == nil || err.Error() != "prog: not ready after 1s: waiting for a policy: p.rego:3" {
		t.Errorf("got %v", err)
	}
	r.next(t)
	if c := r.next(t); c.State != Failed || !strings.HasSuffix(c.Err.Error(), "p.rego:3") {
		t.Errorf("told %+v", c)
	}
}

func TestReadyByPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	p, _ := start(t, group(t), "listens "+addr, func(c *Config) { c.Address = addr })
	if err := p.WaitReady(bounded(t)); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal("ready, but does not accept:", err)
	}
	conn.Close()
}

func TestPrepare(t *testing.T) {
	runs := 0
	p, r := start(t, group(t), "ready", func(c *Config) {
		c.Prepare = func(context.Context) error {
			if runs++; runs == 1 {
				return errors.New("no token")
			}
			return nil
		}
	})
	if err := p.WaitReady(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if c := r.next(t); c.State != Restarting || c.Err.Error() != "no token" {
		t.Errorf("first attempt: %+v", c)
	}
}

func TestStopDuringPrepare(t *testing.T) {
	entered := make(chan struct{})
	p, _ := start(t, group(t), "ready", func(c *Config) {
		c.Prepare = func(ctx context.Context) error {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	<-entered
	p.Stop(bounded(t))
	if p.PID() != 0 {
		t.Error("was started")
	}
}

// A program's children go with it, whether it is stopped or dies.
func TestGroupGoesAlong(t *testing.T) {
	for _, end := range []string{"stop", "die"} {
		t.Run(end, func(t *testing.T) {
			lines := make(chan string, 10)
			log, err := OpenLog(filepath.Join(t.TempDir(), "log"), 1<<20, func(line string) { lines <- line })
			if err != nil {
				t.Fatal(err)
			}
			p, r := start(t, group(t), "parent", func(c *Config) { c.Output = log })
			ctx := bounded(t)
			if err := p.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			grandchild, err := strconv.Atoi(<-lines)
			if err != nil {
				t.Fatal(err)
			}
			if end == "stop" {
				p.Stop(ctx)
			} else {
				r.next(t)
				_ = syscall.Kill(r.next(t).PID, syscall.SIGKILL)
				if c := r.next(t); c.State != Restarting {
					t.Fatalf("got %+v", c)
				}
			}
			gone(t, grandchild)
		})
	}
}

// Nothing outlives a supervisor that is killed itself.
func TestSupervisorKilled(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{roleEnv + "=supervisor " + filepath.Join(t.TempDir(), "n")}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	await(t, pidfd)
}

// gone waits for the end of a process that is not our child.
func gone(t *testing.T, pid int) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	await(t, pidfd)
}

// await waits until the process behind pidfd has ended.
func await(t *testing.T, pidfd int) {
	t.Helper()
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 20_000)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatal("still alive")
		default:
			return
		}
	}
}

func TestNotificationSocketOfALongDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	g, err := NewGroup(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := start(t, g, "ready", nil)
	if err := p.WaitReady(bounded(t)); err != nil {
		t.Fatal(err)
	}
	p.Stop(bounded(t))
	if info, err := os.Stat(g.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info, err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(g.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is left: %v", err)
	}
}

func TestClosedGroup(t *testing.T) {
	g, err := NewGroup(filepath.Join(t.TempDir(), "n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	p := g.Start(Config{Name: "late", Path: os.Args[0], Attempts: 1})
	if err := p.WaitReady(bounded(t)); err == nil {
		t.Error("started by a closed group")
	}
	<-p.Done()
}

func TestBackoff(t *testing.T) {
	b := Backoff{}.withDefaults()
	for failures, want := range map[int]time.Duration{
		1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond,
		8: 10 * time.Second, 60: 10 * time.Second, 1 << 20: 10 * time.Second,
	} {
		if got := b.delay(failures, 0.5); got != want {
			t.Errorf("after %d failures %s, want %s", failures, got, want)
		}
	}
	if low, high := b.delay(1, 0), b.delay(1, 1); low != 80*time.Millisecond || high != 120*time.Millisecond {
		t.Errorf("jitter from %s to %s", low, high)
	}
}

func TestParseNotification(t *testing.T) {
	for msg, want := range map[string]struct {
		ready  bool
		status string
	}{
		"READY=1": {true, ""}, "STATUS=x\nREADY=1\n": {true, "x"}, "READY=0": {}, "STATUS=READY=1": {false, "READY=1"},
		"XREADY=1": {}, "": {}, "READY=10": {}, "STATUS=a\nSTATUS=b": {false, "b"}, "STATUS=\n": {},
	} {
		if ready, status := parseNotification(msg); ready != want.ready || status != want.status {
			t.Errorf("%q: %v, %q, want %+v", msg, ready, status, want)
		}
	}
}
