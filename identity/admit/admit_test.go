package admit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/admit"
)

// full is a queue of which everything is taken, with what waits behind.
type full struct {
	*admit.Queue[string]
	t *testing.T

	mu    sync.Mutex
	order []string
	wg    sync.WaitGroup
}

func newFull(t *testing.T, cfg admit.Config) *full {
	t.Helper()
	f := &full{Queue: admit.New[string](cfg), t: t}
	if err := f.Enter(t.Context(), admit.Request[string]{Weight: cfg.Capacity}); err != nil {
		t.Fatal(err)
	}
	return f
}

var roomy = admit.Config{Capacity: 1, Waiting: 1000, Requests: 1000, PerCaller: 1000}

// ask waits under a name, which goes into the order when it is its turn. It takes
// the work one second.
func (f *full) ask(name string, r admit.Request[string]) {
	f.askFor(f.t.Context(), name, r, time.Second)
}

func (f *full) askFor(ctx context.Context, name string, r admit.Request[string], work time.Duration) {
	if r.Caller == "" {
		r.Caller = name
	}
	f.wg.Go(func() {
		err := f.Enter(ctx, r)
		f.mu.Lock()
		if err != nil {
			name += ": " + err.Error()
			var refused *admit.RefusedError
			if errors.As(err, &refused) {
				name = name[:len(name)-len(err.Error())] + refused.Reason.String()
			}
		}
		f.order = append(f.order, name)
		f.mu.Unlock()
		if err == nil {
			time.Sleep(work)
			f.Leave(r.Weight)
		}
	})
	synctest.Wait()
}

// run lets everything go on, and compares the order.
func (f *full) run(want ...string) {
	f.t.Helper()
	f.Leave(1000) // counts as the whole capacity
	f.wg.Wait()
	if diff := cmp.Diff(want, f.order); diff != "" {
		f.t.Error(diff)
	}
	for class, s := range f.Stats() {
		if s.Waiting != 0 || s.Weight != 0 {
			f.t.Errorf("%s: %+v is left", admit.Classes[class], s)
		}
	}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFull(t, roomy)
		f.ask("bulk", admit.Request[string]{Class: admit.Bulk})
		f.ask("first", admit.Request[string]{Class: admit.First})
		f.ask("first 2", admit.Request[string]{Class: admit.First})
		f.ask("an hour", admit.Request[string]{Life: time.Hour})
		f.ask("expired", admit.Request[string]{Life: -time.Minute})
		f.ask("ten seconds", admit.Request[string]{Life: 10 * time.Second})
		f.ask("a minute", admit.Request[string]{Life: time.Minute})
		time.Sleep(time.Second)
		f.ask("nine and a half", admit.Request[string]{Life: 8500 * time.Millisecond})
		// What has waited for more than grace has its share; by then, only those of
		// no hurry are left.
		f.run("nine and a half", "ten seconds", "expired", "a minute", "an hour", "first", "first 2", "bulk")
	})
}

// A caller with much to do has one turn where others have one.
func TestCallersShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFull(t, roomy)
		for n := range 3 {
			f.ask(fmt.Sprint("greedy ", n), admit.Request[string]{Caller: "greedy", Life: time.Second})
		}
		f.ask("a", admit.Request[string]{Life: time.Minute})
		f.ask("b 0", admit.Request[string]{Caller: "b", Life: time.Hour})
		f.ask("b 1", admit.Request[string]{Caller: "b", Life: time.Hour})
		f.run("greedy 0", "a", "b 0", "greedy 1", "b 1", "greedy 2")
	})
}

// Where more of a caller's requests compete at a time, as those of many behind one
// address, they do so by urgency.
func TestCallersShareByTheThree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := roomy
		cfg.AtATime = 3
		f := newFull(t, cfg)
		for n := range 5 {
			f.ask(fmt.Sprint("many ", n), admit.Request[string]{Caller: "many", Life: time.Duration(10-n) * time.Second})
		}
		f.ask("one", admit.Request[string]{Life: time.Minute})
		f.run("many 2", "many 1", "many 0", "one", "many 4", "many 3")
	})
}

// However many renewals come, and however urgent they say they are, what else there
// is gets a quarter of the turns once it has waited.
func TestNobodyStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := roomy
		cfg.Waiting, cfg.Requests = 40, 40
		f := newFull(t, cfg)
		ctx, stop := context.WithCancel(t.Context())
		var flood sync.WaitGroup
		for n := range 100 { // each comes again at once, for ever
			flood.Go(func() {
				for ctx.Err() == nil {
					if err := f.Enter(ctx, admit.Request[string]{Caller: fmt.Sprint(n), Life: time.Nanosecond}); err != nil {
						time.Sleep(100 * time.Millisecond)
						continue
					}
					time.Sleep(10 * time.Millisecond)
					f.Leave(1)
				}
			})
		}
		f.Leave(1)
		time.Sleep(time.Second)
		begun := time.Now()
		for n := range 8 {
			f.askFor(t.Context(), fmt.Sprint("first ", n), admit.Request[string]{Class: admit.First}, 10*time.Millisecond)
		}
		f.askFor(t.Context(), "bulk", admit.Request[string]{Class: admit.Bulk}, 10*time.Millisecond)
		f.wg.Wait()
		took := time.Since(begun)
		stop()
		flood.Wait()
		slices.Sort(f.order)
		if diff := cmp.Diff([]string{"bulk", "first 0", "first 1", "first 2", "first 3", "first 4", "first 5", "first 6", "first 7"}, f.order); diff != "" {
			t.Error(diff)
		}
		if took < 4*time.Second || took > 6*time.Second {
			t.Errorf("it took %v, want little more than four seconds", took)
		}
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFull(t, admit.Config{Capacity: 1, Waiting: 4, Requests: 3, PerCaller: 2})
		f.ask("a", admit.Request[string]{Life: 3 * time.Minute})
		f.ask("b", admit.Request[string]{Life: 2 * time.Minute})
		f.ask("c", admit.Request[string]{Life: 4 * time.Minute})
		f.ask("less urgent", admit.Request[string]{Life: 5 * time.Minute})
		f.ask("more urgent", admit.Request[string]{Life: time.Minute})
		f.ask("b 2", admit.Request[string]{Caller: "b", Life: time.Second})
		f.ask("first 1", admit.Request[string]{Class: admit.First, Caller: "f"})
		f.ask("first 2", admit.Request[string]{Class: admit.First, Caller: "f"})
		f.ask("first 3", admit.Request[string]{Class: admit.First, Caller: "f"})
		f.run("less urgent: full", "c: displaced", "b 2: full", "first 3: too_many", "more urgent", "b", "a", "first 1", "first 2")
	})
}

