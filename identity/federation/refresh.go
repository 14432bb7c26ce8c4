package federation

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
)

const (
	// DefaultInterval is how often an endpoint is asked that gives no hint.
	DefaultInterval = 5 * time.Minute
	// An endpoint's hint is heeded between these.
	minInterval = 10 * time.Second
	maxInterval = 24 * time.Hour
	// firstRetry doubles up to the interval.
	firstRetry = 15 * time.Second
)

// Config of a Refresher. All but Log are required.
type Config struct {
	// Fetch gets the bundle of a relationship; Client.Fetch is one.
	Fetch func(context.Context, *registry.Relationship) (*registry.FederatedBundle, error)
	// Bundles verify endpoints of profile https_spiffe.
	Bundles x509bundle.Source
	// Index knows the relationships and the bundles that there are.
	Index *registry.Index
	// Keep makes a bundle durable that was fetched for a relationship. It
	// refuses with an *Error.
	Keep func(context.Context, *registry.Relationship, *registry.FederatedBundle) error
	// Record is told when an endpoint begins to fail, fails for another cause,
	// or works again.
	Record identity.Emit
	Log    *slog.Logger
}

// Refresher keeps the bundles of other trust domains fresh: one worker for each
// relationship, which asks at the bundle's hint.
type Refresher struct {
	cfg Config

	mu      sync.Mutex
	workers map[spiffeid.TrustDomain]*worker
}

// State is how the refreshing of one bundle goes.
type State struct {
	TrustDomain spiffeid.TrustDomain
	EndpointURL string
	// Attempt and Success are the last ones, zero for none since the start.
	Attempt, Success, Next time.Time
	// Failing says why the last attempt failed; empty if it did not.
	Failing string
	Cause   Cause
	// Failures by cause since the start.
	Failures map[Cause]uint64
}

type worker struct {
	relation *registry.Relationship
	stop     context.CancelFunc
	done     chan struct{}
	// turn admits one fetch at a time, so that what was fetched first is kept
	// first.
	turn chan struct{}

	mu    sync.Mutex
	state State
	row   int // failures in a row
}

// NewRefresher returns a Refresher. Run starts it.
func NewRefresher(cfg Config) *Refresher {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Refresher{cfg: cfg, workers: map[spiffeid.TrustDomain]*worker{}}
}

