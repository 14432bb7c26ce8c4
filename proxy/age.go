package proxy

import (
	"math/rand/v2"
	"sync"
	"time"
)

// idleGrace is how long an aged connection waits for a request whose response
// can say that the connection ends, before it is closed without a word.
const idleGrace = 5 * time.Second

// connAge ends a connection between requests once it is old.
type connAge struct {
	mu    sync.Mutex
	open  int
	aged  bool
	timer *time.Timer
	close func()
}

// start begins to count, to the limit give or take a tenth of it. Stop ends
// the count.
func (a *connAge) start(limit time.Duration, closeConn func()) (stop func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.close = closeConn
	timer := time.AfterFunc(limit+time.Duration((rand.Float64()-0.5)*0.2*float64(limit)), a.tick)
	a.timer = timer
	return func() { timer.Stop() }
}

// tick is called at the limit, and again idleGrace after each time that nothing
// was open.
func (a *connAge) tick() {
	a.mu.Lock()
	end := a.aged && a.open == 0
	if !a.aged {
		a.aged = true
		a.timer.Reset(idleGrace)
	}
	a.mu.Unlock()
	if end {
		a.close()
	}
}

// enter begins a request and reports whether it is the last on the connection.
func (a *connAge) enter() (last bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open++
	return a.aged
}

// leave ends a request.
func (a *connAge) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open--; a.open == 0 && a.aged {
		a.timer.Reset(idleGrace)
	}
}
