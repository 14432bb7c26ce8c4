//go:build interop

package interop

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// host is a machine of its own for a container engine, as far as namespaces make
// one: its mounts, processes and control groups are gone with its first process,
// which this test binary is once more (TestMain). That ends, with all that it
// started, when its standard input does: also where a test crashes.
//
// The engine sees its control groups from the root of a cgroup namespace, and so
// must who attests, as both do on a machine.
type host struct {
	pid int
	in  io.WriteCloser
	out *bufio.Scanner
	log string
}

// hostConfig says what the first process does.
type hostConfig struct {
	// Version of control groups, 1 or 2.
	Version int
	// Name of the control group that is the root.
	Name string
	// Dir is for what the host writes below Hidden.
	Dir string
	// Own are directories that are empty there, Over those where what is written
	// is not seen outside.
	Own, Over []string
	// Copies are files in whose place there are copies, so that what is written to
	// them does not count.
	Copies []string
	// Network is a network of its own, with nothing in it.
	Network bool
	// Engines are commands, Path is where programs are looked for.
	Engines [][]string
	Path    string
	// Log gets their output.
	Log string
}

const hostVariable = "WRIT_INTEROP_HOST"

// A namespace of control groups is of a thread, and who enters a process enters
// the one of its first thread: main stays on that when it is tied here.
func init() {
	if os.Getenv(hostVariable) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if text := os.Getenv(hostVariable); text != "" {
		var c hostConfig
		err := json.Unmarshal([]byte(text), &c)
		if err == nil {
			err = c.run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "host:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// startHost starts a host with its engine.
func startHost(t *testing.T, c hostConfig) *host {
	t.Helper()
	text, err := json.Marshal(c)
	check(t, err)
	self, err := os.Executable()
	check(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), hostVariable+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if c.Network {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	var said strings.Builder
	cmd.Stderr = &said
	h := &host{log: c.Log}
	h.in, err = cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	h.out = bufio.NewScanner(out)
	check(t, cmd.Start())
	h.pid = cmd.Process.Pid
	t.Cleanup(func() {
		h.in.Close()
		io.Copy(io.Discard, out)
		timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the host of %s: %v\n%s", c.Engines[0][0], err, said.String())
		}
		if t.Failed() {
			data, _ := os.ReadFile(c.Log)
			lines := strings.Split(string(data), "\n")
			t.Logf("the end of the log of %s:\n%s", c.Engines[0][0], strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	if !h.out.Scan() || h.out.Text() != "ready" {
		t.Fatalf("the host is not ready: %q", h.out.Text())
	}
	return h
}

// engine has the engine of this number started ("start"), ended ("stop"), or made to
// hang and go on ("freeze", "thaw").
func (h *host) engine(t *testing.T, command string, number int) {
	t.Helper()
	_, err := fmt.Fprintln(h.in, command, number)
	check(t, err)
	if !h.out.Scan() {
		t.Fatalf("the host ended at %s %d", command, number)
	}
	if h.out.Text() != "done" {
		t.Fatalf("%s engine %d: %s", command, number, h.out.Text())
	}
}

// inside is the beginning of a command that runs in the host.
func (h *host) inside() []string {
	return []string{"nsenter", "--target", strconv.Itoa(h.pid), "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--net", "--"}
}

// beside is the beginning of a command that sees the control groups as the host
// does, and everything else as this process.
func (h *host) beside() []string {
	return []string{"nsenter", fmt.Sprintf("--cgroup=/proc/%d/ns/cgroup", h.pid), "--"}
}

// run is the first process of a host.
func (c *hostConfig) run() error {
	// This thread goes into a namespace of control groups and starts what runs in
	// it; another stays outside, from where what is left can be removed.
	groups, err := c.groups()
	clean := make(chan chan error)
	go func() {
		done := <-clean
		var errs []error
		for _, g := range groups {
			errs = append(errs, g.remove())
		}
		done <- errors.Join(errs...)
	}()
	if err == nil {
		err = c.inside(groups)
	}
	ended := endAll()
	done := make(chan error)
	clean <- done
	return errors.Join(err, ended, <-done)
}

// hierarchy is a tree of control groups.
type hierarchy struct {
	controllers string   // as in /proc/PID/cgroup; empty is version 2
	parent      *os.File // the group that this process was started in
	name        string   // of the group below that is the host's root
}

// groups moves this process into a control group of its own in each hierarchy, of both
// versions: no part of it stays in one that is another's. With an error it returns
// those that are to be removed, too.
func (c *hostConfig) groups() ([]hierarchy, error) {
	mounted, err := mountedHierarchies()
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for line := range strings.Lines(string(own)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		at, ok := mounted[fields[1]]
		if !ok {
			continue
		}
		parent, err := os.Open(filepath.Join(at, fields[2]))
		if err != nil {
			return all, err
		}
		h := hierarchy{controllers: fields[1], parent: parent, name: c.Name}
		all = append(all, h)
		if err := h.enter(h.path()); err != nil {
			return all, err
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no control groups are mounted")
	}
	return all, nil
}

// mountedHierarchies are the places where the trees are mounted, by controllers.
func mountedHierarchies() (map[string]string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	known := map[string]string{}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		place, kind := strings.Fields(before), strings.Fields(after)
		if len(place) < 5 || len(kind) < 3 || place[3] != "/" {
			continue
		}
		if kind[0] == "cgroup2" {
			known[""] = place[4]
		}
		if kind[0] != "cgroup" {
			continue
		}
		options := strings.Split(kind[2], ",")
		for line := range strings.Lines(string(own)) {
			controllers := strings.SplitN(line, ":", 3)[1]
			if controllers != "" && slices.Contains(options, strings.Split(controllers, ",")[0]) {
				known[controllers] = place[4]
			}
		}
	}
	return known, nil
}

// path of the host's root.
func (h *hierarchy) path() string {
	return filepath.Join(fmt.Sprintf("/proc/self/fd/%d", h.parent.Fd()), h.name)
}

// enter makes a control group and moves this process there.
func (h *hierarchy) enter(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	// Version 1 leaves a new group without processors and memory.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil || h.controllers == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644)
}

// remove moves this process out and removes the host's groups.
func (h *hierarchy) remove() error {
	if err := os.WriteFile(filepath.Join(filepath.Dir(h.path()), "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return err
	}
	var dirs []string
	err := filepath.WalkDir(h.path(), func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // it was not made
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}

// inside makes the host and serves commands until standard input ends.
func (c *hostConfig) inside(groups []hierarchy) error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("namespace of control groups: %w", err)
	}
	for _, g := range groups {
		// Version 2 wants no processes in a group that gives controllers to others.
		if err := g.enter(filepath.Join(g.path(), "engine")); err != nil {
			return err
		}
	}
	if err := c.mounts(groups); err != nil {
		return err
	}
	return c.serve()
}

func (c *hostConfig) mounts(groups []hierarchy) error {
	type mount struct{ kind, at, data string }
	all := []mount{{"proc", "/proc", ""}}
	for i, dir := range c.Over {
		upper, work := filepath.Join(c.Dir, fmt.Sprint("upper", i)), filepath.Join(c.Dir, fmt.Sprint("work", i))
		if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
			return err
		}
		all = append(all, mount{"overlay", dir, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)})
	}
	for _, dir := range c.Own {
		all = append(all, mount{"tmpfs", dir, "mode=755"})
	}
	const top = "/sys/fs/cgroup"
	if c.Version == 1 {
		all = append(all, mount{"tmpfs", top, "mode=755"})
	}
	for _, g := range groups {
		switch {
		case c.Version == 2 && g.controllers == "":
			all = append(all, mount{"cgroup2", top, ""})
		case c.Version == 2:
		case g.controllers == "":
			all = append(all, mount{"cgroup2", filepath.Join(top, "unified"), ""})
		case strings.HasPrefix(g.controllers, "name="):
			all = append(all, mount{"cgroup", filepath.Join(top, strings.TrimPrefix(g.controllers, "name=")), "none," + g.controllers})
		default:
			all = append(all, mount{"cgroup", filepath.Join(top, g.controllers), g.controllers})
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, m := range all {
		if strings.HasPrefix(m.at, top+"/") {
			if err := os.MkdirAll(m.at, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s at %s (%s): %w", m.kind, m.at, m.data, err)
		}
	}
	for i, path := range c.Copies {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(c.Dir, fmt.Sprint("copy", i))
		if err := os.WriteFile(to, content, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(to, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a copy of %s: %w", path, err)
		}
	}
	return nil
}

// serve starts and stops engines as it is told.
func (c *hostConfig) serve() error {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	// Engines say when they are ready as they do to systemd (sd_notify(3)).
	const socket = "/run/ready"
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	if err := errors.Join(os.Setenv("PATH", c.Path), os.Setenv("NOTIFY_SOCKET", socket), os.Unsetenv(hostVariable)); err != nil {
		return err
	}
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	pids := make([]int, len(c.Engines))
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var command string
		var number int
		_, err := fmt.Sscan(lines.Text(), &command, &number)
		if err == nil {
			err = c.command(command, number, pids, attr, ready)
		}
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println("done")
	}
	return nil
}

func (c *hostConfig) command(name string, number int, pids []int, attr *syscall.ProcAttr, ready *net.UnixConn) error {
	pid := &pids[number]
	switch name {
	case "start":
		path, err := exec.LookPath(c.Engines[number][0])
		if err != nil {
			return err
		}
		if *pid, err = syscall.ForkExec(path, c.Engines[number], attr); err != nil {
			return err
		}
		return isReady(ready)
	case "stop":
		if err := syscall.Kill(*pid, syscall.SIGTERM); err != nil {
			return err
		}
		return reap(*pid)
	case "freeze":
		if err := syscall.Kill(*pid, syscall.SIGSTOP); err != nil {
			return err
		}
		// Threads that run go on for a moment.
		_, err := syscall.Wait4(*pid, nil, syscall.WUNTRACED, nil)
		return err
	case "thaw":
		return syscall.Kill(*pid, syscall.SIGCONT)
	}
	return errors.New("unknown command")
}

// isReady waits until the engine says that it is.
func isReady(notify *net.UnixConn) error {
	if err := notify.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			return fmt.Errorf("not ready: %w", err)
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return nil
		}
	}
}

// reap waits for children until one is this, and for all if it is -1: processes whose
// parents are gone are children of the first, too.
func reap(pid int) error {
	for {
		got, err := syscall.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ECHILD) && pid == -1:
			return nil
		case err != nil:
			return err
		case got == pid:
			return nil
		}
	}
}

// endAll ends every process of the host but its first.
func endAll() error {
	if os.Getpid() != 1 {
		return errors.New("not the first process of a namespace")
	}
	if err := syscall.Kill(-1, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return reap(-1)
}
