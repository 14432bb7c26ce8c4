package supervise

import (
	"context"
	"errors"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outputDelay is how long output is read on after a program's end, should
// something outside its process group hold the pipe.
const outputDelay = time.Second

// run starts the program once and returns when it is gone, with the reason.
func (p *Process) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if p.cfg.Prepare != nil {
		if err := p.prepare(ctx); err != nil {
			return err
		}
	}
	n, err := listenNotify(p.group.socketPath())
	if err != nil {
		return err
	}
	defer n.close()
	cmd, err := p.start(n)
	if err != nil {
		return err
	}
	c := &child{cmd: cmd}
	began := time.Now()
	p.pid.Store(int64(c.pid()))
	defer p.pid.Store(0)
	p.change(Change{State: Starting, PID: c.pid()})

	exited := make(chan error, 1)
	go func() { exited <- c.reap() }()
	ready := n.ready
	if p.cfg.Address != "" {
		// An application may send READY=1 as well; its port is what counts.
		var stop func()
		ready, stop = accepts(ctx, p.cfg.Address)
		defer stop()
	}
	return p.watch(c, began, exited, ready, n)
}

// prepare runs the hook, which ends early when the process is stopped.
func (p *Process) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ReadyTimeout)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- p.cfg.Prepare(ctx) }()
	select {
	case err := <-result:
		return err
	case <-p.term:
		cancel()
		return <-result
	}
}

func (p *Process) start(n *notify) (*exec.Cmd, error) {
	if p.stopping() {
		return nil, errors.New("stopped")
	}
	cmd := exec.Command(p.cfg.Path, p.cfg.Args...)
	cmd.Env = append(p.cfg.Env[:len(p.cfg.Env):len(p.cfg.Env)], "NOTIFY_SOCKET="+n.path)
	cmd.Dir = p.cfg.Dir
	// One writer for both keeps lines in order and whole.
	cmd.Stdout, cmd.Stderr = p.cfg.Output, p.cfg.Output
	cmd.WaitDelay = outputDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var err error
	if terr := p.group.onThread(func() { err = cmd.Start() }); terr != nil {
		return nil, terr
	}
	return cmd, err
}

// watch waits for what comes first, until the program is gone.
func (p *Process) watch(c *child, began time.Time, exited <-chan error, ready <-chan struct{}, n *notify) error {
	deadline := time.NewTimer(p.cfg.ReadyTimeout)
	defer deadline.Stop()
	term, kill := p.term, p.kill
	var late error
	for {
		select {
		case err := <-exited:
			if late != nil {
				return late
			}
			return err
		case <-ready:
			ready = nil
			deadline.Stop()
			p.change(Change{State: Ready, PID: c.pid(), Took: time.Since(began)})
			if !p.wasReady() {
				close(p.ready)
			}
		case <-deadline.C:
			late = n.late(p.cfg.ReadyTimeout)
			c.kill()
		case <-term:
			term = nil
			deadline.Stop()
			// The program alone: it stops its children better than we can.
			_ = c.cmd.Process.Signal(syscall.SIGTERM)
		case <-kill:
			kill = nil
			c.kill()
		}
	}
}

// child is one running program and its process group.
type child struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	// gone says that the leader may be reaped, and the group's number with it.
	gone bool
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// reap waits for the program's end and takes its whole process group with it.
// The group is killed while its leader is still a zombie: until then nobody
// else can be given its number.
func (c *child) reap() error {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, c.pid(), &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	c.mu.Lock()
	_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
	c.gone = true
	c.mu.Unlock()
	err := c.cmd.Wait()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return errors.New("exit status 0")
	}
	return err
}

// kill kills the program and all that it started, as far as they stayed in its
// group.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
	}
}
