// Package supervise runs programs: it knows when they are ready, starts them
// again when they die, stops them in the order its caller chooses, and leaves
// none behind.
//
// A Group owns the thread that starts every program. A Process is one program
// over all its restarts. States are pushed to a function; nothing is polled,
// except the port of a program that cannot tell when it is ready.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Config is a program to run.
type Config struct {
	// Name in changes and errors.
	Name string
	// Path of the executable, and its arguments without the name.
	Path string
	Args []string
	// Env is the whole environment; NOTIFY_SOCKET is added to it.
	Env []string
	Dir string
	// Output takes what the program writes to stdout and stderr.
	Output io.Writer
	// Address makes a program ready once it accepts TCP connections there,
	// host:port. When empty, the program sends READY=1 (sd_notify(3)).
	Address string
	// ReadyTimeout is how long one start may take; 30s when 0.
	ReadyTimeout time.Duration
	// Attempts is how many starts in a row may fail before the program was
	// ever ready; then the process has failed for good. 0 is no limit.
	Attempts int
	// Prepare runs before each start, when not nil. Its error counts as a
	// failed start.
	Prepare func(ctx context.Context) error
	// OnChange hears of every change of state, in order; it must not block.
	OnChange func(Change)
	Backoff  Backoff
}

// State of a process.
type State int

// States. A process ends as Failed or Stopped.
const (
	Starting State = iota + 1
	Ready
	// Restarting waits for its next start.
	Restarting
	// Failed never became ready and is not tried again.
	Failed
	Stopped
)

func (s State) String() string {
	switch s {
	case Starting:
		return "starting"
	case Ready:
		return "ready"
	case Restarting:
		return "restarting"
	case Failed:
		return "failed"
	case Stopped:
		return "stopped"
	}
	return "none"
}

// Change is a new state of a process.
type Change struct {
	Name  string
	State State
	PID   int
	// Err says why, when the state is Restarting or Failed.
	Err error
	// Delay until the next start, when the state is Restarting.
	Delay time.Duration
	// Took is the time from start to ready, when the state is Ready.
	Took time.Duration
}

// Backoff is how long a dead program stays down: First, doubled each time up
// to Max, a fifth more or less, and First again after a run of Stable. Zero
// fields are 100ms, 10s and 10s.
type Backoff struct {
	First, Max, Stable time.Duration
}

func (b Backoff) withDefaults() Backoff {
	if b.First == 0 {
		b.First = 100 * time.Millisecond
	}
	if b.Max == 0 {
		b.Max = 10 * time.Second
	}
	if b.Stable == 0 {
		b.Stable = 10 * time.Second
	}
	return b
}

// delay is the time down after failures deaths in a row; random is in [0, 1).
func (b Backoff) delay(failures int, random float64) time.Duration {
	d := b.Max
	if shift := failures - 1; shift < 32 && b.First<<shift < b.Max && b.First<<shift > 0 {
		d = b.First << shift
	}
	return time.Duration(float64(d) * (0.8 + 0.4*random))
}

// Group starts processes and holds their notification sockets.
type Group struct {
	dir    string
	sock   atomic.Uint64
	starts chan func()
	wg     sync.WaitGroup
	mu     sync.Mutex
	closed bool
}

// ErrClosed is the answer of a Group after Close.
var ErrClosed = errors.New("supervisor is closed")

// NewGroup returns a Group whose notification sockets live in dir, which it
// makes with mode 0700. Where dir is too long for a socket's path they live in
// a short directory of their own.
func NewGroup(dir string) (*Group, error) {
	// The last element is a number, so ten bytes are plenty.
	const longest = 107 - 11
	var err error
	if len(dir) > longest {
		dir, err = os.MkdirTemp("", "writ-")
	} else if err = os.MkdirAll(filepath.Dir(dir), 0o700); err == nil {
		// What a killed predecessor left would be in the way.
		if err = os.RemoveAll(dir); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("directory of notification sockets: %w", err)
	}
	g := &Group{dir: dir, starts: make(chan func())}
	g.wg.Go(g.fork)
	return g, nil
}

