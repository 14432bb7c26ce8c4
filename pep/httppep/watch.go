package httppep

import (
	"context"
	"slices"

	"github.com/writ-dev/writ/policy"
)

// openCall is what is needed of a call to decide it again. It shares nothing
// that is reused when the call ends.
type openCall struct {
	in     policy.Input
	cancel context.CancelCauseFunc
}

func (c *call) copy() openCall {
	o := openCall{in: c.in, cancel: c.cancel}
	o.in.Request.Segments = slices.Clone(c.in.Request.Segments)
	return o
}

func (h *Handler) enter(c *call) {
	h.mu.Lock()
	h.open[c] = struct{}{}
	h.mu.Unlock()
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
// into force, and ends those that it does not allow. It returns when ctx ends.
// No revision since New is missed, however late Watch begins.
func (h *Handler) Watch(ctx context.Context) {
	changed := h.since
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		// Taken before the open requests are looked at, so that a revision that
		// arrives meanwhile brings another round.
		changed = h.cfg.Enforcer.Changed()
		h.mu.Lock()
		open := make([]openCall, 0, len(h.open))
		for c := range h.open {
			open = append(open, c.copy())
		}
		h.mu.Unlock()
		h.recheck(ctx, open)
	}
}

func (h *Handler) recheck(ctx context.Context, open []openCall) {
	for i := range open {
		if res := h.cfg.Enforcer.Recheck(ctx, &open[i].in); !res.Allow {
			open[i].cancel(ErrRightEnded)
		}
	}
}
