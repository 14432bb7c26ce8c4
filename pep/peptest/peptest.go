// Package peptest holds what tests of enforcement share: a recorder in memory,
// deciders written in Go, and snapshots made of them.
package peptest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/policy"
)

// ErrFull is what a Recorder answers when Fill was called.
var ErrFull = errors.New("spool full")

// Recorder keeps events in memory.
type Recorder struct {
	mu     sync.Mutex
	events []Event
	full   bool
	grown  chan struct{}
}

// Event is what was recorded, with the receipt's decision id.
type Event struct {
	audit.Event
	DecisionID string
}

// Record implements audit.Recorder.
func (r *Recorder) Record(ev *audit.Event) (audit.Receipt, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return audit.Receipt{}, ErrFull
	}
	seq := uint64(len(r.events) + 1)
	kept := Event{Event: *ev, DecisionID: fmt.Sprintf("d-%d", seq)}
	if ev.Input != nil {
		in := *ev.Input
		in.Request.Segments = slices.Clone(in.Request.Segments)
		in.Request.Headers, in.Request.Query = nil, nil
		kept.Input = &in
	}
	if ev.Decision != nil {
		d := *ev.Decision
		d.Rules, d.Obligations = slices.Clone(d.Rules), slices.Clone(d.Obligations)
		kept.Decision = &d
	}
	r.events = append(r.events, kept)
	if r.grown != nil {
		close(r.grown)
		r.grown = nil
	}
	return audit.Receipt{Sequence: seq, DecisionID: kept.DecisionID}, nil
}

// Fill makes every further Record fail, or succeed again.
func (r *Recorder) Fill(full bool) {
	r.mu.Lock()
	r.full = full
	r.mu.Unlock()
}

// Events is a copy of what was recorded.
func (r *Recorder) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// Wait returns the first event that match accepts, as soon as there is one.
func (r *Recorder) Wait(ctx context.Context, match func(Event) bool) (Event, error) {
	for next := 0; ; {
		r.mu.Lock()
		for ; next < len(r.events); next++ {
			if match(r.events[next]) {
				defer r.mu.Unlock()
				return r.events[next], nil
			}
		}
		if r.grown == nil {
			r.grown = make(chan struct{})
		}
		grown := r.grown
		r.mu.Unlock()
		select {
		case <-grown:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Discard is a recorder that only counts on nothing going wrong.
type Discard struct{}

// Record implements audit.Recorder.
func (Discard) Record(*audit.Event) (audit.Receipt, error) {
	return audit.Receipt{Sequence: 1, DecisionID: "0000000000000001"}, nil
}

// Decide is a policy.Decider made of a func.
type Decide func(in *policy.Input, out *policy.Decision)

// Decide implements policy.Decider.
func (f Decide) Decide(_ context.Context, in *policy.Input, out *policy.Decision) { f(in, out) }

// Verdict decides everything alike.
func Verdict(v policy.Verdict) Decide {
	return func(_ *policy.Input, out *policy.Decision) {
		out.Verdict, out.Tier, out.Reason = v, policy.ServiceAllow, "test"
		if v != policy.Allow {
			out.Tier = policy.DefaultDeny
		}
	}
}

// Snapshot puts d in force, at this revision number, for the service name with
// the SPIFFE ID, in mode enforce.
func Snapshot(number uint64, name, id string, d policy.Decider) *policy.Snapshot {
	return &policy.Snapshot{
		Revision:  policy.Revision{Epoch: 1, Number: number, Digest: [32]byte{1}},
		Services:  map[string]policy.Service{name: {Name: name, SPIFFEIDs: []string{id}, Mode: policy.Enforce}},
		Decider:   d,
		Activated: time.Unix(1_700_000_000, 0),
	}
}
