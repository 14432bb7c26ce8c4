package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/test/programs"
)

const (
	// stormAgents is how many agents one issuer has, each with stormEntries.
	stormAgents  = 5000
	stormEntries = 10
	// unordered is the subject that is our issuer, built without the order.
	unordered = "writ, unordered"
)

// stormBudgets: what a connection may take, and what the order must gain and may cost.
var stormBudgets = []Budget{
	{Measure: "connection", AtMost: 80},
	{Measure: "storm/urgent-p50", AtMost: 0.6, Peer: unordered},
	{Measure: "storm/expired", AtMost: 0.25, Peer: unordered},
	{Measure: "storm/all", AtMost: 1.25, Peer: unordered},
}

// storm measures what 5,000 agents take at one issuer, and how they come back after
// an outage: to an issuer that puts what they ask for in order, and to one that begins
// everything at once. The issuer has one processor, and they have another.
func storm(ctx context.Context, b *bench) (rows []Row, err error) {
	cpus, err := programs.CPUs()
	if err != nil {
		return nil, err
	}
	if len(cpus) < 2 {
		return nil, errors.New("one processor is not enough: the issuer and its clients need one each")
	}
	s := &stormSite{bench: b, herdCPU: cpus[1], paths: map[string]string{ours: filepath.Join(b.bin, "writd"), unordered: filepath.Join(b.work, "writd-unordered")}}
	if err := b.built("writd"); err != nil {
		return nil, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "unordered", "-o", s.paths[unordered], "./cmd/writd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build writd without the order: %w\n%s", err, out)
	}
	ports, err := programs.FreePorts(3)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.work, "w")
	if err != nil {
		return nil, err
	}
	s.admin = fmt.Sprintf("127.0.0.1:%d", ports[2])
	s.config = programs.ServerConfig{
		Dir: dir, TrustDomain: "bench.test", IssuerPort: ports[0], ControlPort: ports[1], CPUs: cpus[:1],
		More: "attest_rate: 1000\nadmin: " + s.admin + "\n",
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	var once samples
	if err := s.begin(ctx, &once); err != nil {
		return nil, err
	}
	more, err := b.rotate(ctx, []string{ours, unordered}, func(subject string, out *samples) error { return s.wave(ctx, subject, out) })
	return append(once.rows(), more...), err
}

// stormSite is an issuer and its herd.
type stormSite struct {
	*bench
	config  programs.ServerConfig
	admin   string
	paths   map[string]string // of writd, by subject
	herdCPU int

	server *programs.Server
	herd   *programs.Program
	call   *rpc.Client
}

func (s *stormSite) stop() error {
	var errs []error
	if s.call != nil {
		errs = append(errs, s.call.Close())
	}
	if s.herd != nil {
		errs = append(errs, s.herd.Stop(20*time.Second))
	}
	if s.server != nil {
		errs = append(errs, s.server.Stop())
	}
	return errors.Join(errs...)
}

// start starts the issuer, again where it stopped.
func (s *stormSite) start(ctx context.Context, subject string) (err error) {
	if s.server != nil {
		if err := s.server.Stop(); err != nil {
			return err
		}
		s.server = nil
	}
	c := s.config
	c.Path = s.paths[subject]
	s.server, err = programs.StartWritd(ctx, c)
	if err != nil {
		return err
	}
	_, err = s.raise(s.server.Program)
	return err
}

// raise lets a program have a connection with each agent.
func (s *stormSite) raise(p *programs.Program) (uint64, error) {
	limit, err := programs.RaiseFiles(p.PID(), 2*stormAgents)
	if err == nil && limit < stormAgents+200 {
		err = fmt.Errorf("it may have %d files open, %d connections need more: raise the limit (ulimit -n)", limit, stormAgents)
	}
	return limit, err
}

