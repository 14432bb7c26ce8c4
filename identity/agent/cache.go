package agent

import (
	"cmp"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/workload"
)

// entry is what the agent needs of a registration entry.
type entry struct {
	id            string
	spiffeID      spiffeid.ID
	selectors     []string // type:value
	federatesWith []spiffeid.TrustDomain
	hint          string
	revision      int64
	createdAt     int64
	// tag is the issuer's for the content, "" where it came in SPIRE's way.
	tag string
	// served tells whether workloads can have it. Aliases of the node and
	// entries for SVID stores are known, but nobody's.
	served bool
}

// record is an entry with its SVID.
type record struct {
	entry
	identity            *workload.Identity // with the chain and key of the SVID, if any
	serial              *big.Int           // of the SVID, as are the times
	notBefore, notAfter time.Time
	// revoked tells that the SVID is: it is signed anew, or withdrawn.
	revoked bool
	due     time.Time // when to sign; zero is now
	backoff backoff
}

// cache holds what workloads can have.
type cache struct {
	mu        sync.Mutex
	synced    bool
	records   map[string]*record
	bundle    *workload.Bundle
	federated map[spiffeid.TrustDomain]*workload.Bundle

	// index holds each served record under the rarest of its selectors.
	index map[string][]*record
	// kinds are the types of selector that occur, or did, as unix:sha256. They
	// are not forgotten: what is attested should only grow.
	kinds map[string]bool

	crls crls
	// revoked is what is revoked, nil for nothing.
	revoked *revocation.List

	changed chan struct{} // closed at the next change
	// expiry wakes everybody when the next SVID expires unrenewed.
	expiry  *time.Timer
	stopped bool
}

func newCache() *cache {
	return &cache{records: map[string]*record{}, kinds: map[string]bool{}, federated: map[spiffeid.TrustDomain]*workload.Bundle{}, changed: make(chan struct{})}
}

// Lookup implements workload.Source.
func (a *Agent) Lookup(selectors []string) (workload.Grant, <-chan struct{}, error) {
	return a.cache.lookup(selectors, time.Now())
}

// Asked tells whether any entry has, or had, a selector of this kind, as in
// unix:sha256.
func (a *Agent) Asked(kind string) bool {
	a.cache.mu.Lock()
	defer a.cache.mu.Unlock()
	return a.cache.kinds[kind]
}

func (c *cache) lookup(selectors []string, now time.Time) (workload.Grant, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.synced || c.bundle == nil {
		return workload.Grant{}, nil, workload.ErrStarting
	}
	g := workload.Grant{Bundle: c.bundle, CRLs: c.crls.current(now), Asked: len(c.kinds)}
	hints := map[string]bool{"": true}
	federated := map[spiffeid.TrustDomain]bool{}
	for _, r := range c.match(selectors) {
		id := r.identity
		// Of two identities with one hint the older keeps it.
		if shared := hints[id.Hint] && id.Hint != ""; shared || id.Chain != nil && !now.Before(r.notAfter) {
			copied := *id
			if shared {
				copied.Hint = ""
			}
			if !now.Before(r.notAfter) {
				copied.Chain, copied.Key = nil, nil
			}
			id = &copied
		}
		hints[id.Hint] = true
		g.Identities = append(g.Identities, id)
		for _, td := range r.federatesWith {
			if b := c.federated[td]; b != nil && !federated[td] {
				federated[td] = true
				g.Federated = append(g.Federated, b)
			}
		}
	}
	return g, c.changed, nil
}

// match returns the records all of whose selectors are among the given, oldest
// first: the first is a workload's default identity, and stays that when others
// are added.
func (c *cache) match(selectors []string) []*record {
	have := make(map[string]bool, len(selectors))
	for _, s := range selectors {
		have[s] = true
	}
	var found []*record
	for s := range have {
		for _, r := range c.index[s] {
			if !slices.ContainsFunc(r.selectors, func(s string) bool { return !have[s] }) {
				found = append(found, r)
			}
		}
	}
	slices.SortFunc(found, func(x, y *record) int {
		return cmp.Or(cmp.Compare(x.createdAt, y.createdAt), cmp.Compare(x.id, y.id))
	})
	return found
}

