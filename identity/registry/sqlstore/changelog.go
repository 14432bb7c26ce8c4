package sqlstore

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/sqldb"
)

const (
	// channel is where a committed change of the registry is announced.
	channel = "writ_registry"
	// logLength is how many revisions the log of changes keeps, at least. Who is
	// further behind reads everything again.
	logLength = 10_000
	// logSlack is how many revisions pass between two cuts of the log.
	logSlack = 256
)

// changed is what a transaction touched, as the log has it. What it made of
// that is in the tables.
type changed struct {
	Entries []string `json:"entries,omitempty"`
	// Digests are those of Entries, in the same order; empty for what is deleted.
	Digests [][]byte `json:"digests,omitempty"`
	Agents  []string `json:"agents,omitempty"`
	// Federation is few rows, which are read again together.
	Federation bool `json:"federation,omitempty"`
	// Revocations have the revision as their number.
	Revocations bool         `json:"revocations,omitempty"`
	Replicas    bool         `json:"replicas,omitempty"`
	Facts       []loggedFact `json:"facts,omitempty"`

	// digests is what Entries and Digests say together, nil for what is deleted;
	// nil where they do not say it.
	digests map[string]*digest
}

// loggedFact is one that was noted, or ended.
type loggedFact struct {
	ID    string `json:"id"`
	Value string `json:"value,omitempty"`
	Until int64  `json:"until,omitempty"`
	Ended bool   `json:"ended,omitempty"`
}

// announce puts the transaction's change into the log and tells the others,
// once it is committed.
func (t *Tx) announce() error {
	c := changed{Federation: len(t.change.Bundles)+len(t.change.Relationships) > 0, Revocations: len(t.revoked) > 0, Replicas: t.replicasChanged}
	for id, w := range t.written {
		c.Entries = append(c.Entries, id)
		var d []byte
		if w.digest != nil {
			d = w.digest[:]
		}
		c.Digests = append(c.Digests, d)
	}
	for id, f := range t.facts {
		logged := loggedFact{ID: id, Ended: f == nil}
		if f != nil {
			logged.Value, logged.Until = f.value, f.until
		}
		c.Facts = append(c.Facts, logged)
	}
	for _, a := range t.change.Agents {
		if a.New != nil {
			c.Agents = append(c.Agents, a.New.ID.String())
		} else {
			c.Agents = append(c.Agents, a.Old.ID.String())
		}
	}
	doc, err := json.Marshal(c)
	if err != nil {
		return err
	}
	revision := int64(t.change.Revision)
	if err := t.exec(`INSERT INTO registry_changes (revision, changed) VALUES (?, ?) ON CONFLICT (revision) DO UPDATE SET changed = excluded.changed`, revision, string(doc)); err != nil {
		return fmt.Errorf("write the log of changes: %w", err)
	}
	if floor := revision - logLength; floor > 0 && revision%logSlack == 0 {
		if err := t.exec(`DELETE FROM registry_changes WHERE revision <= ?`, floor); err != nil {
			return fmt.Errorf("cut the log of changes: %w", err)
		}
		if err := t.exec(`UPDATE registry_revision SET log_floor = ? WHERE log_floor < ?`, floor, floor); err != nil {
			return fmt.Errorf("cut the log of changes: %w", err)
		}
	}
	return sqldb.Notify(t.ctx, t.tx, channel)
}

