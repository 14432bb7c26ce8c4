package registry

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Change is what one transaction did. Old is nil for what was made, New for
// what was deleted.
type Change struct {
	Revision uint64
	Entries  []EntryChange
	Agents   []AgentChange

	Bundles       []BundleChange
	Relationships []RelationshipChange
	Templates     []TemplateChange
}

// EntryChange is one entry before and after.
type EntryChange struct{ Old, New *Entry }

// AgentChange is one agent before and after.
type AgentChange struct{ Old, New *Agent }

// Index answers questions about entries and agents from memory. Authorization
// of one entry costs a walk from the entry up to the agent; the list of an
// agent costs what is in the list. It is safe for concurrent use.
type Index struct {
	mu       sync.RWMutex
	revision uint64
	entries  map[string]*Entry
	byParent map[spiffeid.ID]map[string]*Entry
	// bySPIFFE has a list where byParent has a map: most IDs have one entry, and
	// 100,000 maps of one are 30 MB.
	bySPIFFE map[spiffeid.ID][]*Entry
	agents   map[spiffeid.ID]*Agent
	watches  map[spiffeid.ID]map[*Watch]struct{}
	changed  chan struct{}

	federation federation
	// holdings are those that were asked for, by agent; changes counts what may
	// make others of them.
	holdings  map[spiffeid.ID]*Holding
	changes   uint64
	templates map[string]*Template
	// Sorted copies, made when asked for and dropped at the next change.
	sorted       []*Entry
	sortedAgents []*Agent
}

// NewIndex makes an Index of a store's content.
func NewIndex(revision uint64, entries []*Entry, agents []*Agent) *Index {
	x := &Index{
		revision: revision,
		entries:  make(map[string]*Entry, len(entries)),
		byParent: map[spiffeid.ID]map[string]*Entry{},
		bySPIFFE: map[spiffeid.ID][]*Entry{},
		agents:   make(map[spiffeid.ID]*Agent, len(agents)),
		watches:  map[spiffeid.ID]map[*Watch]struct{}{},
		changed:  make(chan struct{}),

		federation: newFederation(),
		holdings:   map[spiffeid.ID]*Holding{},
		templates:  map[string]*Template{},
	}
	for _, e := range entries {
		x.add(e)
	}
	for _, a := range agents {
		x.agents[a.ID] = a
	}
	return x
}

// Revision is the registry's revision; the channel is closed when it grows.
func (x *Index) Revision() (uint64, <-chan struct{}) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.revision, x.changed
}

// Apply takes over a committed change and tells whom it touches.
func (x *Index) Apply(c Change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	touched := ancestry{seen: map[spiffeid.ID]bool{}}
	// Who had an old entry is found in the old tree, who gets a new one in the
	// new tree. An ID need be climbed in one of them only: where they differ
	// above it, they differ by an entry that is climbed from itself. So templates,
	// which are no part of the tree, are climbed from in the new one.
	for _, e := range c.Entries {
		if e.Old != nil {
			x.ascend(e.Old, &touched)
		}
	}
	for _, e := range c.Entries {
		if e.Old != nil {
			x.remove(e.Old)
		}
		if e.New != nil {
			x.add(e.New)
		}
	}
	for _, e := range c.Entries {
		if e.New != nil {
			x.ascend(e.New, &touched)
		}
	}
	x.applyTemplates(&c, &touched)
	x.applyFederation(&c, &touched)
	var renewed []spiffeid.ID
	for _, a := range c.Agents {
		switch {
		case a.New != nil:
			if sameRights(x.agents[a.New.ID], a.New) {
				renewed = append(renewed, a.New.ID)
			} else {
				touched.ids = append(touched.ids, a.New.ID)
			}
			x.agents[a.New.ID] = a.New
		case a.Old != nil:
			delete(x.agents, a.Old.ID)
			touched.ids = append(touched.ids, a.Old.ID)
		}
	}
	x.revision = c.Revision
	x.sorted, x.sortedAgents = nil, nil
	x.forget(&touched)
	touched.ids = append(touched.ids, renewed...)
	x.tell(&touched)
	close(x.changed)
	x.changed = make(chan struct{})
}

