package httppep

import (
	"context"
	"slices"
	"time"

	"github.com/writ-dev/writ/policy"
)

// Bounds of the wait for the next end of a decision. The wall clock may be set
// while Watch waits, so it looks again from time to time.
const (
	minWait = 100 * time.Millisecond
	maxWait = time.Minute
)

// openCall is what is needed of a call to decide it again. It shares nothing
// that is reused when the call ends.
type openCall struct {
	in     policy.Input
	cancel context.CancelCauseFunc
	call   *call
	number uint64
}

// copyLocked needs h.mu.
func (h *Handler) copyLocked(c *call) openCall {
	o := openCall{in: c.in, cancel: c.cancel, call: c, number: h.open[c]}
	o.in.Request.Segments = slices.Clone(c.in.Request.Segments)
	return o
}

func (h *Handler) copy(c *call) openCall {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.copyLocked(c)
}

func (h *Handler) enter(c *call) {
	h.mu.Lock()
	h.last++
	h.open[c] = h.last
	ends := !c.expires.IsZero()
	h.mu.Unlock()
	if ends {
		h.wakeWatch()
	}
}

func (h *Handler) wakeWatch() {
	select {
	case h.expiring <- struct{}{}:
	default:
	}
}

func (h *Handler) leave(c *call) {
	h.mu.Lock()
	delete(h.open, c)
	h.mu.Unlock()
}

// Open is the number of requests that were allowed and have not ended.
func (h *Handler) Open() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.open)
}

// Watch decides every open request again whenever a new policy revision comes
// into force, and each when its decision expires, and ends those that are not
// allowed any more. It returns when ctx ends. No revision since New is missed,
// however late Watch begins.
func (h *Handler) Watch(ctx context.Context) {
	changed := h.since
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	for {
		var expiry <-chan time.Time
		if wait, ok := h.untilExpiry(); ok {
			timer.Reset(wait)
			expiry = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-h.expiring:
		case <-expiry:
			now := h.cfg.Enforcer.Now()
			h.recheck(ctx, h.collect(func(c *call) bool { return c.expired(now) }))
		case <-changed:
			// Taken before the open requests are looked at, so that a revision that
			// arrives meanwhile brings another round.
			changed = h.cfg.Enforcer.Changed()
			h.recheck(ctx, h.collect(func(*call) bool { return true }))
		}
	}
}

func (c *call) expired(now time.Time) bool { return !c.expires.IsZero() && !now.Before(c.expires) }

// collect copies the open calls that match.
func (h *Handler) collect(match func(*call) bool) []openCall {
	h.mu.Lock()
	defer h.mu.Unlock()
	var open []openCall
	for c := range h.open {
		if match(c) {
			open = append(open, h.copyLocked(c))
		}
	}
	return open
}

// untilExpiry is the time until the first decision on an open call ends.
func (h *Handler) untilExpiry() (wait time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var first time.Time
	for c := range h.open {
		if !c.expires.IsZero() && (first.IsZero() || c.expires.Before(first)) {
			first = c.expires
		}
	}
	if first.IsZero() {
		return 0, false
	}
	return min(max(first.Sub(h.cfg.Enforcer.Now()), minWait), maxWait), true
}

func (h *Handler) recheck(ctx context.Context, open []openCall) {
	for i := range open {
		o := &open[i]
		res := h.cfg.Enforcer.Recheck(ctx, &o.in)
		if !res.Allow {
			o.cancel(ErrRightEnded)
		}
		h.mu.Lock()
		if number, ok := h.open[o.call]; ok && number == o.number {
			o.call.expires = res.Expires
		}
		h.mu.Unlock()
		if !res.Expires.IsZero() {
			h.wakeWatch()
		}
	}
}
