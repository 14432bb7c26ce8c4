package simulate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/writ-dev/writ/policy"
)

// batchSize is how many records go to a worker at once.
const batchSize = 256

// batch is records on their way through a worker. Its memory is used again.
type batch struct {
	records [batchSize]Recorded
	results [batchSize]result
	n       int
	// first is the index of the first record in the whole.
	first uint64
	done  chan struct{}
}

// result is what became of one record.
type result struct {
	// reason and detail are set where it was not replayed.
	reason, detail      string
	change              Change
	baseline, candidate policy.Decision
	// modes that verdicts are applied in.
	was, is policy.Mode
	// disagrees: the baseline decides otherwise than was recorded, and sameBy
	// says that it is the content which decided.
	disagrees, sameBy bool
}

// Run replays what Next hands out and returns what changes. The report does
// not depend on the number of workers. It needs memory for a few batches and
// a bounded number of groups, whatever the number of records.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Next == nil || cfg.Candidate.Decider == nil || cfg.Baseline != nil && cfg.Baseline.Decider == nil {
		return nil, errors.New("simulate: incomplete configuration")
	}
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.Agrees == nil {
		cfg.Agrees = agrees
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()

	depth := 2 * cfg.Workers
	free, work, ordered := make(chan *batch, depth), make(chan *batch, depth), make(chan *batch, depth)
	for range depth {
		free <- &batch{done: make(chan struct{}, 1)}
	}
	var failed error
	all.Go(func() {
		failed = read(ctx, &cfg, free, work, ordered)
		close(work)
		close(ordered)
	})
	for range cfg.Workers {
		all.Go(func() {
			w := worker{cfg: &cfg, covered: map[[2]*policy.Reads]string{}}
			for b := range work {
				w.run(ctx, b)
				b.done <- struct{}{}
			}
		})
	}
	report := newReport()
	// Batches are merged in the order of the records, so that the report is
	// the same whoever was faster.
	for b := range ordered {
		<-b.done
		for i := range b.n {
			report.add(b.first+uint64(i), &b.records[i], &b.results[i])
		}
		if cfg.Progress != nil {
			cfg.Progress(report.Records)
		}
		free <- b
	}
	// The reader closed ordered after it wrote failed.
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("simulate: %w", err)
	}
	if failed != nil {
		return nil, fmt.Errorf("simulate: read records: %w", failed)
	}
	report.finish()
	return report, nil
}

// read fills batches until there are no more records. Each is handed to the
// workers and, in order, to whoever merges.
func read(ctx context.Context, cfg *Config, free <-chan *batch, work, ordered chan<- *batch) error {
	var at uint64
	for {
		var b *batch
		select {
		case b = <-free:
		case <-ctx.Done():
			return nil
		}
		b.n, b.first = 0, at
		var err error
		for b.n < batchSize && err == nil && (cfg.Limit == 0 || at < cfg.Limit) {
			if err = cfg.Next(&b.records[b.n]); err == nil {
				b.n++
				at++
			}
		}
		if b.n > 0 {
			// Both have room for every batch there is.
			work <- b
			ordered <- b
		}
		switch {
		case err == io.EOF, cfg.Limit != 0 && at >= cfg.Limit:
			return nil
		case err != nil:
			return err
		}
	}
}

// worker decides. It belongs to one goroutine.
type worker struct {
	cfg *Config
	// covered says for two Reads what the first needs and the second has not;
	// empty is nothing.
	covered map[[2]*policy.Reads]string
}

func (w *worker) run(ctx context.Context, b *batch) {
	for i := range b.n {
		if ctx.Err() != nil {
			return
		}
		if w.cfg.Open != nil {
			w.cfg.Open(&b.records[i])
		}
		w.replay(ctx, &b.records[i], &b.results[i])
	}
}

func (w *worker) replay(ctx context.Context, r *Recorded, out *result) {
	base, cand := &out.baseline, &out.candidate
	base.Reset()
	cand.Reset()
	*out = result{baseline: *base, candidate: *cand}
	if out.reason, out.detail = w.obstacle(r); out.reason != "" {
		return
	}
	out.is = w.cfg.Candidate.decide(ctx, r.Input, &out.candidate, w.cfg)
	if w.cfg.Baseline == nil {
		d := &r.Decision
		out.baseline.Verdict, out.baseline.Tier, out.was = d.Verdict, d.Tier, r.Mode
		out.baseline.Rules = append(out.baseline.Rules, d.Rules...)
	} else {
		out.was = w.cfg.Baseline.decide(ctx, r.Input, &out.baseline, w.cfg)
		// An error may have been of its moment, such as a timeout.
		if !own(&r.Decision) && r.Decision.Verdict != policy.Error {
			out.disagrees = !w.cfg.Agrees(&r.Decision, &out.baseline)
			out.sameBy = r.Decision.Revision.Digest == w.cfg.Baseline.Digest
		}
	}
	if out.detail = cmp.Or(out.candidate.Unasked, out.baseline.Unasked); out.detail != "" {
		out.reason = LooksOutside
		return
	}
	out.change = compare(out)
}

// decide answers as an enforcement point of the destination would, and gives
// the mode that it applies the answer in.
func (s *Side) decide(ctx context.Context, in *policy.Input, out *policy.Decision, cfg *Config) policy.Mode {
	if s.Services != nil {
		service, known := s.Services[in.Destination.Service]
		if !known || in.Destination.ID != "" && !slices.Contains(service.SPIFFEIDs, in.Destination.ID) {
			out.Verdict, out.Tier = policy.Deny, policy.Enforcement
			out.Reason = "the catalogue does not give the service to its enforcement point"
			return policy.Enforce
		}
		s.Decider.Decide(ctx, in, out)
		return service.ModeAt(cfg.At)
	}
	s.Decider.Decide(ctx, in, out)
	return policy.Enforce
}

// own reports whether a decision is the enforcement point's own denial, by no
// policy. An evaluation that fails is in the same tier, and no deny.
func own(d *policy.Decision) bool {
	return d.Tier == policy.Enforcement && d.Verdict == policy.Deny
}

func compare(r *result) Change {
	base, cand := &r.baseline, &r.candidate
	if base.Verdict != cand.Verdict {
		switch cand.Verdict {
		case policy.Allow:
			return NewlyAllowed
		case policy.Deny:
			return NewlyDenied
		case policy.Undefined:
			return NewlyUndefined
		}
		return NewlyError
	}
	switch {
	case r.passed() != r.passes():
		return ModeChanged
	case base.Tier != cand.Tier:
		return TierChanged
	case !sameRules(base.Rules, cand.Rules):
		return RulesChanged
	}
	return Same
}

// passed and passes say whether the caller was, and would be, let through.
func (r *result) passed() bool {
	return r.baseline.Verdict == policy.Allow || r.was == policy.Observe
}

func (r *result) passes() bool {
	return r.candidate.Verdict == policy.Allow || r.is == policy.Observe
}

func agrees(recorded, again *policy.Decision) bool {
	return recorded.Verdict == again.Verdict && recorded.Tier == again.Tier && sameRules(recorded.Rules, again.Rules)
}

// sameRules compares ids: a rule that moved in its file is the same rule.
func sameRules(a, b []policy.Rule) bool {
	return slices.EqualFunc(a, b, func(x, y policy.Rule) bool { return x.ID == y.ID })
}