// Reload replaces the whole content, and tells everyone.
func (x *Index) Reload(revision uint64, entries []*Entry, agents []*Agent) {
	fresh := NewIndex(revision, entries, agents)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.revision, x.entries, x.byParent, x.bySPIFFE, x.agents = fresh.revision, fresh.entries, fresh.byParent, fresh.bySPIFFE, fresh.agents
	x.federation.entries = fresh.federation.entries
	x.holdings = fresh.holdings
	x.changes++
	x.sorted, x.sortedAgents = nil, nil
	for _, ws := range x.watches {
		for w := range ws {
			w.signal()
		}
	}
	close(x.changed)
	x.changed = make(chan struct{})
}

// Entry returns the entry of that ID, or nil.
func (x *Index) Entry(id string) *Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.entries[id]
}

// Agent returns the agent of that ID, or nil.
func (x *Index) Agent(id spiffeid.ID) *Agent {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.agents[id]
}

// Entries returns all entries sorted by ID. The slice is shared.
func (x *Index) Entries() []*Entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.sorted == nil {
		x.sorted = sortedEntries(x.entries)
	}
	return x.sorted
}

// Agents returns all agents sorted by ID. The slice is shared.
func (x *Index) Agents() []*Agent {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.sortedAgents == nil {
		x.sortedAgents = slices.SortedFunc(maps.Values(x.agents), func(a, b *Agent) int {
			return cmp.Compare(a.ID.String(), b.ID.String())
		})
	}
	return x.sortedAgents
}

// IsAdmin says whether an entry makes the SPIFFE ID an administrator.
func (x *Index) IsAdmin(id spiffeid.ID, now time.Time) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.bySPIFFE[id] {
		if e.Admin && !e.Expired(now) {
			return true
		}
	}
	return false
}

// Downstream returns the entry, not expired, that makes the SPIFFE ID an issuer
// downstream of this one; nil if there is none.
func (x *Index) Downstream(id spiffeid.ID, now time.Time) *Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range sortedByID(x.bySPIFFE[id]) {
		if e.Downstream && !e.Expired(now) {
			return e
		}
	}
	return nil
}

// Children returns the entries that hang directly on parent.
func (x *Index) Children(parent spiffeid.ID) []*Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return sortedEntries(x.byParent[parent])
}

// Authorized returns all entries that the agent may sign for, sorted by ID:
// those below it, those that name it by its selectors, and those below these.
func (x *Index) Authorized(agent spiffeid.ID, now time.Time) []*Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	a := x.agents[agent]
	if a == nil || a.Banned {
		return nil
	}
	found := map[string]*Entry{}
	x.descend(agent, now, found, map[spiffeid.ID]bool{})
	seen := map[spiffeid.ID]bool{agent: true}
	for _, e := range x.byParent[issuerOf(agent)] {
		if !e.Expired(now) && a.Has(e.Selectors) {
			found[e.ID] = e
			x.descend(e.SPIFFEID, now, found, seen)
		}
	}
	return sortedEntries(found)
}

func (x *Index) descend(parent spiffeid.ID, now time.Time, found map[string]*Entry, seen map[spiffeid.ID]bool) {
	// The entries below the issuer name nodes by selectors and are for no one
	// by descent alone.
	if seen[parent] || isIssuer(parent) {
		return
	}
	seen[parent] = true
	for _, e := range x.byParent[parent] {
		if !e.Expired(now) {
			found[e.ID] = e
			x.descend(e.SPIFFEID, now, found, seen)
		}
	}
}

// Lookup returns the entry of that ID if the agent may sign for it, nil
// otherwise. It is Authorized for one entry, without making the list.
func (x *Index) Lookup(agent spiffeid.ID, entryID string, now time.Time) *Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	a, e := x.agents[agent], x.entries[entryID]
	if a == nil || a.Banned || e == nil {
		return nil
	}
	if climbed := make([]spiffeid.ID, 0, 4); !x.reaches(e, a, now, &climbed) {
		return nil
	}
	return e
}

