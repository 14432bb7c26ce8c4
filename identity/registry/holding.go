package registry

import (
	"crypto/sha256"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/held"
)

// TagSize is the size of an entry's tag, in bytes.
const TagSize = 16

// Tag stands for everything that the entry says. Its ID, revision and time would
// not do: after a backup was restored, the same revision comes a second time.
func (e *Entry) Tag() [TagSize]byte {
	digest := e.Digest()
	return [TagSize]byte(digest[:])
}

// Holding is what an agent may sign for, in short.
type Holding struct {
	// Digest is of Authorized, by ID and Tag (package held).
	Digest [sha256.Size]byte
	// FederatesWith are the names of the trust domains that its entries federate
	// with, sorted.
	FederatesWith []string

	// It holds from the time it was made until the first of its entries expires,
	// zero for never.
	from, until time.Time
}

// HoldingOf sums up a list that Authorized made.
func HoldingOf(entries []*Entry) *Holding {
	h := &Holding{}
	sum := held.NewSum()
	for _, e := range entries {
		tag := e.Tag()
		sum.Add(e.ID, tag[:])
		h.FederatesWith = append(h.FederatesWith, e.FederatesWith...)
		if !e.ExpiresAt.IsZero() && (h.until.IsZero() || e.ExpiresAt.Before(h.until)) {
			h.until = e.ExpiresAt
		}
	}
	h.Digest = sum.Digest()
	slices.Sort(h.FederatesWith)
	h.FederatesWith = slices.Clip(slices.Compact(h.FederatesWith))
	return h
}

func (h *Holding) holds(now time.Time) bool {
	return !now.Before(h.from) && (h.until.IsZero() || now.Before(h.until))
}

// Holding is Authorized in short, and costs a look into a map where it was asked
// for before and nothing of it has changed since.
func (x *Index) Holding(agent spiffeid.ID, now time.Time) *Holding {
	x.mu.RLock()
	known, changes := x.holdings[agent], x.changes
	x.mu.RUnlock()
	if known != nil && known.holds(now) {
		return known
	}
	h := HoldingOf(x.Authorized(agent, now))
	h.from = now
	x.mu.Lock()
	defer x.mu.Unlock()
	// What changed meanwhile may be in it or not. An agent that is not known may
	// not make this grow.
	if x.changes == changes && x.agents[agent] != nil {
		x.holdings[agent] = h
	}
	return h
}

// forget drops the holdings that a change touches.
func (x *Index) forget(touched *ancestry) {
	if len(touched.ids) == 0 && len(touched.nodes) == 0 {
		return
	}
	x.changes++
	for _, id := range touched.ids {
		delete(x.holdings, id)
	}
	if len(touched.nodes) == 0 {
		return
	}
	for id := range x.holdings {
		agent := x.agents[id]
		if agent == nil || slices.ContainsFunc(touched.nodes, func(e *Entry) bool { return agent.Has(e.Selectors) }) {
			delete(x.holdings, id)
		}
	}
}

// sameRights tells whether the agent, as far as its entries go, is what it was:
// it was renewed, say.
func sameRights(a, b *Agent) bool {
	return a != nil && b != nil && a.Banned == b.Banned &&
		slices.Equal(a.Selectors, b.Selectors)
}
