package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/internal/tracing"
)

// pattern is what the agent needs of a template.
type pattern struct {
	id            string
	rule          template.Rule
	federatesWith []spiffeid.TrustDomain
	hint          string
	revision      int64
	createdAt     int64
	// sent is what the issuer said, to tell whether it says something else now:
	// what it fills in of the node may change without the template.
	sent *templatev1.Template
}

// resolved is what selectors make of a pattern.
type resolved struct {
	*pattern
	template.Instance
	// key is the instance's. What is required is part of it, so that a key is
	// never handed on to workloads that it was not made for.
	key string
}

func newResolved(p *pattern, in template.Instance) resolved {
	return resolved{p, in, tokenKey(append([]string{p.id, in.ID.String()}, in.Selectors...))}
}

// record is an instance without an SVID.
func (r *resolved) record() *record {
	return &record{
		entry: entry{
			id: r.pattern.id, spiffeID: r.ID, selectors: r.Selectors, federatesWith: r.federatesWith, hint: r.hint,
			revision: r.revision, createdAt: r.createdAt, served: true,
		},
		identity: &workload.Identity{EntryID: r.pattern.id, ID: r.ID, Hint: r.hint, Selectors: r.Selectors},
		key:      r.key,
	}
}

// refusal is a pattern that gives nothing because of a value.
type refusal struct {
	*pattern
	err error
}

// resolve returns the instances that selectors make, but for names that are in
// named, and puts theirs there: each name is given once, by the oldest.
func (c *cache) resolve(selectors []string, named map[spiffeid.ID]bool) (found []resolved, refused []refusal) {
	for _, p := range c.patterns {
		in, err := p.rule.Resolve(selectors)
		switch {
		case errors.Is(err, template.ErrNoMatch):
		case err != nil:
			refused = append(refused, refusal{p, err})
		case !named[in.ID]:
			named[in.ID] = true
			found = append(found, newResolved(p, in))
		}
	}
	return found, refused
}

// hold keeps the instances of one caller: it implements workload.Hold.
type hold struct {
	a    *Agent
	uid  uint32
	keys bool

	// Under the cache's lock.
	held     map[string]*record
	noted    map[string]string // what was said of patterns
	released bool
}

// Hold implements workload.Source.
func (a *Agent) Hold(uid uint32, keys bool) workload.Hold { return &hold{a: a, uid: uid, keys: keys} }

// Lookup implements workload.Hold.
func (h *hold) Lookup(ctx context.Context, selectors []string) (workload.Grant, <-chan struct{}, error) {
	return h.a.lookup(ctx, selectors, h)
}

// Release implements workload.Hold.
func (h *hold) Release() {
	c := h.a.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	h.released = true
	for _, r := range h.held {
		c.drop(r)
	}
	h.held = nil
}

// keep makes the instances those that the caller holds, and returns their records.
func (h *hold) keep(ctx context.Context, c *cache, instances []resolved) ([]*record, error) {
	if h.released {
		return nil, nil
	}
	next := make(map[string]*record, len(instances))
	var records []*record
	var failed error
	for _, in := range instances {
		r := h.held[in.key]
		if r == nil {
			if r = c.instances[in.key]; r == nil {
				if !h.a.instanceLimits.Allow(h.uid) {
					failed = workload.ErrTooMany
					continue
				}
				r = in.record()
				if cause := tracing.CauseOf(ctx); cause.Known() {
					r.cause = &cause
				}
				c.instances[in.key] = r
				c.signSoon()
			}
			r.holders++
		}
		next[in.key] = r
		records = append(records, r)
	}
	for key, r := range h.held {
		if next[key] == nil {
			c.drop(r)
		}
	}
	h.held = next
	return records, failed
}

// has tells whether an instance of that name is held.
func (h *hold) has(id spiffeid.ID) bool {
	if h != nil {
		for _, r := range h.held {
			if r.spiffeID == id {
				return true
			}
		}
	}
	return false
}

// note says whether something was not said of the pattern before.
func (h *hold) note(r refusal) bool {
	if h == nil {
		return true
	}
	if h.noted == nil {
		h.noted = map[string]string{}
	}
	before, now := h.noted[r.id], r.err.Error()
	h.noted[r.id] = now
	return before != now
}

// drop lets go of an instance; with its last holder its key goes.
func (c *cache) drop(r *record) {
	if r.holders--; r.holders == 0 && c.instances[r.key] == r {
		delete(c.instances, r.key)
	}
}

// signSoon wakes who signs.
func (c *cache) signSoon() {
	select {
	case c.unsigned <- struct{}{}:
	default: // it was woken already
	}
}