// fork runs every start on one thread. PR_SET_PDEATHSIG fires when the thread
// that started the child ends, not its process; a thread that the runtime may
// retire would take children with it.
func (g *Group) fork() {
	runtime.LockOSThread()
	for start := range g.starts {
		start()
	}
}

// onThread runs f on the thread that starts children.
func (g *Group) onThread(f func()) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	done := make(chan struct{})
	g.starts <- func() { defer close(done); f() }
	<-done
	return nil
}

func (g *Group) socketPath() string {
	return filepath.Join(g.dir, strconv.FormatUint(g.sock.Add(1), 10))
}

// Close ends the Group. Every process must have been stopped: whatever still
// runs is killed.
func (g *Group) Close() error {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.starts)
	}
	g.mu.Unlock()
	g.wg.Wait()
	return os.RemoveAll(g.dir)
}

// Process is one program, over all its restarts.
type Process struct {
	cfg   Config
	group *Group

	term, kill         chan struct{}
	termOnce, killOnce sync.Once
	ready              chan struct{}
	done               chan struct{}
	err                error // why it failed; read after done
	pid                atomic.Int64
}

// Start starts a program and keeps it running until Stop.
func (g *Group) Start(cfg Config) *Process {
	if cfg.ReadyTimeout == 0 {
		cfg.ReadyTimeout = 30 * time.Second
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func(Change) {}
	}
	if cfg.Output == nil {
		cfg.Output = io.Discard
	}
	cfg.Backoff = cfg.Backoff.withDefaults()
	p := &Process{
		cfg: cfg, group: g,
		term: make(chan struct{}), kill: make(chan struct{}),
		ready: make(chan struct{}), done: make(chan struct{}),
	}
	go p.keep()
	return p
}

// Name is the configured name.
func (p *Process) Name() string { return p.cfg.Name }

// PID of the running program, 0 when it is down.
func (p *Process) PID() int { return int(p.pid.Load()) }

// Done is closed when the process has failed or was stopped.
func (p *Process) Done() <-chan struct{} { return p.done }

// WaitReady waits until the program is ready for the first time.
func (p *Process) WaitReady(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: not ready: %w", p.cfg.Name, context.Cause(ctx))
	case <-p.done:
	}
	if p.err != nil {
		return p.err
	}
	return fmt.Errorf("%s: stopped", p.cfg.Name)
}

// Stop sends SIGTERM, and when ctx ends SIGKILL, and returns when the program
// and everything in its process group is gone.
func (p *Process) Stop(ctx context.Context) {
	p.termOnce.Do(func() { close(p.term) })
	select {
	case <-p.done:
		return
	case <-ctx.Done():
	}
	p.killOnce.Do(func() { close(p.kill) })
	<-p.done
}

// StopAll stops processes at the same time and waits for all of them.
func StopAll(ctx context.Context, processes ...*Process) {
	var wg sync.WaitGroup
	for _, p := range processes {
		wg.Go(func() { p.Stop(ctx) })
	}
	wg.Wait()
}

func (p *Process) keep() {
	defer close(p.done)
	failures := 0
	for {
		began := time.Now()
		err := p.run()
		if p.stopping() {
			p.change(Change{State: Stopped})
			return
		}
		if time.Since(began) >= p.cfg.Backoff.Stable {
			failures = 0
		}
		failures++
		if !p.wasReady() && p.cfg.Attempts > 0 && failures >= p.cfg.Attempts {
			p.err = fmt.Errorf("%s: %w", p.cfg.Name, err)
			p.change(Change{State: Failed, Err: err})
			return
		}
		delay := p.cfg.Backoff.delay(failures, rand.Float64())
		p.change(Change{State: Restarting, Err: err, Delay: delay})
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-p.term:
			timer.Stop()
			p.change(Change{State: Stopped})
			return
		}
	}
}

func (p *Process) change(c Change) {
	c.Name = p.cfg.Name
	p.cfg.OnChange(c)
}

func (p *Process) stopping() bool { return closed(p.term) }
func (p *Process) wasReady() bool { return closed(p.ready) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
