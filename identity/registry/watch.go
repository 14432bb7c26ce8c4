package registry

import (
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Watch is told when what one agent may do has changed.
type Watch struct {
	x     *Index
	agent spiffeid.ID
	c     chan struct{}
}

// Watch begins telling of changes that touch the agent. Close it.
func (x *Index) Watch(agent spiffeid.ID) *Watch {
	w := &Watch{x: x, agent: agent, c: make(chan struct{}, 1)}
	x.mu.Lock()
	defer x.mu.Unlock()
	put(x.watches, agent, w, struct{}{})
	return w
}

// C delivers after each change of the agent or of its authorized entries.
// Deliveries coalesce.
func (w *Watch) C() <-chan struct{} { return w.c }

// Close ends the watch.
func (w *Watch) Close() {
	w.x.mu.Lock()
	defer w.x.mu.Unlock()
	drop(w.x.watches, w.agent, w)
}

// Watched reports whether the agent is being told of changes: it is connected.
func (x *Index) Watched(agent spiffeid.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.watches[agent]) > 0
}

// Alias is the name of the node that the agent runs on, by which entries
// outlive it; the zero ID when it has none.
func (x *Index) Alias(agent spiffeid.ID) spiffeid.ID {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.byParent[agent] {
		if e.IsAlias() {
			return e.SPIFFEID
		}
	}
	return spiffeid.ID{}
}

// ancestry is what lies above changed entries: IDs that may be agents, and
// entries that name nodes by selectors.
type ancestry struct {
	seen  map[spiffeid.ID]bool
	ids   []spiffeid.ID
	nodes []*Entry
}

func (x *Index) ascend(e *Entry, into *ancestry) {
	if isIssuer(e.ParentID) {
		into.nodes = append(into.nodes, e)
		return
	}
	x.ascendFrom(e.ParentID, into)
}

func (x *Index) ascendFrom(parent spiffeid.ID, into *ancestry) {
	if into.seen[parent] {
		return
	}
	into.seen[parent] = true
	into.ids = append(into.ids, parent)
	for _, above := range x.bySPIFFE[parent] {
		x.ascend(above, into)
	}
}

func (x *Index) tell(touched *ancestry) {
	for _, id := range touched.ids {
		for w := range x.watches[id] {
			w.signal()
		}
	}
	if len(touched.nodes) == 0 {
		return
	}
	for id, ws := range x.watches {
		agent := x.agents[id]
		if agent == nil || !slices.ContainsFunc(touched.nodes, func(e *Entry) bool { return agent.Has(e.Selectors) }) {
			continue
		}
		for w := range ws {
			w.signal()
		}
	}
}

func (w *Watch) signal() {
	select {
	case w.c <- struct{}{}:
	default: // one is waiting already
	}
}