// changedSince is what was touched after a revision.
func (t *Tx) changedSince(revision uint64) (all changed, err error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT revision, changed FROM registry_changes WHERE revision > ? ORDER BY revision`, int64(revision))
	if err != nil {
		return all, err
	}
	defer rows.Close()
	all.digests = map[string]*digest{}
	for rows.Next() {
		var at int64
		var doc string
		if err := rows.Scan(&at, &doc); err != nil {
			return all, err
		}
		var one changed
		if err := json.Unmarshal([]byte(doc), &one); err != nil {
			return all, fmt.Errorf("log of changes: revision %d: %w", at, err)
		}
		all.Entries = append(all.Entries, one.Entries...)
		all.add(one)
		all.Agents, all.Facts = append(all.Agents, one.Agents...), append(all.Facts, one.Facts...)
		all.Federation = all.Federation || one.Federation
		all.Revocations = all.Revocations || one.Revocations
		all.Replicas = all.Replicas || one.Replicas
	}
	slices.Sort(all.Entries)
	slices.Sort(all.Agents)
	all.Entries, all.Agents = slices.Compact(all.Entries), slices.Compact(all.Agents)
	return all, rows.Err()
}

// add takes over the digests of a later change.
func (c *changed) add(later changed) {
	if len(later.Digests) != len(later.Entries) {
		c.digests = nil // written by an older build, or by somebody else
	}
	if c.digests == nil {
		return
	}
	for _, f := range later.Facts {
		if c.digests[factKey+f.ID] = nil; !f.Ended {
			d := newFact(f.ID, f.Value, f.Until).digest
			c.digests[factKey+f.ID] = &d
		}
	}
	for n, id := range later.Entries {
		switch d := later.Digests[n]; len(d) {
		case 0:
			c.digests[id] = nil
		case len(digest{}):
			c.digests[id] = (*digest)(d)
		default:
			c.digests = nil
			return
		}
	}
}

// facts are those that were noted, by ID, nil for what ended.
func (c *changed) facts() map[string]*fact {
	all := make(map[string]*fact, len(c.Facts))
	for _, logged := range c.Facts {
		if all[logged.ID] = nil; !logged.Ended {
			f := newFact(logged.ID, logged.Value, logged.Until)
			all[logged.ID] = &f
		}
	}
	return all
}

// changes is what was made of what was touched, as one change to the index, and
// what of it is withheld: nil for what no longer is.
func (t *Tx) changes(x *registry.Index, touched changed) (change registry.Change, held map[string]*Withheld, err error) {
	fail := func(err error) (registry.Change, map[string]*Withheld, error) { return change, nil, err }
	held = map[string]*Withheld{}
	before, now := *t.s.withheld.Load(), t.s.clock()
	for part := range slices.Chunk(touched.Entries, rowsAtOnce) {
		found, err := t.rowsWhere(`id IN (`+repeat(`?`, len(part))+`)`, anys(part)...)
		if err != nil {
			return fail(err)
		}
		there := make(map[string]row, len(found))
		for _, r := range found {
			there[r.id] = r
		}
		for _, id := range part {
			c := registry.EntryChange{Old: x.Entry(id)}
			want := touched.digests[id]
			r, here := there[id]
			switch {
			case here && want != nil && r.marked && r.digest == *want:
				c.New = r.entry
			case here && want != nil:
				held[id] = r.withheld(true, *want, now)
			case here:
				held[id] = r.withheld(false, digest{}, now)
			case want != nil:
				held[id] = missing(id, *want, now)
			}
			if held[id] == nil && before[id] != nil {
				held[id] = nil
			}
			if c.Old != nil || c.New != nil {
				change.Entries = append(change.Entries, c)
			}
		}
	}
	for part := range slices.Chunk(touched.Agents, rowsAtOnce) {
		found, err := t.agentsWhere(`id IN (`+repeat(`?`, len(part))+`)`, anys(part)...)
		if err != nil {
			return fail(err)
		}
		now := make(map[string]*registry.Agent, len(found))
		for _, a := range found {
			now[a.ID.String()] = a
		}
		for _, name := range part {
			if now[name] == nil {
				if a, err := t.agentNow(name, nil); err == nil {
					now[name] = a // banned, and without a row
				}
			}
			id, err := spiffeid.FromString(name)
			if err != nil {
				return fail(fmt.Errorf("log of changes: agent: %w", err))
			}
			if c := (registry.AgentChange{Old: x.Agent(id), New: now[name]}); c.Old != nil || c.New != nil {
				change.Agents = append(change.Agents, c)
			}
		}
	}
	if touched.Federation {
		if err := t.federationChanges(x, &change); err != nil {
			return fail(err)
		}
	}
	return change, held, nil
}

// federationChanges adds what differs between the tables and the index.
func (t *Tx) federationChanges(x *registry.Index, change *registry.Change) error {
	bundles, relationships, err := t.federation()
	if err != nil {
		return err
	}
	byDomain := map[spiffeid.TrustDomain]registry.BundleChange{}
	for _, b := range x.FederatedBundles() {
		byDomain[b.TrustDomain] = registry.BundleChange{Old: b}
	}
	for _, b := range bundles {
		old := byDomain[b.TrustDomain].Old
		byDomain[b.TrustDomain] = registry.BundleChange{Old: old, New: b}
		if old != nil && old.Equal(b) {
			delete(byDomain, b.TrustDomain)
		}
	}
	change.Bundles = slices.Collect(maps.Values(byDomain))
	ended := map[spiffeid.TrustDomain]registry.RelationshipChange{}
	known, _ := x.Relationships()
	for _, r := range known {
		ended[r.TrustDomain] = registry.RelationshipChange{Old: r}
	}
	for _, r := range relationships {
		ended[r.TrustDomain] = registry.RelationshipChange{Old: ended[r.TrustDomain].Old, New: r}
	}
	change.Relationships = slices.Collect(maps.Values(ended))
	return nil
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