// applyPatterns makes patterns the whole of what the node is entitled to, and
// returns the IDs of those that are gone or have become others. Instances of what
// has changed are signed again.
func (c *cache) applyPatterns(patterns []*pattern) (gone []string, changed bool) {
	slices.SortFunc(patterns, func(x, y *pattern) int { return byAge(x.createdAt, x.id, y.createdAt, y.id) })
	now := make(map[string]*pattern, len(c.patterns))
	for _, p := range c.patterns {
		now[p.id] = p
	}
	next := make(map[string]*pattern, len(patterns))
	patterns = slices.DeleteFunc(patterns, func(p *pattern) bool { // of one ID the oldest
		_, known := next[p.id]
		if !known {
			next[p.id] = p
		}
		return known
	})
	for i, p := range patterns {
		if old := now[p.id]; old != nil && proto.Equal(old.sent, p.sent) {
			patterns[i], next[p.id] = old, old
		}
	}
	changed = len(patterns) != len(c.patterns)
	for _, old := range c.patterns {
		if next[old.id] != old {
			changed = true
			gone = append(gone, old.id)
		}
	}
	if !changed {
		return nil, false
	}
	c.patterns = patterns
	for _, r := range c.instances {
		if !slices.Contains(gone, r.id) {
			continue
		}
		// Who holds it looks again; what it makes of its selectors then may be
		// something else.
		r.served = false
		p := next[r.id]
		if p == nil {
			continue
		}
		in, err := p.rule.Resolve(r.selectors)
		if again := newResolved(p, in); err == nil && again.key == r.key {
			fresh := again.record()
			fresh.identity.Chain, fresh.identity.Key = r.identity.Chain, r.identity.Key
			r.entry, r.identity, r.due, r.backoff = fresh.entry, fresh.identity, time.Time{}, backoff{}
		}
	}
	return gone, true
}

// refused says that a template gives a workload no identity because of a value.
func (a *Agent) refused(r refusal) {
	a.log.Warn("a template gives a workload no identity", "template", r.id, "spiffe_id", r.rule.SPIFFEID.String(), "error", r.err)
	var why *template.RefusedError
	if errors.As(r.err, &why) {
		a.stats.refused[why.Reason].Add(1)
	}
}

// TemplateRefusals is how often a template gave a workload no identity because of
// the value of a variable.
func (a *Agent) TemplateRefusals(r template.Reason) uint64 { return a.stats.refused[r].Load() }

func newRefusals() map[template.Reason]*atomic.Uint64 {
	counts := map[template.Reason]*atomic.Uint64{}
	for _, r := range template.Reasons() {
		counts[r] = &atomic.Uint64{}
	}
	return counts
}

// toldTemplates is what the issuer said last of templates: the digest that it is asked
// by, and what was made of it.
type toldTemplates struct {
	digest   []byte
	patterns []*pattern
	// none is until when an issuer that has no templates is not asked.
	none time.Time
}

// fetchTemplates gets the templates that the node is entitled to; none from an
// issuer that does not have them, which is asked again after a while.
func (a *Agent) fetchTemplates(ctx context.Context) ([]*pattern, error) {
	last := &a.told.templates
	if time.Now().Before(last.none) {
		return nil, nil
	}
	var sent []*templatev1.Template
	var digest []byte
	var unchanged bool
	err := a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) (err error) {
		sent, digest, unchanged, err = receiveTemplates(ctx, templatev1.NewIssuanceClient(cc), last.digest)
		return err
	})
	switch {
	case status.Code(err) == codes.Unimplemented:
		*last = toldTemplates{none: time.Now().Add(unwatchedRetry)}
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("sync templates: %w", err)
	case unchanged:
		return slices.Clone(last.patterns), nil
	}
	var patterns []*pattern
	for _, t := range sent {
		p, err := parsePattern(t, a.td)
		if err != nil {
			a.log.Warn("template ignored", "template", t.GetId(), "error", err)
			continue
		}
		patterns = append(patterns, p)
	}
	*last = toldTemplates{digest: digest, patterns: patterns}
	return slices.Clone(patterns), nil
}

// receiveTemplates asks for what is not of the digest that the agent had.
func receiveTemplates(ctx context.Context, client templatev1.IssuanceClient, had []byte) (all []*templatev1.Template, digest []byte, unchanged bool, err error) {
	stream, err := client.Authorized(ctx, &templatev1.AuthorizedRequest{Digest: had})
	if err != nil {
		return nil, nil, false, err
	}
	for size := 0; ; {
		page, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, digest, unchanged, nil
		case err != nil:
			return nil, nil, false, err
		case page.Unchanged && len(had) == 0:
			return nil, nil, false, errors.New("the issuer says that nothing has changed, and has said nothing before")
		}
		if size += proto.Size(page); size > maxAnswer {
			return nil, nil, false, errEndless
		}
		all, digest, unchanged = append(all, page.Templates...), page.Digest, page.Unchanged
	}
}

func parsePattern(t *templatev1.Template, td spiffeid.TrustDomain) (p *pattern, err error) {
	p = &pattern{id: t.GetId(), hint: t.GetHint(), revision: t.GetRevision(), createdAt: t.GetCreatedAt(), sent: t}
	if p.id == "" {
		return nil, errors.New("it has no id")
	}
	if p.rule.SPIFFEID, err = template.ParseSPIFFEID(td, t.GetSpiffeId()); err != nil {
		return nil, fmt.Errorf("spiffe_id: %w", err)
	}
	for _, text := range t.GetDnsNames() {
		name, err := template.ParseDNSName(text)
		if err != nil {
			return nil, fmt.Errorf("dns_names: %w", err)
		}
		p.rule.DNSNames = append(p.rule.DNSNames, name)
	}
	p.rule.Selectors = slices.Sorted(slices.Values(t.GetSelectors()))
	if p.rule.MaxSelectors() == 0 {
		return nil, errors.New("it asks for no selector, so every process would match")
	}
	for _, name := range t.GetFederatesWith() {
		other, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("federates with %q: %w", name, err)
		}
		p.federatesWith = append(p.federatesWith, other)
	}
	return p, nil
}