// By weight too: a large request waits until there is room, and what is smaller and
// less urgent does not overtake it.
func TestWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFull(t, admit.Config{Capacity: 10, Waiting: 20, Requests: 10, PerCaller: 10})
		f.ask("large", admit.Request[string]{Life: time.Minute, Weight: 15}) // counts as ten
		f.ask("small", admit.Request[string]{Life: time.Hour, Weight: 1})
		f.ask("too much", admit.Request[string]{Life: 2 * time.Hour, Weight: 10})
		f.ask("urgent", admit.Request[string]{Life: time.Second, Weight: 10})
		f.run("too much: full", "small: displaced", "urgent", "large")
	})
}

// Nothing is begun for a caller that has gone, or would have by the time.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFull(t, roomy)
		canceled, cancel := context.WithCancel(t.Context())
		f.askFor(canceled, "canceled", admit.Request[string]{}, 0)
		short, stop := context.WithTimeout(t.Context(), 5*time.Second)
		defer stop()
		f.askFor(short, "late", admit.Request[string]{}, 0)
		f.ask("patient", admit.Request[string]{})
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
		time.Sleep(3950 * time.Millisecond) // 50 ms before its deadline
		f.Leave(1)
		f.wg.Wait()
		slices.Sort(f.order) // the last two end at the same moment
		if diff := cmp.Diff([]string{"canceled: context canceled", "late: context deadline exceeded", "patient"}, f.order); diff != "" {
			t.Error(diff)
		}
		if gone := f.Stats()[admit.Renewal].Refused[admit.Gone]; gone != 2 {
			t.Errorf("%d were gone, want 2", gone)
		}
	})
}

// Who waits too long is told when to come again, by the pace at which things go.
func TestTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFull(t, roomy)
		var errs []error
		var mu sync.Mutex
		for n := range 40 {
			f.wg.Go(func() {
				err := f.Enter(t.Context(), admit.Request[string]{Caller: fmt.Sprint(n)})
				if err == nil {
					time.Sleep(500 * time.Millisecond)
					f.Leave(1)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
		synctest.Wait()
		f.Leave(1)
		f.wg.Wait()
		// Half a second each, for fifteen seconds.
		if len(errs) < 9 || len(errs) > 11 {
			t.Errorf("%d were refused, want ten or so", len(errs))
		}
		for _, err := range errs {
			var refused *admit.RefusedError
			if !errors.As(err, &refused) || refused.Reason != admit.TooLong {
				t.Fatal(err)
			}
			// Two a second, and at most ten waited.
			if refused.After < 500*time.Millisecond || refused.After > 5500*time.Millisecond {
				t.Errorf("come again in %v", refused.After)
			}
			if after, ok := admit.RetryAfter(admit.Status(err)); !ok || after != refused.After {
				t.Errorf("over the wire: %v, %v", after, ok)
			}
		}
	})
}

// Whatever comes and goes, never is more done at once than the capacity, and in the
// end nothing is left.
func TestConcurrently(t *testing.T) {
	q := admit.New[int](admit.Config{Capacity: 8, Waiting: 50, Requests: 20, PerCaller: 5})
	var mu sync.Mutex
	used := 0
	var wg sync.WaitGroup
	for n := range 64 {
		wg.Go(func() {
			for k := range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if k%5 == 0 {
					cancel()
				} else if k%5 == 1 {
					go cancel()
				}
				weight := 1 + (n+k)%10
				r := admit.Request[int]{Class: admit.Classes[k%3], Life: time.Duration(k) * time.Second, Caller: n % 16, Weight: weight}
				if q.Enter(ctx, r) == nil {
					mu.Lock()
					if used += min(weight, 8); used > 8 {
						t.Errorf("%d at once", used)
					}
					mu.Unlock()
					mu.Lock()
					used -= min(weight, 8)
					mu.Unlock()
					q.Leave(weight)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	for _, s := range q.Stats() {
		if s.Waiting != 0 || s.Weight != 0 {
			t.Errorf("left: %+v", s)
		}
	}
	if err := q.Enter(t.Context(), admit.Request[int]{Weight: 8}); err != nil {
		t.Errorf("the whole capacity is not free again: %v", err)
	}
}

func BenchmarkEnter(b *testing.B) {
	q := admit.New[int](admit.Config{Capacity: 1000, Waiting: 1000, Requests: 1000, PerCaller: 100})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if q.Enter(b.Context(), admit.Request[int]{Weight: 1}) == nil {
				q.Leave(1)
			}
		}
	})
}
