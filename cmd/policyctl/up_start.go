package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/writ-dev/writ/internal/mesh"
	"github.com/writ-dev/writ/internal/supervise"
	"github.com/writ-dev/writ/policy"
)

// start starts everything in the order in which one needs the other: programs
// of services need nobody; the control plane comes before the agent, the agent
// before the sidecars. Entries and policy arrive beside them, by push.
func (u *upRun) start(ctx context.Context) error {
	var err error
	if u.writd, err = u.program("writd", u.programs.writd, u.dir.path("run", "writd.yaml"), nil); err != nil {
		return err
	}
	for i := range u.mesh.Services {
		if s := &u.mesh.Services[i]; len(s.Command) > 0 {
			if err := u.application(s); err != nil {
				return err
			}
		}
	}
	if err := u.waitReady(ctx, u.writd); err != nil {
		return err
	}
	u.view.ready("writd", "ready")
	if u.conn, err = (&app{dataDir: string(u.dir)}).dial(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return u.entries(ctx) })
	g.Go(func() error { return u.firstPolicy(ctx) })
	g.Go(func() error { return u.node(ctx) })
	return g.Wait()
}

// node starts the agent, and once it is ready the sidecars.
func (u *upRun) node(ctx context.Context) error {
	var err error
	if u.agent, err = u.program("writ-agent", u.programs.agent, u.dir.path("run", "agent.yaml"), u.newToken); err != nil {
		return err
	}
	err = u.waitReady(ctx, u.agent)
	u.dropToken()
	if err != nil {
		return err
	}
	u.view.ready("writ-agent", "ready")
	for i := range u.mesh.Services {
		s := &u.mesh.Services[i]
		path, err := u.dir.linkSidecar(u.programs.sidecar, s.Name)
		if err != nil {
			return fmt.Errorf("sidecar of %s: %w", s.Name, err)
		}
		p, err := u.program(s.Name+"/sidecar", path, u.sidecarConfig(s.Name), nil)
		if err != nil {
			return err
		}
		u.sidecars = append(u.sidecars, p)
	}
	return nil
}

// firstPolicy puts the policy directory in force. Where that is refused, a
// revision of an earlier run may still decide.
func (u *upRun) firstPolicy(ctx context.Context) error {
	resp, err := u.pushPolicy(ctx)
	var refused policy.Refused
	switch {
	case errors.As(err, &refused) && !u.opts.once && u.inForce(ctx):
		u.view.warn("%v\n  the last good revision stays in force", err)
		return nil // whichever that is, sidecars are not ready without one
	case err != nil:
		return err
	}
	u.revision = resp.GetRevision()
	tests := ""
	if n := resp.GetTests().GetPassed(); n > 0 {
		tests = fmt.Sprintf(", %d tests passed", n)
	}
	u.view.ready("policy", revisionText(resp.GetRevision())+tests)
	return nil
}

// allReady waits until every program is ready and the record is followed.
func (u *upRun) allReady(ctx context.Context, subscribed <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range u.apps {
		g.Go(func() error { return u.waitReady(ctx, p) })
	}
	for i := range u.mesh.Services {
		g.Go(func() error {
			u.lookFor(ctx, &u.mesh.Services[i])
			return nil
		})
	}
	for i, p := range u.sidecars {
		g.Go(func() error {
			err := u.waitReady(ctx, p)
			if err == nil {
				u.view.service(&u.mesh.Services[i])
			}
			return err
		})
	}
	g.Go(func() error {
		select {
		case <-subscribed:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	// A sidecar may have started with the revision of an earlier run. One that refuses
	// this one may never be ready: nobody waits for it to be given up.
	g.Go(func() error { return u.enforced(ctx, u.revision) })
	return g.Wait()
}

// lookTimeout bounds the look for a program that up does not start.
const lookTimeout = time.Second

// lookFor warns of a service at an address where nothing listens. That is no
// error: whoever starts it may do so later.
func (u *upRun) lookFor(ctx context.Context, s *mesh.Service) {
	if s.Address == "" {
		return
	}
	dialCtx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(dialCtx, "tcp", s.Address)
	switch {
	case err == nil:
		conn.Close()
	case ctx.Err() == nil:
		u.view.warn("%s: nothing listens at %s yet", s.Name, s.Address)
	}
}

// program starts one of Writ's own programs.
func (u *upRun) program(name, path, config string, prepare func(context.Context) error) (*supervise.Process, error) {
	return u.supervise(supervise.Config{
		Name: name, Path: path, Args: []string{"--config", config}, Env: u.environment(nil), Dir: string(u.dir), Prepare: prepare,
	})
}

// application starts the program of a service.
func (u *upRun) application(s *mesh.Service) error {
	argv, env := s.Expand(u.programs.policyctl)
	path, err := lookPath(argv[0], s.Dir)
	if err != nil {
		return fmt.Errorf("service %s: %w", s.Name, err)
	}
	p, err := u.supervise(supervise.Config{Name: s.Name, Path: path, Args: argv[1:], Env: u.environment(env), Dir: s.Dir, Address: s.App()})
	if err != nil {
		return err
	}
	u.apps = append(u.apps, p)
	return nil
}

func (u *upRun) supervise(cfg supervise.Config) (*supervise.Process, error) {
	var echo func(string)
	if u.opts.verbose {
		echo = func(line string) { u.view.printf("%s %s", u.view.style(dim, "["+cfg.Name+"]"), plainText(line)) }
	}
	path := u.dir.path("log", filepath.FromSlash(cfg.Name)+".log")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	log, err := supervise.OpenLog(path, logLimit, echo)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	u.logs[cfg.Name] = log
	u.mu.Unlock()
	cfg.Output, cfg.Attempts = log, attempts
	cfg.OnChange = func(c supervise.Change) {
		// A program that ends has said why; one that was not ready has told its
		// status.
		if exit := (*exec.ExitError)(nil); errors.As(c.Err, &exit) {
			if tail := log.Tail(); len(tail) > 0 {
				c.Err = fmt.Errorf("%w: %s", c.Err, plainText(tail[len(tail)-1]))
			}
		}
		u.view.change(c)
	}
	return u.group.Start(cfg), nil
}

// waitReady waits for a program; one that will not start is explained by what
// it said last.
func (u *upRun) waitReady(ctx context.Context, p *supervise.Process) error {
	err := p.WaitReady(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	u.mu.Lock()
	tail := u.logs[p.Name()].Tail()
	u.mu.Unlock()
	if len(tail) == 0 {
		return err
	}
	return fmt.Errorf("%w; it said:\n  %s", err, strings.Join(tail, "\n  "))
}

// environment is ours with more, without what belongs to this process alone.
func (u *upRun) environment(more []string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WRIT_JOIN_TOKEN"}, name)
	})
	return append(env, more...)
}

// stop ends everything, in the order that loses nothing.
func (u *upRun) stop() {
	stopAll := func(timeout time.Duration, processes ...*supervise.Process) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		supervise.StopAll(ctx, slices.DeleteFunc(processes, func(p *supervise.Process) bool { return p == nil })...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), sidecarStop)
	defer cancel()
	u.stopSidecars(ctx)
	stopAll(appStop, append(slices.Clone(u.apps), u.agent)...)
	stopAll(writdStop, u.writd)
}

func (u *upRun) stopSidecars(ctx context.Context) { supervise.StopAll(ctx, u.sidecars...) }

func (u *upRun) close() {
	if u.conn != nil {
		u.conn.Close()
	}
	if err := u.group.Close(); err != nil {
		u.view.warn("%v", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, log := range u.logs {
		_ = log.Close()
	}
}
