package agent

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/internal/tracing"
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

// record is an entry with its SVID, or an instance of a template that somebody
// holds.
type record struct {
	entry
	// key is an instance's, "" of an entry, and holders those who hold it.
	key     string
	holders int
	// cause is of what an instance was made for, until it is asked for; nil for none.
	cause *tracing.Cause
	// tried tells that an instance was to be signed once: nobody waits for it any
	// more.
	tried bool

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
	patterns  []*pattern         // oldest first
	instances map[string]*record // by key
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
	// cause is what changes now are laid to, and woken what the last one was.
	cause, woken tracing.Cause
	// unsigned is told of new instances.
	unsigned chan struct{}
	// expiry wakes everybody when the next SVID expires unrenewed.
	expiry  *time.Timer
	stopped bool
}

func newCache() *cache {
	return &cache{
		records: map[string]*record{}, instances: map[string]*record{}, kinds: map[string]bool{}, federated: map[spiffeid.TrustDomain]*workload.Bundle{},
		changed: make(chan struct{}), unsigned: make(chan struct{}, 1),
	}
}

// every yields the records of entries and those of instances.
func (c *cache) every() iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for _, records := range []map[string]*record{c.records, c.instances} {
			for _, r := range records {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// Lookup implements workload.Source.
func (a *Agent) Lookup(ctx context.Context, selectors []string) (workload.Grant, <-chan struct{}, error) {
	return a.lookup(ctx, selectors, nil)
}

// lookup is for a caller that holds what it gets, or, without one, for a look that
// passes.
func (a *Agent) lookup(ctx context.Context, selectors []string, h *hold) (workload.Grant, <-chan struct{}, error) {
	var why []refusal
	g, changed, err := a.cache.lookup(ctx, selectors, time.Now(), h, &why)
	for _, r := range why {
		a.refused(r)
	}
	return g, changed, err
}

// Asked tells whether any entry has, or had, a selector of this kind, as in
// unix:sha256.
func (a *Agent) Asked(kind string) bool {
	a.cache.mu.Lock()
	defer a.cache.mu.Unlock()
	return a.cache.kinds[kind]
}

// lookup adds to why, what templates did not give. Without a hold of keys instances
// have no X509-SVID.
func (c *cache) lookup(ctx context.Context, selectors []string, now time.Time, h *hold, why *[]refusal) (workload.Grant, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.synced || c.bundle == nil {
		return workload.Grant{}, nil, workload.ErrStarting
	}
	records, err := c.given(ctx, selectors, h, why)
	if err != nil {
		return workload.Grant{}, nil, err
	}
	g := workload.Grant{Bundle: c.bundle, CRLs: c.crls.current(now), Asked: len(c.kinds), Cause: c.woken}
	hints := map[string]bool{"": true}
	federated := map[spiffeid.TrustDomain]bool{}
	for _, r := range records {
		id := r.identity
		g.Pending = g.Pending || r.holders > 0 && !r.tried
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

// given returns the records of entries and instances that selectors give, oldest
// first: the first is a workload's default identity, and stays that when others
// are added. Of two of one name an entry is before a template.
func (c *cache) given(ctx context.Context, selectors []string, h *hold, why *[]refusal) ([]*record, error) {
	found := c.match(selectors)
	if len(c.patterns) > 0 {
		named := make(map[spiffeid.ID]bool, len(found))
		for _, r := range found {
			// Who holds an instance goes on with it until the entry that takes its
			// name is signed.
			if r.identity.Chain != nil || !h.has(r.spiffeID) {
				named[r.spiffeID] = true
			}
		}
		instances, refused := c.resolve(selectors, named)
		for _, r := range refused {
			if h.note(r) {
				*why = append(*why, r)
			}
		}
		if h == nil || !h.keys {
			for _, in := range instances {
				found = append(found, in.record())
			}
		} else {
			held, err := h.keep(ctx, c, instances)
			if err != nil {
				return nil, err
			}
			found = append(found, held...)
		}
	}
	slices.SortFunc(found, func(x, y *record) int { return byAge(x.createdAt, x.id, y.createdAt, y.id) })
	return found, nil
}

func byAge(x int64, xID string, y int64, yID string) int {
	return cmp.Or(cmp.Compare(x, y), cmp.Compare(xID, yID))
}

// match returns the records of entries all of whose selectors are among the given.
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
	return found
}

// apply makes entries and patterns the whole of what the node is entitled to. What
// is in force already keeps its SVID; what has changed is signed again.
func (c *cache) apply(entries []entry, patterns []*pattern) (gone []string) {
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
	others, patternsChanged := c.applyPatterns(patterns)
	gone = append(gone, others...)
	if !changed && !patternsChanged && len(gone) == 0 {
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
	for _, p := range c.patterns {
		for _, kind := range p.rule.Kinds() {
			c.kinds[kind] = true
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
	c.woken = c.cause
	close(c.changed)
	c.changed = make(chan struct{})
	c.watchExpiry()
}

// because lays what changes from now on to a cause.
func (c *cache) because(cause tracing.Cause) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cause = cause
}

// watchExpiry arranges to wake everybody when an SVID expires.
func (c *cache) watchExpiry() {
	if c.expiry != nil {
		c.expiry.Stop()
	}
	now := time.Now()
	var next time.Time
	for r := range c.every() {
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

// federatesWith lists the trust domains that any entry or template federates with.
func (c *cache) federatesWith() []spiffeid.TrustDomain {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := map[spiffeid.TrustDomain]bool{}
	for _, r := range c.records {
		for _, td := range r.federatesWith {
			set[td] = true
		}
	}
	for _, p := range c.patterns {
		for _, td := range p.federatesWith {
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

// signing is an entry, or an instance, whose turn to be signed has come.
type signing struct {
	id       string
	revision int64
	spiffeID spiffeid.ID
	// Of an instance:
	key       string
	selectors []string
	// until is when what is replaced is of no use any more; zero is for nothing.
	until time.Time
}

// dueBy returns what must be signed, soonest to expire first, and last that of which
// there is nothing yet.
func (c *cache) dueBy(now time.Time) []signing {
	c.mu.Lock()
	defer c.mu.Unlock()
	var due []*record
	for r := range c.every() {
		if r.served && !r.due.After(now) {
			due = append(due, r)
		}
	}
	out := make([]signing, len(due))
	for i, r := range due {
		out[i] = signing{id: r.id, revision: r.revision, spiffeID: r.spiffeID, until: r.notAfter}
		if r.revoked && r.notAfter.After(now) {
			out[i].until = now
		}
		if r.key != "" {
			out[i].key, out[i].selectors = r.key, r.selectors
		}
	}
	slices.SortFunc(out, func(x, y signing) int {
		switch {
		case x.until.IsZero() && !y.until.IsZero():
			return 1
		case y.until.IsZero() && !x.until.IsZero():
			return -1
		}
		return cmp.Or(x.until.Compare(y.until), cmp.Compare(x.id, y.id), cmp.Compare(x.key, y.key))
	})
	return out
}

// soonest is when the first of the SVIDs expires, zero where there is none.
func (c *cache) soonest() (soonest time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		if r.identity.Chain != nil && (soonest.IsZero() || r.notAfter.Before(soonest)) {
			soonest = r.notAfter
		}
	}
	return soonest
}

// nextDue is when the next entry must be signed, and false where there is none.
func (c *cache) nextDue() (next time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.every() {
		if r.served && (!ok || r.due.Before(next)) {
			next, ok = r.due, true
		}
	}
	return next, ok
}

// signed is the outcome of one signing: an SVID, or nil where it failed.
type signed struct {
	signing
	chain, priv         []byte
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
		r := c.find(s.signing)
		if r == nil || r.revision != s.revision || r.spiffeID != s.spiffeID {
			continue // the entry changed meanwhile
		}
		if s.chain == nil {
			if r.due = now.Add(r.backoff.next()); s.apart {
				r.due = now.Add(jitter(clockWait, 0.2))
			}
			changed = r.withdraw() || !r.tried && r.key != "" || changed
			r.tried = true
			continue
		}
		r.backoff.reset()
		r.tried = true
		r.identity = &workload.Identity{EntryID: r.id, ID: r.spiffeID, Hint: r.hint, Selectors: r.identity.Selectors, Chain: s.chain, Key: s.priv}
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

// find returns the record that was to be signed, nil if it is gone.
func (c *cache) find(s signing) *record {
	if s.key != "" {
		return c.instances[s.key]
	}
	return c.records[s.id]
}

// takeCauses returns what the new instances among those were made for, once.
func (c *cache) takeCauses(batch []signing) (causes []tracing.Cause) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range batch {
		if r := c.find(s); r != nil && r.cause != nil {
			causes = append(causes, *r.cause)
			r.cause = nil
		}
	}
	return causes
}

// setTried tells who waits for new instances that they were not signed: the issuer
// does not answer.
func (c *cache) setTried(batch []signing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for _, s := range batch {
		if r := c.find(s); r != nil && r.key != "" && !r.tried {
			r.tried, changed = true, true
		}
	}
	if changed {
		c.wake()
	}
}

// countInstances returns how many templates there are, how many instances of them
// are held, and with a valid SVID.
func (c *cache) countInstances(now time.Time) (templates, instances, svids int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.instances {
		if r.identity.Chain != nil && now.Before(r.notAfter) {
			svids++
		}
	}
	return len(c.patterns), len(c.instances), svids
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
