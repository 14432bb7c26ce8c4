package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/writ-dev/writ/test/programs"
)

const peerSPIRE = "spire"

// spireBudgets are what the issuer and the agent must keep beside stock SPIRE.
var spireBudgets = []Budget{
	{Measure: "svid/batch1", AtLeast: 1.8, Peer: peerSPIRE},
	{Measure: "svid/batch1-p99", AtMost: 1, Peer: peerSPIRE},
	{Measure: "svid/batch500", AtLeast: 1.2, Peer: peerSPIRE},
	{Measure: "jwt", AtLeast: 2, Peer: peerSPIRE},
	{Measure: "entry-create", AtLeast: 10, Peer: peerSPIRE},
	{Measure: "propagation-p99", AtMost: 250},
	{Measure: "fetch-p50", AtMost: 1, Peer: peerSPIRE},
	{Measure: "fetch", AtLeast: 1, Peer: peerSPIRE},
	{Measure: "rss/server-empty", AtMost: 80},
	{Measure: "rss/server-100k", AtMost: 250},
	{Measure: "rss/agent-1000", AtMost: 50},
}

// spire measures the issuer and the agent beside stock SPIRE: real programs,
// SQLite, keys of P-256, rate limits off at both.
func spire(ctx context.Context, b *bench) ([]Row, error) {
	subjects := []string{ours, peerSPIRE}
	if b.alone {
		subjects = subjects[:1]
	}
	var all []Row
	for _, part := range []func(context.Context, []string) ([]Row, error){b.signing, b.registryAndAgents} {
		rows, err := part(ctx, subjects)
		if err != nil {
			return nil, err
		}
		all = append(all, rows...)
	}
	return all, nil
}

// issuer starts a server of its own, empty, in a directory of its own.
func (b *bench) issuer(ctx context.Context, subject string) (*programs.Server, error) {
	ports, err := programs.FreePorts(2)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.work, subject[:1])
	if err != nil {
		return nil, err
	}
	c := programs.ServerConfig{
		Path: filepath.Join(b.bin, "writd"), Dir: dir, TrustDomain: "bench.test", IssuerPort: ports[0], ControlPort: ports[1],
		More: "attest_rate: 1000\n",
	}
	if subject == ours {
		if err := b.built("writd"); err != nil {
			return nil, err
		}
		return programs.StartWritd(ctx, c)
	}
	if c.Path, err = b.spireProgram(ctx, "spire-server"); err != nil {
		return nil, err
	}
	return programs.StartSPIRE(ctx, c)
}

// spireProgram is a program of stock SPIRE, which is built when it is missing.
func (b *bench) spireProgram(ctx context.Context, name string) (string, error) {
	install := exec.CommandContext(ctx, "test/interop/install.sh", "spire")
	install.Stderr = os.Stderr
	cache, err := install.Output()
	if err != nil {
		return "", fmt.Errorf("cannot build SPIRE: %w", err)
	}
	return filepath.Join(string(bytes.TrimSpace(cache)), name), nil
}

// site is a server with entries, and the agents at it.
type site struct {
	subject string
	server  *programs.Server
	tokens  []string // of the agents that are to come, as many as there will be
	agents  []*siteAgent
	others  []*streamClient
}

func (s *site) stop() error {
	var errs []error
	for _, o := range s.others {
		errs = append(errs, o.close())
	}
	for _, a := range s.agents {
		errs = append(errs, a.Stop(20*time.Second))
	}
	if s.server != nil {
		errs = append(errs, s.server.Stop())
	}
	return errors.Join(errs...)
}

// registryAndAgents measures what does not need the processor for itself alone:
// the registry, how fast its changes arrive, and what the agent gives and holds.
func (b *bench) registryAndAgents(ctx context.Context, subjects []string) (rows []Row, err error) {
	sites := map[string]*site{}
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.stop())
		}
	}()
	// The last round's servers, with their entries, are gone on with.
	rows, err = b.rotate(ctx, subjects, func(subject string, s *samples) error {
		if old := sites[subject]; old != nil {
			delete(sites, subject)
			if err := old.stop(); err != nil {
				return err
			}
		}
		site, err := b.site(ctx, subject, s)
		sites[subject] = site
		return err
	})
	if err != nil {
		return nil, err
	}
	each := func(name string, turn func(context.Context, *site, *samples) error) error {
		var once samples
		for _, subject := range subjects {
			b.say("  %s: %s", name, subject)
			if err := turn(ctx, sites[subject], &once); err != nil {
				return fmt.Errorf("%s: %s: %w", name, subject, err)
			}
		}
		rows = append(rows, once.rows()...)
		return nil
	}
	timed := func(name string, rounds int, turn func(context.Context, *site, *samples) error) error {
		b.say("  %s", name)
		some := *b
		some.rounds = rounds
		more, err := some.rotate(ctx, subjects, func(subject string, s *samples) error { return turn(ctx, sites[subject], s) })
		rows = append(rows, more...)
		return err
	}
	// What a process holds does not depend on what others do meanwhile.
	for _, part := range []func() error{
		func() error { return each("100 agents join", b.populate) },
		func() error { return timed("propagation", 1, b.propagation) },
		func() error { return timed("fetch", b.rounds, b.fetch) },
		func() error { return each("an agent with 1,000 SVIDs", b.agentOf1000) },
		func() error { return each("100,000 entries", b.serverOf100k) },
	} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	return rows, nil
}