// apply makes entries the whole of what the node is entitled to. What is in
// force already keeps its SVID; what has changed is signed again.
func (c *cache) apply(entries []entry) (gone []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[string]*record, len(entries))
	changed := !c.synced
	for _, e := range entries {
		old := c.records[e.id]
		if old != nil && old.same(&e) {
			if e.tag != "" {
				old.tag = e.tag
			}
			next[e.id] = old
			continue
		}
		changed = true
		r := &record{entry: e, identity: &workload.Identity{EntryID: e.id, ID: e.spiffeID, Hint: e.hint}}
		// Until the new SVID is signed the old one serves, unless it is of
		// another name, or its key is with workloads that the entry is no
		// longer, or not only, for.
		if old != nil && old.spiffeID == e.spiffeID && sameSelectors(old.selectors, e.selectors) {
			r.identity.Chain, r.identity.Key = old.identity.Chain, old.identity.Key
			r.serial, r.notBefore, r.notAfter, r.revoked = old.serial, old.notBefore, old.notAfter, old.revoked
		}
		next[e.id] = r
	}
	for id := range c.records {
		if next[id] == nil {
			gone = append(gone, id)
		}
	}
	c.synced = true
	if !changed && len(gone) == 0 {
		return nil
	}
	c.records = next
	c.reindex()
	c.wake()
	return gone
}

// same tells that other is what e is, so that the SVID can stay. A tag stands for
// the whole content, what is signed for it included. Without, it is SPIRE's rule.
func (e *entry) same(other *entry) bool {
	switch {
	case e.revision != other.revision || e.createdAt != other.createdAt:
		return false
	case other.tag == "" || e.tag == other.tag:
		return true
	case e.tag != "":
		return false
	}
	return e.spiffeID == other.spiffeID && e.hint == other.hint && e.served == other.served &&
		sameSelectors(e.selectors, other.selectors) && slices.Equal(e.federatesWith, other.federatesWith)
}

// sameSelectors compares without regard to order.
func sameSelectors(x, y []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(x)), slices.Sorted(slices.Values(y)))
}

func (c *cache) reindex() {
	count := map[string]int{}
	for _, r := range c.records {
		for _, s := range r.selectors {
			count[s]++
			typ, value, _ := strings.Cut(s, ":")
			if kind, _, ok := strings.Cut(value, ":"); ok {
				c.kinds[typ+":"+kind] = true
			}
		}
	}
	c.index = map[string][]*record{}
	for _, r := range c.records {
		if r.served {
			rarest := slices.MinFunc(r.selectors, func(x, y string) int { return cmp.Compare(count[x], count[y]) })
			c.index[rarest] = append(c.index[rarest], r)
		}
	}
}

// wake tells every waiting lookup to ask again.
func (c *cache) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
	c.watchExpiry()
}

// watchExpiry arranges to wake everybody when an SVID expires.
func (c *cache) watchExpiry() {
	if c.expiry != nil {
		c.expiry.Stop()
	}
	now := time.Now()
	var next time.Time
	for _, r := range c.records {
		if r.notAfter.After(now) && (next.IsZero() || r.notAfter.Before(next)) {
			next = r.notAfter
		}
	}
	if !next.IsZero() && !c.stopped {
		c.expiry = time.AfterFunc(next.Sub(now), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.wake()
		})
	}
}

// stop ends the watch on expiry.
func (c *cache) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.expiry != nil {
		c.expiry.Stop()
	}
}

// known returns an entry as it is in force, to tell whether it has changed.
func (c *cache) known(id string) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.records[id]; r != nil {
		return r.entry, true
	}
	return entry{}, false
}