// Run follows the relationships until ctx ends.
func (r *Refresher) Run(ctx context.Context) {
	defer r.follow(ctx, nil)
	for {
		relations, changed := r.cfg.Index.Relationships()
		r.follow(ctx, relations)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// follow makes the workers those of the relationships, and waits for those that
// end.
func (r *Refresher) follow(ctx context.Context, relations []*registry.Relationship) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A relationship that is changed goes on with the bundle that there is.
	success := map[spiffeid.TrustDomain]time.Time{}
	want := map[spiffeid.TrustDomain]*registry.Relationship{}
	for _, rel := range relations {
		want[rel.TrustDomain] = rel
	}
	for td, w := range r.workers {
		if rel := want[td]; rel == nil || *rel != *w.relation {
			w.stop()
			<-w.done
			w.mu.Lock()
			success[td] = w.state.Success
			w.mu.Unlock()
			delete(r.workers, td)
		}
	}
	for td, rel := range want {
		if r.workers[td] != nil {
			continue
		}
		ctx, stop := context.WithCancel(ctx)
		w := newWorker(rel)
		w.stop, w.state.Success = stop, success[td]
		r.workers[td] = w
		go func() {
			defer close(w.done)
			r.work(ctx, w)
		}()
	}
}

func newWorker(rel *registry.Relationship) *worker {
	return &worker{
		relation: rel, done: make(chan struct{}), turn: make(chan struct{}, 1),
		state: State{TrustDomain: rel.TrustDomain, EndpointURL: rel.EndpointURL, Failures: map[Cause]uint64{}},
	}
}

func (r *Refresher) work(ctx context.Context, w *worker) {
	for ctx.Err() == nil {
		_ = r.refresh(ctx, w) // told in every way there is
		w.mu.Lock()
		wait := r.wait(w)
		w.state.Next = time.Now().Add(wait)
		noBundle := w.state.Cause == NoBundle
		w.mu.Unlock()
		timer := time.NewTimer(wait)
		for waiting := true; waiting; {
			_, changed := r.cfg.Index.Revision()
			if !noBundle {
				changed = nil
			} else if b, err := r.cfg.Bundles.GetX509BundleForTrustDomain(w.relation.EndpointID.TrustDomain()); err == nil && !b.Empty() {
				break // what was missing is there
			}
			select {
			case <-changed:
				continue
			case <-ctx.Done():
			case <-timer.C:
			}
			waiting = false
		}
		timer.Stop()
	}
}

// wait is until the next attempt, a tenth less or more.
func (r *Refresher) wait(w *worker) time.Duration {
	interval := DefaultInterval
	if b := r.cfg.Index.FederatedBundle(w.relation.TrustDomain); b != nil && b.RefreshHint > 0 {
		interval = min(max(b.RefreshHint, minInterval), maxInterval)
	}
	if w.row > 0 {
		interval = min(interval, firstRetry<<min(w.row-1, 16))
	}
	return time.Duration(float64(interval) * (0.9 + 0.2*rand.Float64()))
}

// Refresh fetches the bundle of a trust domain now.
func (r *Refresher) Refresh(ctx context.Context, td spiffeid.TrustDomain) error {
	r.mu.Lock()
	w := r.workers[td]
	r.mu.Unlock()
	rel := r.cfg.Index.Relationship(td)
	if rel == nil {
		return Refuse(NotConfigured, "there is no federation relationship with %s", td.Name())
	}
	if w == nil || *w.relation != *rel {
		// Its worker is about to begin.
		w = newWorker(rel)
	}
	return r.refresh(ctx, w)
}

func (r *Refresher) refresh(ctx context.Context, w *worker) error {
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	b, err := r.cfg.Fetch(ctx, w.relation)
	if err == nil {
		err = r.cfg.Keep(ctx, w.relation, b)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var why *Error
	switch {
	case err == nil:
	case errors.As(err, &why):
		if why.Cause == Superseded {
			return why
		}
	default:
		why = Refuse(NotKept, "the bundle could not be kept: %v", err)
	}
	r.tell(ctx, w, b, why)
	if why == nil {
		return nil
	}
	return why
}

// tell puts the outcome into the state, and where it is news into the log and
// the record.
func (r *Refresher) tell(ctx context.Context, w *worker, b *registry.FederatedBundle, why *Error) {
	w.mu.Lock()
	before := w.state.Cause
	w.state.Attempt = time.Now()
	if why == nil {
		w.state.Success, w.state.Failing, w.state.Cause, w.row = w.state.Attempt, "", "", 0
	} else {
		w.state.Failing, w.state.Cause = why.Reason, why.Cause
		w.state.Failures[why.Cause]++
		w.row++
	}
	w.mu.Unlock()
	td, from := w.relation.TrustDomain, w.relation.EndpointURL
	act := identity.Act{
		Kind: identity.ActAdmin, Verb: "refreshed", Object: "federated-bundle", ObjectID: td.IDString(),
		Details: [][2]string{{"endpoint_url", from}},
	}
	switch {
	case why == nil && before == "":
		r.cfg.Log.DebugContext(ctx, "bundle refreshed", "trust_domain", td.Name(), "sequence", b.Sequence)
		return
	case why == nil:
		r.cfg.Log.InfoContext(ctx, "bundle refreshed again", "trust_domain", td.Name(), "endpoint", from, "sequence", b.Sequence)
	default:
		r.cfg.Log.WarnContext(ctx, "bundle not refreshed, the last one stays", "trust_domain", td.Name(), "endpoint", from, "cause", string(why.Cause), "error", why.Reason)
		if before == why.Cause {
			return // is on record
		}
		act.Failed, act.Reason = true, why.Reason
		act.Details = append(act.Details, [2]string{"cause", string(why.Cause)})
		if why.Cause == RanBackwards || why.Cause == ClaimsOurs || why.Cause == Untrusted {
			act.Kind = identity.ActAlarm
		}
	}
	if err := r.cfg.Record(ctx, act); err != nil {
		r.cfg.Log.ErrorContext(ctx, "cannot record how a bundle was refreshed", "trust_domain", td.Name(), "error", err)
	}
}

// States are of all relationships, in no order.
func (r *Refresher) States() []State {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []State
	for _, w := range r.workers {
		w.mu.Lock()
		s := w.state
		s.Failures = map[Cause]uint64{}
		for c, n := range w.state.Failures {
			s.Failures[c] = n
		}
		w.mu.Unlock()
		all = append(all, s)
	}
	return all
}
