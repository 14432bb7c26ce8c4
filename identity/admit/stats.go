package admit

import "time"

// WaitBounds are the upper bounds of the classes of waits in Stats.
var WaitBounds = [...]time.Duration{
	time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second,
}

// Stats is a look at one class.
type Stats struct {
	// Waiting requests, and their weight.
	Waiting, Weight int
	// AtOnce are the requests that did not have to wait.
	AtOnce uint64
	// Waited are those that had to and were admitted, by the first of WaitBounds
	// that their wait did not exceed, the rest last; WaitSum is their time together.
	Waited  [len(WaitBounds) + 1]uint64
	WaitSum time.Duration
	Refused [len(Reasons)]uint64
}

// Stats returns the present state, by class.
func (q *Queue[K]) Stats() (all [len(Classes)]Stats) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.lines {
		l := &q.lines[c]
		all[c] = Stats{Waiting: l.len(), Weight: l.weight, AtOnce: l.atOnce, Waited: l.waited, WaitSum: l.waitSum, Refused: l.refused}
	}
	return all
}

func (l *line[K]) observe(wait time.Duration) {
	n := 0
	for n < len(WaitBounds) && wait > WaitBounds[n] {
		n++
	}
	l.waited[n]++
	l.waitSum += wait
}