// begin starts the issuer and its herd, and measures what its connections take.
func (s *stormSite) begin(ctx context.Context, out *samples) error {
	if err := s.start(ctx, ours); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	socket := filepath.Join(s.work, "herd.sock")
	s.herd, err = programs.Start(programs.Config{Path: self, Args: []string{herdCommand, socket}, Log: filepath.Join(s.work, "herd.log"), CPUs: []int{s.herdCPU}})
	if err != nil {
		return err
	}
	if _, err := s.raise(s.herd); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := s.herd.Reachable(limited, "unix", socket); err != nil {
		return err
	}
	if s.call, err = rpc.Dial("unix", socket); err != nil {
		return err
	}
	s.say("  %d agents join, with %d entries each", stormAgents, stormEntries)
	err = s.ask(ctx, "Join", JoinArgs{
		TrustDomain: s.config.TrustDomain, Addr: s.server.Addr, AdminSocket: s.config.AdminSocket(), Agents: stormAgents, Entries: stormEntries,
	}, &None{})
	if err != nil {
		return err
	}
	// What a process holds depends on its past: this one has none.
	if err := s.start(ctx, ours); err != nil {
		return err
	}
	if err := pause(ctx, s.length); err != nil {
		return err
	}
	before, err := programs.MemoryOf(s.server.PID())
	if err != nil {
		return err
	}
	s.say("  %d connections", stormAgents)
	if err := s.ask(ctx, "Connect", None{}, &None{}); err != nil {
		return err
	}
	if err := s.settledRSS(ctx, out, "rss/issuer-5000", ours, s.server.PID()); err != nil {
		return err
	}
	after, err := programs.MemoryOf(s.server.PID())
	if err != nil {
		return err
	}
	out.add("connection", ours, "KB", float64(after.Anonymous-before.Anonymous)/1e3/stormAgents)
	return nil
}

// ask calls the herd.
func (s *stormSite) ask(ctx context.Context, method string, args, reply any) error {
	call := s.call.Go("Herd."+method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		if call.Error != nil {
			return fmt.Errorf("the herd: %s: %w", strings.ToLower(method), call.Error)
		}
		return nil
	case <-s.herd.Exited():
		return fmt.Errorf("the herd ended: %w\n%s", s.herd.Err(), s.herd.Tail())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wave has the issuer stop and start, and its agents come back.
func (s *stormSite) wave(ctx context.Context, subject string, out *samples) error {
	if err := s.ask(ctx, "Leave", None{}, &None{}); err != nil {
		return err
	}
	if err := s.start(ctx, subject); err != nil {
		return err
	}
	if err := pause(ctx, time.Second); err != nil { // it has begun, and settles
		return err
	}
	signedBefore, err := s.admitted(ctx)
	if err != nil {
		return err
	}
	ticks, err := programs.CPUTicks(s.server.PID())
	if err != nil {
		return err
	}
	var w Wave
	if err := s.ask(ctx, "Return", None{}, &w); err != nil {
		return err
	}
	signed, err := s.admitted(ctx)
	if err != nil {
		return err
	}
	used, err := programs.CPUTicks(s.server.PID())
	if err != nil {
		return err
	}
	peak, err := programs.PeakRSS(s.server.PID())
	if err != nil {
		return err
	}
	for kind, name := range []string{isUrgent: "urgent", isDue: "due", isNew: "new"} {
		for _, p := range []float64{50, 99, 100} {
			measure := fmt.Sprintf("storm/%s-p%.0f", name, p)
			if p == 100 {
				measure = "storm/" + name + "-last"
			}
			out.add(measure, subject, "s", percentile(w.Took[kind], p).Seconds())
		}
	}
	last := max(percentile(w.Took[isUrgent], 100), percentile(w.Took[isDue], 100), percentile(w.Took[isNew], 100))
	out.add("storm/all", subject, "s", last.Seconds())
	out.add("storm/expired", subject, "agents", float64(w.Expired))
	out.add("storm/timed-out", subject, "", float64(w.TimedOut))
	out.add("storm/failed", subject, "", float64(w.Failed))
	out.add("storm/refused", subject, "", float64(w.Refused))
	out.add("storm/connections", subject, "", float64(w.Connections))
	out.add("storm/wasted", subject, "SVIDs", float64((signed-signedBefore)*stormEntries-w.SVIDs))
	out.add("storm/processor", subject, "s", float64(used-ticks)/userHz)
	out.add("storm/rss-peak", subject, "MB", float64(peak)/1e6)
	return nil
}

// admitted is how many requests of SVIDs the issuer has begun with.
func (s *stormSite) admitted(ctx context.Context) (n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	found := false
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(name, "writd_admission_wait_seconds_count{") && strings.Contains(name, `queue="signing"`) {
			count, err := strconv.Atoi(value)
			if err != nil {
				return 0, fmt.Errorf("metrics: %q: %w", lines.Text(), err)
			}
			n, found = n+count, true
		}
	}
	if !found {
		return 0, errors.New("metrics: nothing about what is signed")
	}
	return n, nil
}
