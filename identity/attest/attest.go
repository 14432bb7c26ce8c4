// Package attest holds what attests: nodes to the issuer (the agent's halves;
// the issuer's are in server), workloads to the agent. There is one package for
// each method; this one puts the methods for workloads together.
package attest

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/identity/attest/cgroup"
	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/tracing"
)

// Workload is a method that finds selectors of a process by asking somebody.
type Workload interface {
	// Type is the first part of its selectors.
	Type() string
	// Kinds are the kinds of selectors it gives, as in docker:label.
	Kinds() []string
	// Attest returns what is proven of the process. An error that is
	// cgroup.ErrNone means that the process is none of its own.
	Attest(ctx context.Context, pid int) ([]string, error)
}

// Kernel is the method that asks the kernel alone: it comes last, because it
// makes sure that the process is still the one that connected.
type Kernel interface {
	Attest(ctx context.Context, p peercred.Peer, asked func(kind string) bool) ([]string, error)
}

// Timeout is what each method has, unless Workloads says otherwise.
const Timeout = 3 * time.Second

// Workloads attests by several methods.
type Workloads struct {
	Kernel  Kernel
	Methods []Workload
	// Timeout bounds each method; the package's Timeout if zero.
	Timeout time.Duration
	Log     *slog.Logger
	// Failed, if given, is told of each method that failed.
	Failed func(method string)
}

// Attest returns all that is proven of the process. A method that fails, or
// takes too long, adds nothing: its selectors match no entry. It is not asked
// where no entry asks for what it finds.
func (w *Workloads) Attest(ctx context.Context, p peercred.Peer, asked func(kind string) bool) ([]string, error) {
	selectors, _, err := w.AttestAgain(ctx, p, asked)
	return selectors, err
}

// AttestAgain is Attest for a process that was attested before: it also returns
// the types of the methods that failed. That an engine restarts says nothing
// about the process; who asks again keeps what these found before.
func (w *Workloads) AttestAgain(ctx context.Context, p peercred.Peer, asked func(kind string) bool) (selectors, silent []string, err error) {
	timeout := w.Timeout
	if timeout == 0 {
		timeout = Timeout
	}
	ctx, span := tracing.Start(ctx, "attest workload")
	defer func() { span.End(err) }()
	span.Int(tracing.PID, p.PID)
	found, failed := make([][]string, len(w.Methods)), make([]bool, len(w.Methods))
	var wg sync.WaitGroup
	for i, m := range w.Methods {
		if !slices.ContainsFunc(m.Kinds(), asked) {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			ctx, span := tracing.Start(ctx, "ask workload attestor")
			span.String(tracing.Attestation, m.Type())
			selectors, err := m.Attest(ctx, p.PID)
			if errors.Is(err, cgroup.ErrNone) {
				span.End(nil)
			} else {
				span.End(err)
			}
			switch {
			case err == nil:
				found[i] = selectors
			case errors.Is(err, cgroup.ErrNone):
			default:
				failed[i] = true
				w.Log.WarnContext(ctx, "a workload attestor failed: the caller gets none of its selectors", "attestor", m.Type(), "pid", p.PID, "uid", p.UID, "error", err)
				if w.Failed != nil {
					w.Failed(m.Type())
				}
			}
		})
	}
	wg.Wait()
	if selectors, err = w.Kernel.Attest(ctx, p, asked); err != nil {
		return nil, nil, err
	}
	for i, m := range w.Methods {
		selectors = append(selectors, found[i]...)
		if failed[i] {
			silent = append(silent, m.Type())
		}
	}
	return selectors, silent, nil
}
