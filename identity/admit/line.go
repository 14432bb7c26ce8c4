package admit

import (
	"container/heap"
	"context"
	"time"
)

// waiter is a request that waits.
type waiter[K comparable] struct {
	Request[K]
	ctx   context.Context
	since time.Time
	key   key
	// turn gets nil when it is its turn, or why not.
	turn chan error
	// queued tells that it still waits; at says where in the two heaps.
	queued bool
	at     [2]int
}

// key is the order in a line: by rounds, in each of which a caller has its turns;
// then by when it is due, in nanoseconds of Unix time; then by arrival.
type key struct {
	round   uint64
	due     int64
	arrival uint64
}

func (k key) before(other key) bool {
	switch {
	case k.round != other.round:
		return k.round < other.round
	case k.due != other.due:
		return k.due < other.due
	}
	return k.arrival < other.arrival
}

// line is what waits of one class, open at both ends: the most urgent goes out at
// the front, the least urgent at the back when there is no more room.
type line[K comparable] struct {
	maxWeight, maxRequests int

	ends    [2]end[K]
	weight  int
	callers map[K]caller
	// round is the latest that had a turn. Who has nothing waiting begins there.
	round uint64
	// credit is what this class may have of the turns of those before it, and
	// earned what is not enough for another unit of it.
	credit, earned int

	atOnce  uint64
	waited  [len(WaitBounds) + 1]uint64
	waitSum time.Duration
	refused [len(Reasons)]uint64
}

// caller is what one has in a line: how much, the round of its last, and how much
// came for that.
type caller struct {
	waiting int
	round   uint64
	inRound int
}

// roundOf is the round in which the next request of a caller has its turn.
func (l *line[K]) roundOf(who K, atATime int) uint64 {
	c := l.callers[who]
	switch {
	case c.waiting == 0:
		return l.round
	case c.inRound < atATime:
		return c.round
	}
	return c.round + 1
}

func newLine[K comparable](weight, requests int) line[K] {
	return line[K]{maxWeight: weight, maxRequests: requests, ends: [2]end[K]{{side: front}, {side: back}}, callers: map[K]caller{}}
}

func (l *line[K]) len() int          { return len(l.ends[front].list) }
func (l *line[K]) best() *waiter[K]  { return l.ends[front].list[0] }
func (l *line[K]) worst() *waiter[K] { return l.ends[back].list[0] }

func (l *line[K]) push(w *waiter[K]) {
	for n := range l.ends {
		heap.Push(&l.ends[n], w)
	}
	w.queued = true
	l.weight += w.Weight
	c := l.callers[w.Caller]
	if c.waiting == 0 || c.round != w.key.round {
		c.round, c.inRound = w.key.round, 0
	}
	c.waiting++
	c.inRound++
	l.callers[w.Caller] = c
}

func (l *line[K]) remove(w *waiter[K]) {
	for n := range l.ends {
		heap.Remove(&l.ends[n], w.at[n])
	}
	w.queued = false
	l.weight -= w.Weight
	c := l.callers[w.Caller]
	if c.waiting--; c.waiting == 0 {
		delete(l.callers, w.Caller)
	} else {
		l.callers[w.Caller] = c
	}
}

const (
	front = 0
	back  = 1
)

// end is a heap.Interface over what waits, from one side.
type end[K comparable] struct {
	side int
	list []*waiter[K]
}

func (e *end[K]) Len() int { return len(e.list) }

func (e *end[K]) Less(i, j int) bool {
	if e.side == back {
		i, j = j, i
	}
	return e.list[i].key.before(e.list[j].key)
}

func (e *end[K]) Swap(i, j int) {
	e.list[i], e.list[j] = e.list[j], e.list[i]
	e.list[i].at[e.side], e.list[j].at[e.side] = i, j
}

func (e *end[K]) Push(x any) {
	w := x.(*waiter[K])
	w.at[e.side] = len(e.list)
	e.list = append(e.list, w)
}

func (e *end[K]) Pop() any {
	last := len(e.list) - 1
	w := e.list[last]
	e.list[last] = nil
	e.list = e.list[:last]
	return w
}
