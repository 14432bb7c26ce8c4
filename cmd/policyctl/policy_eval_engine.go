package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
)

// engineBoth is both engines, compared.
const engineBoth = "both"

var evalEngines = []string{engineTopdown, engineCompiled, engineBoth}

// evaluation is what "policy eval" decides.
type evaluation struct {
	dir     string
	program *opa.Program
	engine  string
	inputs  []*policy.Input
	// allowOutside gives rules a way out.
	allowOutside bool
}

func (e *evaluation) snapshotConfig() opa.SnapshotConfig {
	cfg := opa.SnapshotConfig{Timeout: evalTimeout}
	if e.allowOutside {
		cfg.Outside = &opa.Outside{Env: os.LookupEnv}
	}
	return cfg
}

// evalResult is its JSON form. Compiled has the decisions of the compiled form
// where both were asked, in the same order.
type evalResult struct {
	OK          bool           `json:"ok"`
	Decisions   []decisionInfo `json:"decisions"`
	Compiled    []decisionInfo `json:"compiled,omitempty"`
	Differences []int          `json:"differences,omitempty"`
}

func (a *app) evalDecisions(ctx context.Context, e evaluation) error {
	result := evalResult{OK: true}
	var err error
	if e.engine == engineCompiled {
		result.Decisions, err = e.compiled(ctx)
	} else {
		result.Decisions, err = e.topdown(ctx)
	}
	if err == nil && e.engine == engineBoth {
		if result.Compiled, err = e.compiled(ctx); err == nil {
			result.compare()
		}
	}
	if err != nil {
		return err
	}
	err = a.emit(result, func(w io.Writer) error {
		for i, d := range result.Decisions {
			if i > 0 {
				fmt.Fprintln(w)
			}
			if e.engine == engineBoth && !slices.Contains(result.Differences, i+1) {
				d.Engine = "both, with the same result"
				if result.Compiled[i].Engine == engineTopdown {
					d.Engine = "topdown, which the compiled form asks here"
				}
			}
			if err := d.write(w, e.dir); err != nil {
				return err
			}
		}
		for _, i := range result.Differences {
			fmt.Fprintf(w, "\ninput %d is decided otherwise by the compiled form:\n", i)
			if err := result.Compiled[i-1].write(w, e.dir); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && !result.OK {
		return &exitError{code: 1}
	}
	return err
}

// compare finds the inputs, counted from 1, that are decided differently.
func (r *evalResult) compare() {
	for i := range r.Decisions {
		if !r.Decisions[i].equal(r.Compiled[i]) {
			r.Differences = append(r.Differences, i+1)
			r.OK = false
		}
	}
}

// equal compares what was decided, whoever decided it.
func (i decisionInfo) equal(o decisionInfo) bool {
	sameEnd := i.Expires == o.Expires || i.Expires != nil && o.Expires != nil && i.Expires.Equal(*o.Expires)
	return sameEnd && i.Verdict == o.Verdict && i.Tier == o.Tier && i.Reason == o.Reason && slices.Equal(i.Rules, o.Rules)
}

func (e *evaluation) topdown(ctx context.Context) ([]decisionInfo, error) {
	snapshot, err := e.program.Snapshot(e.snapshotConfig())
	if err != nil {
		return nil, err
	}
	return e.decide(ctx, snapshot.Decider)
}

func (e *evaluation) compiled(ctx context.Context) ([]decisionInfo, error) {
	compiled, _, err := compile.Compile(ctx, e.program, compile.Config{})
	if err != nil {
		return nil, fmt.Errorf("compile policy: %w", err)
	}
	load := func() (*opa.Program, error) { return e.program, nil }
	snapshot, err := compile.Snapshot(load, compiled, e.program.Catalogue().Services, e.snapshotConfig())
	if err != nil {
		return nil, err
	}
	return e.decide(ctx, snapshot.Decider)
}

// decide decides each input. It names the engine where more than one could
// have answered.
func (e *evaluation) decide(ctx context.Context, decider policy.Decider) ([]decisionInfo, error) {
	var list []decisionInfo
	engine, compiled := decider.(compile.Engine)
	asked := uint64(0)
	for _, in := range e.inputs {
		var d policy.Decision
		decider.Decide(ctx, in, &d)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		info := decisionInfoFrom(&d)
		if e.engine != engineTopdown {
			info.Engine = engineTopdown
		}
		if compiled {
			before := asked
			if asked = engine.Asked(); asked == before {
				info.Engine = engineCompiled
			}
		}
		list = append(list, info)
	}
	return list, nil
}
