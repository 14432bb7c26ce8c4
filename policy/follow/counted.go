package follow

import (
	"context"
	"sync/atomic"

	"github.com/writ-dev/writ/policy"
)

// counted counts what is decided under one revision, for reports: a rollout is
// halted when more is denied under it than before.
type counted struct {
	policy.Decider
	decisions, denied atomic.Uint64
}

// Decide implements policy.Decider.
func (c *counted) Decide(ctx context.Context, in *policy.Input, out *policy.Decision) {
	c.Decider.Decide(ctx, in, out)
	// In this order, so that a report never has more denied than decided.
	c.decisions.Add(1)
	if out.Verdict != policy.Allow {
		c.denied.Add(1)
	}
}

// counts are read the other way around.
func (c *counted) counts() (decisions, denied uint64) {
	denied = c.denied.Load()
	return c.decisions.Load(), denied
}
