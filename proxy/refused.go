package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/policy"
)

// Anybody who reaches the port can fail a handshake. So many of those per
// second are recorded one by one; the others are counted, and the next record
// carries their number. Otherwise a stranger could fill the spool and have
// everybody else's requests denied.
const (
	refusalsPerSecond = 50
	refusalsBurst     = 200
)

// refusals records refused connections at a bounded rate.
type refusals struct {
	enforcer *pep.Enforcer
	now      func() time.Time

	mu         sync.Mutex
	tokens     float64
	last       time.Time
	suppressed uint64
}

func newRefusals(e *pep.Enforcer) *refusals {
	return &refusals{enforcer: e, now: time.Now, tokens: refusalsBurst}
}

func (r *refusals) record(in *policy.Input, reason string) {
	more, ok := r.take()
	if !ok {
		return
	}
	if more > 0 {
		reason = fmt.Sprintf("%s (and %d more connections were refused that are not recorded one by one)", reason, more)
	}
	if res := r.enforcer.Refuse(context.Background(), in, pep.Refusal{Reason: reason}); !res.Recorded {
		r.mu.Lock()
		r.suppressed += more + 1
		r.mu.Unlock()
	}
}

// take asks for a place in the record. more is the number of refusals that got
// none since the last one that did.
func (r *refusals) take() (more uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if !r.last.IsZero() {
		r.tokens = min(refusalsBurst, r.tokens+refusalsPerSecond*now.Sub(r.last).Seconds())
	}
	r.last = now
	if r.tokens < 1 {
		r.suppressed++
		return 0, false
	}
	r.tokens--
	more, r.suppressed = r.suppressed, 0
	return more, true
}

// flush records what is left to be counted.
func (r *refusals) flush() {
	r.mu.Lock()
	left := r.suppressed
	r.suppressed = 0
	r.mu.Unlock()
	if left > 0 {
		in := policy.Input{Direction: policy.Inbound, Layer: policy.LayerConnection, TokenStatus: policy.TokenAbsent}
		r.enforcer.Refuse(context.Background(), &in, pep.Refusal{Reason: fmt.Sprintf("%d connections were refused that are not recorded one by one", left)})
	}
}