func (c *cache) setBundle(b *workload.Bundle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bundle == nil || !c.bundle.Equal(b) {
		c.bundle = b
		c.proveCRLs()
		c.wake()
	}
}

// federatesWith lists the trust domains that any entry federates with.
func (c *cache) federatesWith() []spiffeid.TrustDomain {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := map[spiffeid.TrustDomain]bool{}
	for _, r := range c.records {
		for _, td := range r.federatesWith {
			set[td] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), spiffeid.TrustDomain.Compare)
}

// setFederated replaces the federated bundles that got names; nil is one that
// does not exist. Those that are not wanted are forgotten, so that nobody is
// served what was valid long ago.
func (c *cache) setFederated(wanted []spiffeid.TrustDomain, got map[spiffeid.TrustDomain]*workload.Bundle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	maps.DeleteFunc(c.federated, func(td spiffeid.TrustDomain, _ *workload.Bundle) bool { return !slices.Contains(wanted, td) })
	for td, b := range got {
		old := c.federated[td]
		switch {
		case b == nil && old != nil:
			delete(c.federated, td)
		case b != nil && (old == nil || !old.Equal(b)):
			c.federated[td] = b
		default:
			continue
		}
		changed = true
	}
	if changed {
		c.wake()
	}
}

// signing is an entry whose turn to be signed has come.
type signing struct {
	id       string
	revision int64
	spiffeID spiffeid.ID
}

// dueBy returns what must be signed, soonest to expire first.
func (c *cache) dueBy(now time.Time) []signing {
	c.mu.Lock()
	defer c.mu.Unlock()
	var due []*record
	for _, r := range c.records {
		if r.served && !r.due.After(now) {
			due = append(due, r)
		}
	}
	slices.SortFunc(due, func(x, y *record) int {
		return cmp.Or(x.notAfter.Compare(y.notAfter), cmp.Compare(x.id, y.id))
	})
	out := make([]signing, len(due))
	for i, r := range due {
		out[i] = signing{r.id, r.revision, r.spiffeID}
	}
	return out
}

// nextDue is when the next entry must be signed, and false where there is none.
func (c *cache) nextDue() (next time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		if r.served && (!ok || r.due.Before(next)) {
			next, ok = r.due, true
		}
	}
	return next, ok
}

// signed is the outcome of one signing: an SVID, or nil where it failed.
type signed struct {
	signing
	chain, key          []byte
	serial              *big.Int
	notBefore, notAfter time.Time
	// apart tells that it failed because of the clocks.
	apart bool
}

// setSigned stores SVIDs and tells the workloads, once for all of them.
func (c *cache) setSigned(batch []signed, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for _, s := range batch {
		r := c.records[s.id]
		if r == nil || r.revision != s.revision || r.spiffeID != s.spiffeID {
			continue // the entry changed meanwhile
		}
		if s.chain == nil {
			if r.due = now.Add(r.backoff.next()); s.apart {
				r.due = now.Add(jitter(clockWait, 0.2))
			}
			changed = r.withdraw() || changed
			continue
		}
		r.backoff.reset()
		r.identity = &workload.Identity{EntryID: r.id, ID: r.spiffeID, Hint: r.hint, Chain: s.chain, Key: s.key}
		r.serial, r.notBefore, r.notAfter, r.due = s.serial, s.notBefore, s.notAfter, renewal(now, s.notAfter)
		// It may have been revoked on its way.
		if r.revoked = c.revoked != nil && c.revoked.Issued(r.serial, r.notBefore, r.spiffeID) != nil; r.revoked {
			r.due = now.Add(r.backoff.next())
		}
		changed = true
	}
	if changed {
		c.wake()
	}
}

// count returns how many entries there are, and with a valid SVID.
func (c *cache) count(now time.Time) (entries, svids int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		if r.identity.Chain != nil && now.Before(r.notAfter) {
			svids++
		}
	}
	return len(c.records), svids
}
