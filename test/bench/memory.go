package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/test/programs"
)

// watched are the processes of one role; the largest of them is told.
type watched struct {
	role, subject string
	pids          []int
}

// memory measures what the programs hold after a start without requests, and
// the most they held under full load. Each round starts them anew, because what
// a process holds depends on its past.
func memory(ctx context.Context, b *bench) ([]Row, error) {
	if err := b.ensure(ctx, "nginx", "wrk"); err != nil {
		return nil, err
	}
	app, stopApp, err := b.backend(ctx)
	if err != nil {
		return nil, err
	}
	defer stopApp()
	return b.rotate(ctx, []string{ours, "nginx"}, func(subject string, s *samples) error {
		if subject == ours {
			return b.memoryOfWrit(ctx, s, app)
		}
		return b.memoryOfNginx(ctx, s, app)
	})
}

func (b *bench) memoryOfWrit(ctx context.Context, s *samples, app string) error {
	m, err := b.mesh(ctx, app)
	if err != nil {
		return err
	}
	sidecars := watched{role: "proxy", subject: ours}
	for _, p := range m.sidecars {
		sidecars.pids = append(sidecars.pids, p.PID())
	}
	err = b.idleAndLoaded(ctx, s, m.addr, []watched{
		sidecars,
		{role: "writd", subject: ours, pids: []int{m.writd.PID()}},
		{role: "agent", subject: ours, pids: []int{m.agent.PID()}},
	})
	return errors.Join(m.why(ctx, err), m.stop())
}

func (b *bench) memoryOfNginx(ctx context.Context, s *samples, app string) error {
	p, err := b.nginxPair(ctx, app)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := get(ctx, p.addr); err != nil {
		return err
	}
	return b.idleAndLoaded(ctx, s, p.addr, []watched{{role: "proxy", subject: "nginx", pids: p.workers}})
}

func (b *bench) idleAndLoaded(ctx context.Context, s *samples, addr string, all []watched) error {
	if err := pause(ctx, b.length); err != nil {
		return err
	}
	for _, w := range all {
		now, err := largest(w.pids)
		if err != nil {
			return err
		}
		w.add(s, "idle", now)
	}
	most := make([]programs.Memory, len(all))
	loaded := make(chan error, 1)
	go func() {
		_, err := wrk(ctx, addr, b.length)
		loaded <- err
	}()
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case err := <-loaded:
			tick.Stop()
			for i, w := range all {
				w.add(s, "under load", most[i])
			}
			return err
		case <-tick.C:
		}
		for i, w := range all {
			now, err := largest(w.pids)
			if err != nil {
				tick.Stop()
				return errors.Join(err, <-loaded)
			}
			most[i].RSS = max(most[i].RSS, now.RSS)
			most[i].Anonymous = max(most[i].Anonymous, now.Anonymous)
		}
	}
}

func (w watched) add(s *samples, when string, m programs.Memory) {
	s.add(fmt.Sprintf("RSS of one %s, %s", w.role, when), w.subject, "MB", float64(m.RSS)/1e6)
	s.add(fmt.Sprintf("anonymous RSS of one %s, %s", w.role, when), w.subject, "MB", float64(m.Anonymous)/1e6)
}

// largest gives the most that any of the processes holds now.
func largest(pids []int) (programs.Memory, error) {
	var most programs.Memory
	for _, pid := range pids {
		m, err := programs.MemoryOf(pid)
		if err != nil {
			return most, err
		}
		most.RSS = max(most.RSS, m.RSS)
		most.Anonymous = max(most.Anonymous, m.Anonymous)
	}
	return most, nil
}

func pause(ctx context.Context, length time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(length):
		return nil
	}
}
