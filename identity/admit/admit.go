// Package admit puts work in order where more is asked for than can be done:
// what is about to expire is renewed first, then comes what is asked for the first
// time, then what can wait. What waits is bounded; who is refused is told when to
// come again, and nothing is done for a caller who has gone.
package admit

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

// Class is what work is, as far as its order goes.
type Class uint8

const (
	// Renewal replaces what its caller has, before that expires.
	Renewal Class = iota
	// First gives its caller what it did not have.
	First
	// Bulk can wait.
	Bulk
)

// Classes are all of them, in order.
var Classes = [...]Class{Renewal, First, Bulk}

func (c Class) String() string { return [...]string{"renewal", "first", "bulk"}[c] }

const (
	// patience is how long a request waits where nothing else is said. Callers of gRPC give up after half a
	// minute or so, and what is done for them then is done for nobody.
	patience = 15 * time.Second
	// grace is how long another class waits for renewals alone, where nothing else is
	// said. Then one unit of four is its.
	grace = 4 * time.Second
	share = 4
	// leastAfter is how soon who is refused may come again.
	leastAfter = 500 * time.Millisecond
	// headroom is what a caller must have left of its deadline for work to begin.
	headroom = 100 * time.Millisecond
)

// Config of a Queue. What has no default is required.
type Config struct {
	// Capacity is how much is done at once, in units of weight.
	Capacity int
	// Waiting is how much of a class may wait, in units of weight, and Requests how
	// many; of Bulk an eighth of that.
	Waiting, Requests int
	// PerCaller is how many requests of one caller may wait, and AtATime how many of
	// them compete with those of others at a time; 1 if zero.
	PerCaller, AtATime int
	// Patience is how long a request waits; 15 seconds if zero. Grace is how long
	// those of a class may go before all of a later one; 4 seconds if zero.
	Patience, Grace time.Duration
}

// Request is what somebody wants to have done.
type Request[K comparable] struct {
	Class Class
	// Life is what is left of what a Renewal replaces. Nothing but the order
	// depends on it.
	Life time.Duration
	// Caller shares with others: they have turns in rounds.
	Caller K
	// Weight is how much it is, at least 1. More than the whole capacity counts as
	// that.
	Weight int
}

// Reason is why a request was not admitted.
type Reason uint8

const (
	// Full: too much waits, and all of it is as urgent.
	Full Reason = iota
	// Displaced: something more urgent came.
	Displaced
	// TooLong: its turn did not come in time.
	TooLong
	// TooMany: too many requests of this caller wait.
	TooMany
	// Gone: the caller has given up, or would have before the work is done.
	Gone
)

// Reasons are all of them.
var Reasons = [...]Reason{Full, Displaced, TooLong, TooMany, Gone}

func (r Reason) String() string {
	return [...]string{"full", "displaced", "too_long", "too_many", "gone"}[r]
}

// RefusedError says that a request was not admitted, and when to come again. It is
// not for callers that have gone, who get the error of their context.
type RefusedError struct {
	Class  Class
	Reason Reason
	After  time.Duration
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("overloaded (%s, %s): come again in %s", e.Class, e.Reason, e.After.Round(time.Millisecond))
}

// Queue admits requests. It is safe for concurrent use.
type Queue[K comparable] struct {
	cfg Config

	mu      sync.Mutex
	used    int
	waiting int
	lines   [len(Classes)]line[K]
	// arrivals numbers requests.
	arrivals uint64
	pace     pace
}

// New makes a Queue.
func New[K comparable](cfg Config) *Queue[K] {
	if cfg.Patience == 0 {
		cfg.Patience = patience
	}
	if cfg.AtATime == 0 {
		cfg.AtATime = 1
	}
	if cfg.Grace == 0 {
		cfg.Grace = grace
	}
	q := &Queue[K]{cfg: cfg}
	for _, c := range Classes {
		part := 1
		if c == Bulk {
			part = 8
		}
		q.lines[c] = newLine[K](max(1, cfg.Waiting/part), max(1, cfg.Requests/part))
	}
	return q
}

// Enter returns nil when it is the request's turn; Leave must follow. Otherwise the
// error is a *RefusedError, or that of ctx.
func (q *Queue[K]) Enter(ctx context.Context, r Request[K]) error {
	r.Weight = q.weight(r.Weight)
	q.mu.Lock()
	if !Ordered || q.waiting == 0 && q.used+r.Weight <= q.cfg.Capacity {
		q.used += r.Weight
		q.lines[r.Class].atOnce++
		q.mu.Unlock()
		return nil
	}
	w := &waiter[K]{Request: r, ctx: ctx, since: time.Now(), turn: make(chan error, 1)}
	reason, admitted := q.line(w)
	if admitted {
		q.admit()
	}
	after := q.after()
	q.mu.Unlock()
	if !admitted {
		return &RefusedError{r.Class, reason, after}
	}
	return q.wait(w)
}

// Leave ends what Enter began, with the weight that it began with.
func (q *Queue[K]) Leave(weight int) {
	weight = q.weight(weight)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used -= weight
	if q.waiting == 0 {
		q.pace.rest()
		return
	}
	q.pace.done(weight, time.Now())
	q.admit()
}

func (q *Queue[K]) weight(n int) int { return min(max(1, n), q.cfg.Capacity) }

