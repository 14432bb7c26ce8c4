package compile

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// Engines that a Decider of this package may be.
const (
	EngineCompiled = "compiled" // the program answers everything
	EngineMixed    = "mixed"    // topdown is asked about some of it
	EngineTopdown  = "topdown"  // there is no program, or it answers nothing
)

// Engine is what the Decider of a Snapshot also implements.
type Engine interface {
	// Engine is compiled, mixed or topdown, by what the program says.
	Engine() string
	// Asked is how many decisions topdown was asked for, since the snapshot was
	// made. What the program answers is not counted: that would cost more than
	// the rest of some decisions.
	Asked() uint64
}

// Snapshot puts a compiled program in force, with topdown beside it for what
// the program does not answer. load gives the sources' form; it is called at
// once when the program leaves anything to topdown, and otherwise when
// something is first asked, so that who runs a program that answers all needs
// no memory for the sources. prog may be nil: all is asked.
//
// A load that fails later than here makes the decision an error, and is tried
// again with the next one.
func Snapshot(load func() (*opa.Program, error), prog *program.Program, services map[string]policy.Service, cfg opa.SnapshotConfig) (*policy.Snapshot, error) {
	d := &decider{load: load, cfg: cfg, engine: EngineTopdown}
	if prog == nil {
		topdown, err := d.prepare()
		if err != nil {
			return nil, err
		}
		s := *topdown
		s.Decider = d
		return &s, nil
	}
	evaluator, err := program.New(prog)
	if err != nil {
		return nil, fmt.Errorf("compiled policy: %w", err)
	}
	d.evaluator, d.engine = evaluator.At(cfg.Revision), EngineOf(prog)
	if d.engine != EngineCompiled {
		if _, err := d.prepare(); err != nil {
			return nil, err
		}
	}
	return &policy.Snapshot{
		Revision:  cfg.Revision,
		Services:  services,
		Reads:     prog.Reads,
		Decider:   d,
		Activated: cfg.Activated,
	}, nil
}

// EngineOf says how much of the decisions a program makes.
func EngineOf(p *program.Program) string {
	asks, always := 0, 0
	for _, u := range p.Units {
		here := u.Ask
		for _, clauses := range u.Clauses {
			for _, c := range clauses {
				if c.Ask {
					here = append(here[:len(here):len(here)], c)
				}
			}
		}
		asks += len(here)
		for _, c := range u.Ask {
			if len(c.Atoms) == 0 {
				always++
				break
			}
		}
	}
	switch {
	case len(p.Units) == always:
		return EngineTopdown
	case asks > 0:
		return EngineMixed
	}
	return EngineCompiled
}

// decider is a policy.Decider and an Engine.
type decider struct {
	evaluator *program.Evaluator
	engine    string
	load      func() (*opa.Program, error)
	cfg       opa.SnapshotConfig

	asked     atomic.Uint64
	topdown   atomic.Pointer[policy.Snapshot]
	preparing sync.Mutex
}

// Decide implements policy.Decider.
func (d *decider) Decide(ctx context.Context, in *policy.Input, out *policy.Decision) {
	if d.evaluator != nil && d.evaluator.Decide(in, out) {
		return
	}
	d.asked.Add(1)
	s, err := d.prepare()
	if err != nil {
		out.Reset()
		out.Verdict, out.Tier, out.Revision = policy.Error, policy.Enforcement, d.cfg.Revision
		out.Reason = fmt.Sprintf("prepare policy: %v", err)
		return
	}
	s.Decider.Decide(ctx, in, out)
}

// prepare gives topdown, and makes it the first time.
func (d *decider) prepare() (*policy.Snapshot, error) {
	if s := d.topdown.Load(); s != nil {
		return s, nil
	}
	d.preparing.Lock()
	defer d.preparing.Unlock()
	if s := d.topdown.Load(); s != nil {
		return s, nil
	}
	p, err := d.load()
	if err != nil {
		return nil, err
	}
	s, err := p.Snapshot(d.cfg)
	if err != nil {
		return nil, err
	}
	d.topdown.Store(s)
	return s, nil
}

// Engine implements Engine.
func (d *decider) Engine() string { return d.engine }

// Asked implements Engine.
func (d *decider) Asked() uint64 { return d.asked.Load() }