// reaches walks from e up to the agent. Each ID on the way is climbed once, so
// that neither cycles nor diamonds in the tree cost more than its size.
func (x *Index) reaches(e *Entry, a *Agent, now time.Time, climbed *[]spiffeid.ID) bool {
	switch {
	case e.Expired(now):
		return false
	case isIssuer(e.ParentID):
		return a.Has(e.Selectors)
	}
	return x.climbs(e.ParentID, a, now, climbed)
}

// climbs walks up from an ID to the agent.
func (x *Index) climbs(parent spiffeid.ID, a *Agent, now time.Time, climbed *[]spiffeid.ID) bool {
	if parent == a.ID {
		return true
	}
	above := x.bySPIFFE[parent]
	if len(above) == 0 || slices.Contains(*climbed, parent) {
		return false
	}
	*climbed = append(*climbed, parent)
	for _, up := range above {
		if x.reaches(up, a, now, climbed) {
			return true
		}
	}
	return false
}

// FindBelow returns an entry below id, at any depth, that is wanted; nil if there
// is none. Expired entries count: their time can be changed.
func (x *Index) FindBelow(id spiffeid.ID, wanted func(*Entry) bool) *Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	seen := map[spiffeid.ID]bool{id: true}
	for left := []spiffeid.ID{id}; len(left) > 0; {
		parent := left[len(left)-1]
		left = left[:len(left)-1]
		for _, e := range x.byParent[parent] {
			if wanted(e) {
				return e
			}
			if !seen[e.SPIFFEID] {
				seen[e.SPIFFEID] = true
				left = append(left, e.SPIFFEID)
			}
		}
	}
	return nil
}

// NextExpiry is when the next entry expires, or has an agent been expired for as
// long as agents are kept; zero if nothing does.
func (x *Index) NextExpiry(agentsKept time.Duration) time.Time {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var next time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, e := range x.entries {
		earlier(e.ExpiresAt)
	}
	for _, a := range x.agents {
		if !a.Banned {
			earlier(a.LastExpiry().Add(agentsKept))
		}
	}
	return next
}

func (x *Index) add(e *Entry) {
	x.entries[e.ID] = e
	put(x.byParent, e.ParentID, e.ID, e)
	x.bySPIFFE[e.SPIFFEID] = append(x.bySPIFFE[e.SPIFFEID], e)
	for _, name := range e.FederatesWith {
		put(x.federation.entries, name, e.ID, e)
	}
}

func (x *Index) remove(e *Entry) {
	delete(x.entries, e.ID)
	drop(x.byParent, e.ParentID, e.ID)
	rest := slices.DeleteFunc(x.bySPIFFE[e.SPIFFEID], func(o *Entry) bool { return o.ID == e.ID })
	if x.bySPIFFE[e.SPIFFEID] = rest; len(rest) == 0 {
		delete(x.bySPIFFE, e.SPIFFEID)
	}
	for _, name := range e.FederatesWith {
		drop(x.federation.entries, name, e.ID)
	}
}

func put[K, L comparable, V any](m map[K]map[L]V, k K, l L, v V) {
	inner := m[k]
	if inner == nil {
		inner = map[L]V{}
		m[k] = inner
	}
	inner[l] = v
}

func drop[K, L comparable, V any](m map[K]map[L]V, k K, l L) {
	delete(m[k], l)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

func sortedEntries(m map[string]*Entry) []*Entry {
	return slices.SortedFunc(maps.Values(m), func(a, b *Entry) int { return cmp.Compare(a.ID, b.ID) })
}

func sortedByID(list []*Entry) []*Entry {
	return slices.SortedFunc(slices.Values(list), func(a, b *Entry) int { return cmp.Compare(a.ID, b.ID) })
}

const issuerPath = "/spire/server"

func isIssuer(id spiffeid.ID) bool { return id.Path() == issuerPath }

func issuerOf(id spiffeid.ID) spiffeid.ID {
	issuer, err := spiffeid.FromPath(id.TrustDomain(), issuerPath)
	if err != nil {
		return spiffeid.ID{} // nothing hangs on the zero ID
	}
	return issuer
}
