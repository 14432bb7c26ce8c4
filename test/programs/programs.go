// Package programs runs real programs for benchmarks and interop tests: it
// starts them, waits until they say that they are ready, and stops exactly what
// it started.
package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config says what to start.
type Config struct {
	Path string
	Args []string
	// Env is added to the environment of this process.
	Env []string
	Dir string
	// Log is the file that gets stdout and stderr.
	Log string
	// Notify gives the program a NOTIFY_SOCKET, for Ready.
	Notify bool
	// CPUs are the processors that it may use; all if empty.
	CPUs []int
}

// Program is a running process and its process group.
type Program struct {
	cmd    *exec.Cmd
	log    string
	notify *net.UnixConn
	dir    string

	reading sync.WaitGroup
	ready   chan struct{}
	exited  chan struct{}
	err     error // of the process, after exited
}

// Start starts a program. Whoever starts it must Stop it.
func Start(c Config) (*Program, error) {
	p := &Program{log: c.Log, ready: make(chan struct{}), exited: make(chan struct{})}
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = c.Dir, log, log
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Notify {
		if err := p.listen(); err != nil {
			return nil, err
		}
		p.cmd.Env = append(p.cmd.Env, "NOTIFY_SOCKET="+p.notify.LocalAddr().String())
	}
	if err := startOn(p.cmd, c.CPUs); err != nil {
		p.close()
		return nil, err
	}
	if c.Notify {
		p.reading.Go(p.read)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// startOn starts a program that may use only some processors. It has that from the
// thread that starts it, so that its runtime counts them from its first moment on.
func startOn(cmd *exec.Cmd, cpus []int) error {
	if len(cpus) == 0 {
		return cmd.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, only unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, cpu := range cpus {
		only.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return fmt.Errorf("sched_setaffinity to %v: %w", cpus, err)
	}
	err := cmd.Start()
	return errors.Join(err, unix.SchedSetaffinity(0, &before))
}

// CPUs are the processors that this process may use.
func CPUs() (cpus []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	for n := 0; len(cpus) < set.Count(); n++ {
		if set.IsSet(n) {
			cpus = append(cpus, n)
		}
	}
	return cpus, nil
}

// listen opens the socket of sd_notify(3), in a directory of its own because
// the path of a socket is at most 107 bytes.
func (p *Program) listen() error {
	var err error
	if p.dir, err = os.MkdirTemp("", "notify"); err != nil {
		return err
	}
	addr := &net.UnixAddr{Name: filepath.Join(p.dir, "s"), Net: "unixgram"}
	if p.notify, err = net.ListenUnixgram("unixgram", addr); err != nil {
		os.RemoveAll(p.dir)
	}
	return err
}

func (p *Program) read() {
	buf := make([]byte, 4096)
	for told := false; ; {
		n, err := p.notify.Read(buf)
		if err != nil {
			return // closed by Stop
		}
		for line := range bytes.Lines(buf[:n]) {
			if string(bytes.TrimSpace(line)) == "READY=1" && !told {
				told = true
				close(p.ready)
			}
		}
	}
}

// Ready waits until the program says READY=1. It fails when the program ends
// first, and when ctx does.
func (p *Program) Ready(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-p.exited:
		return fmt.Errorf("%s ended before it was ready: %w\n%s", p.cmd.Path, p.Err(), p.Tail())
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w\n%s", p.cmd.Path, ctx.Err(), p.Tail())
	}
}

// Reachable waits until addr accepts a connection: for programs that do not
// say when they are ready.
func (p *Program) Reachable(ctx context.Context, network, addr string) error {
	return p.Until(ctx, func() error {
		conn, err := net.DialTimeout(network, addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// Until calls try until it succeeds, with a short pause in between. It fails
// when the program ends first, and when ctx does.
func (p *Program) Until(ctx context.Context, try func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended: %w (%w)\n%s", p.cmd.Path, p.Err(), err, p.Tail())
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w\n%s", p.cmd.Path, ctx.Err(), err, p.Tail())
		case <-tick.C:
		}
	}
}

// PID is the process id.
func (p *Program) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (p *Program) Exited() <-chan struct{} { return p.exited }

// Err is how the process ended, once Exited is closed.
func (p *Program) Err() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Tail is the end of the log.
func (p *Program) Tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// Stop asks the program to end, and after grace ends its process group.
func (p *Program) Stop(grace time.Duration) error {
	defer p.close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return p.err
	case <-time.After(grace):
	}
	p.Kill()
	return fmt.Errorf("%s did not end within %s\n%s", p.cmd.Path, grace, p.Tail())
}

// Kill ends the process group at once.
func (p *Program) Kill() {
	defer p.close()
	select {
	case <-p.exited:
		return // its number may be someone else's by now
	default:
	}
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	<-p.exited
}

func (p *Program) close() {
	if p.notify == nil {
		return
	}
	p.notify.Close()
	p.reading.Wait()
	os.RemoveAll(p.dir)
}

// Ports that tests give to programs lie below those that systems choose for
// connections and for listeners on port 0 (32768 and up on Linux), so that nobody is
// given one between its choice and its use.
const (
	firstPort = 12000
	lastPort  = 32000
)

// ports counts through them from a place that differs by process. None comes twice
// before all have been tried.
var ports atomic.Uint32

func init() { ports.Store(rand.Uint32N(lastPort - firstPort)) }

// FreePorts gives n TCP ports of loopback that nobody listens on.
func FreePorts(n int) ([]int, error) {
	var free []int
	for range lastPort - firstPort {
		if len(free) == n {
			break
		}
		port := firstPort + int(ports.Add(1)%(lastPort-firstPort))
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		free = append(free, port)
	}
	if len(free) < n {
		return nil, fmt.Errorf("only %d ports between %d and %d are free, want %d", len(free), firstPort, lastPort, n)
	}
	return free, nil
}