func (q *Queue[K]) wait(w *waiter[K]) error {
	timer := time.NewTimer(q.cfg.Patience)
	defer timer.Stop()
	var err error
	select {
	case err := <-w.turn:
		return err
	case <-w.ctx.Done():
		err = w.ctx.Err()
	case <-timer.C:
		err = &RefusedError{Class: w.Class, Reason: TooLong}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !w.queued {
		// Its turn, or its refusal, came at the same moment.
		if turn := <-w.turn; turn != nil || w.ctx.Err() == nil {
			return turn
		}
		q.used -= w.Weight
		q.lines[w.Class].refused[Gone]++
		q.admit()
		return w.ctx.Err()
	}
	q.remove(w)
	q.admit() // it may have been too large for what was free
	l := &q.lines[w.Class]
	if refused, ok := err.(*RefusedError); ok {
		refused.After = q.after()
		l.refused[TooLong]++
	} else {
		l.refused[Gone]++
	}
	return err
}

// line has w wait, or says why it may not. What is less urgent may be displaced.
func (q *Queue[K]) line(w *waiter[K]) (Reason, bool) {
	l := &q.lines[w.Class]
	c := l.callers[w.Caller]
	if c.waiting >= q.cfg.PerCaller {
		l.refused[TooMany]++
		return TooMany, false
	}
	q.arrivals++
	w.key = key{round: l.roundOf(w.Caller, q.cfg.AtATime), arrival: q.arrivals}
	if w.Class == Renewal {
		life := w.Life
		if life <= 0 {
			// It has happened already. Those that can be saved go first.
			life = q.cfg.Patience
		}
		w.key.due = w.since.Add(life).UnixNano()
	}
	full := func() bool { return l.len() > 0 && (l.weight+w.Weight > l.maxWeight || l.len() >= l.maxRequests) }
	if full() && !w.key.before(l.worst().key) {
		l.refused[Full]++
		return Full, false
	}
	// What is left after this may be too much by less than w.
	for full() && w.key.before(l.worst().key) {
		worst := l.worst()
		q.remove(worst)
		l.refused[Displaced]++
		worst.turn <- &RefusedError{worst.Class, Displaced, q.after()}
	}
	l.push(w)
	q.waiting++
	return 0, true
}

func (q *Queue[K]) remove(w *waiter[K]) {
	q.lines[w.Class].remove(w)
	q.waiting--
}

// admit gives turns as long as there is room.
func (q *Queue[K]) admit() {
	if q.waiting == 0 {
		return
	}
	now := time.Now()
	for q.waiting > 0 {
		w := q.next(now)
		l := &q.lines[w.Class]
		deadline, bounded := w.ctx.Deadline()
		switch {
		case w.ctx.Err() != nil, bounded && deadline.Sub(now) < headroom:
			q.remove(w)
			l.refused[Gone]++
			w.turn <- cmp.Or(w.ctx.Err(), context.DeadlineExceeded)
			continue
		case q.used > 0 && q.used+w.Weight > q.cfg.Capacity:
			return
		}
		q.remove(w)
		l.round = max(l.round, w.key.round)
		l.observe(now.Sub(w.since))
		q.used += w.Weight
		q.charge(w, now)
		w.turn <- nil
	}
}

// next is the most urgent of the first class that has one, unless a later class has
// waited long and has its share to get.
func (q *Queue[K]) next(now time.Time) (next *waiter[K]) {
	for _, c := range Classes {
		l := &q.lines[c]
		if l.len() == 0 {
			continue
		}
		w := l.best()
		if next == nil || now.Sub(w.since) > q.cfg.Grace && l.credit >= w.Weight {
			next = w
		}
	}
	return next
}

// charge has w's turn count for the shares: what goes to a class earns those after
// it, where something has waited long, a part.
func (q *Queue[K]) charge(w *waiter[K], now time.Time) {
	q.lines[w.Class].credit = max(0, q.lines[w.Class].credit-w.Weight)
	for _, c := range Classes[w.Class+1:] {
		l := &q.lines[c]
		if l.len() == 0 || now.Sub(l.best().since) <= q.cfg.Grace {
			l.credit, l.earned = 0, 0
			continue
		}
		l.earned += w.Weight
		l.credit = min(l.credit+l.earned/(share-1), q.cfg.Capacity)
		l.earned %= share - 1
	}
}

// after is when who is refused now should come again: when what waits is done.
func (q *Queue[K]) after() time.Duration {
	if q.pace.perSecond <= 0 {
		return time.Second
	}
	weight := 0
	for c := range q.lines {
		weight += q.lines[c].weight
	}
	seconds := min(float64(weight)/q.pace.perSecond, q.cfg.Patience.Seconds())
	return max(time.Duration(seconds*float64(time.Second)), leastAfter)
}

// pace is how much is done in a second while something waits.
type pace struct {
	perSecond float64
	since     time.Time
	units     int
}

// paceWindow is over how long the pace is taken.
const paceWindow = 100 * time.Millisecond

func (p *pace) rest() { p.since, p.units = time.Time{}, 0 }

func (p *pace) done(units int, now time.Time) {
	if p.since.IsZero() {
		p.since = now
		return
	}
	p.units += units
	took := now.Sub(p.since)
	if took < paceWindow {
		return
	}
	rate := float64(p.units) / took.Seconds()
	if p.perSecond > 0 {
		rate = 0.7*p.perSecond + 0.3*rate
	}
	p.perSecond, p.since, p.units = max(rate, 1e-3), now, 0
}
