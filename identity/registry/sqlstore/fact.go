package sqlstore

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
)

// Kinds of facts.
const (
	factBanned  = "banned"  // an agent
	factEvicted = "evicted" // an agent that did not attest again
	factUsed    = "used"    // a join token, by its hash
	factRemoved = "removed" // a replica
	// These have the mark of the row that is the latest.
	factJournal      = "journal" // of a replica; of no name where there is one control plane
	factCRLs         = "crls"    // of a replica
	factBundle       = "bundle"
	factRelationship = "relationship"
)

// factMargin is how much longer than its time a fact is kept, for clocks that go back.
const factMargin = 48 * time.Hour

// factKey begins the IDs of facts among those of entries: no entry's does.
const factKey = "\x00"

// fact is what the registry must not forget. A mark on a row says who wrote it, a fact
// whether it still holds: facts are in the seal with the entries.
type fact struct {
	value string
	until int64 // Unix seconds; 0 is never, also where only the digest is known
	// digest is of ID, value and until.
	digest digest
}

func newFact(id, value string, until int64) fact {
	h := sha256.New()
	for _, part := range []string{"writ registry fact 1", id, value} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	var end [8]byte
	binary.BigEndian.PutUint64(end[:], uint64(until))
	h.Write(end[:])
	return fact{value: value, until: until, digest: digest(h.Sum(nil))}
}

func factID(kind, about string) string { return kind + " " + about }

// factRow is a row of registry_facts, whoever wrote it.
type factRow struct {
	id string
	fact
	revision int64
	marked   bool
}

func (t *Tx) factRows() ([]factRow, error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT id, value, until, revision, mark FROM registry_facts`)
	if err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	defer rows.Close()
	var all []factRow
	for rows.Next() {
		var r factRow
		var value string
		var until int64
		var mark []byte
		if err := rows.Scan(&r.id, &value, &until, &r.revision, &mark); err != nil {
			return nil, fmt.Errorf("read facts: %w", err)
		}
		r.fact = newFact(r.id, value, until)
		r.marked = t.s.key.marked(r.digest, mark)
		all = append(all, r)
	}
	return all, rows.Err()
}

// fact is what holds in the transaction.
func (t *Tx) fact(kind, about string) (fact, bool) {
	id := factID(kind, about)
	if f, own := t.facts[id]; own {
		if f == nil {
			return fact{}, false
		}
		return *f, true
	}
	f, ok := t.s.facts[id]
	return f, ok
}

func (t *Tx) holds(kind, about string) bool {
	_, ok := t.fact(kind, about)
	return ok
}

// isLatest tells whether a row with that mark is the one that the issuer wrote last.
func (t *Tx) isLatest(kind, about string, mark []byte) bool {
	if t.s.judged.facts == 0 {
		return true // a database of before
	}
	f, ok := t.fact(kind, about)
	return ok && f.digest == newFact(factID(kind, about), hex.EncodeToString(mark), 0).digest
}

// setFact notes a fact.
func (t *Tx) setFact(kind, about, value string, until time.Time) error {
	id := factID(kind, about)
	f := newFact(id, value, unix(until))
	if old, ok := t.fact(kind, about); ok && old.digest == f.digest {
		return nil
	}
	mark := t.s.key.mark(f.digest)
	err := t.exec(`INSERT INTO registry_facts (id, value, until, revision, mark) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET value = excluded.value, until = excluded.until, revision = excluded.revision, mark = excluded.mark`,
		id, f.value, f.until, int64(t.change.Revision), mark[:])
	if err != nil {
		return fmt.Errorf("note that %s: %w", id, err)
	}
	t.keepFact(id, &f)
	return nil
}

// setLatest notes that the row with that mark is the latest.
func (t *Tx) setLatest(kind, about string, mark []byte) error {
	return t.setFact(kind, about, hex.EncodeToString(mark), time.Time{})
}

// dropFact ends a fact.
func (t *Tx) dropFact(kind, about string) error {
	id := factID(kind, about)
	if _, ok := t.fact(kind, about); !ok {
		return nil
	}
	if err := t.exec(`DELETE FROM registry_facts WHERE id = ?`, id); err != nil {
		return fmt.Errorf("forget that %s: %w", id, err)
	}
	t.keepFact(id, nil)
	return nil
}

func (t *Tx) keepFact(id string, f *fact) {
	if before, known := t.expected(factKey + id); known {
		t.s.key.toggle(&t.total, before)
	}
	if f != nil {
		t.s.key.toggle(&t.total, f.digest)
	}
	if t.facts == nil {
		t.facts = map[string]*fact{}
	}
	t.facts[id] = f
}

// PruneFacts forgets those whose time is over.
func (t *Tx) PruneFacts(now time.Time) error {
	for id, f := range t.s.facts {
		if f.until != 0 && now.Unix() >= f.until {
			kind, about, _ := strings.Cut(id, " ")
			if err := t.dropFact(kind, about); err != nil {
				return err
			}
		}
	}
	return nil
}

// agentNow is an agent's row as it counts: nothing undoes a ban, and an evicted agent
// has none. a is nil where there is no row of the issuer's.
func (t *Tx) agentNow(id string, a *registry.Agent) (*registry.Agent, error) {
	switch {
	case t.holds(factBanned, id):
		if a != nil && a.Banned {
			return a, nil
		}
		if a != nil {
			t.undone(factBanned, id, "agent", "its row in the database is one of before it was banned: the ban holds")
		}
		parsed, err := spiffeid.FromString(id)
		if err != nil {
			return nil, fmt.Errorf("agent %s: %w", id, err)
		}
		return &registry.Agent{ID: parsed, Banned: true}, nil
	case a != nil && t.holds(factEvicted, id):
		t.undone(factEvicted, id, "agent", "its row in the database is one of before it was evicted: it is not known")
		return nil, errForeign
	case a == nil:
		return nil, errForeign
	}
	return a, nil
}

// undone raises the alarm that an old row was put back, once for each.
func (t *Tx) undone(kind, about, object, reason string) {
	if _, known := t.s.forged.LoadOrStore("undone "+factID(kind, about), true); known {
		return
	}
	t.s.alarms.Add(1)
	t.s.say(identity.Act{Kind: identity.ActAlarm, Verb: "refused", Object: object, ObjectID: printable(about), Reason: reason})
}

// stale is errForeign, with the alarm, where a row with its mark is not the latest.
func (t *Tx) stale(kind, about, object string, mark []byte) error {
	if t.isLatest(kind, about, mark) {
		return nil
	}
	t.undone(kind, about+" "+hex.EncodeToString(mark[:min(8, len(mark))]), object, "its row in the database is an old one that was put back")
	return errForeign
}

// judgeFacts is what of the facts that are to be there is known, and the IDs of the
// rows that say otherwise.
func judgeFacts(expected map[string]digest, rows []factRow) (facts map[string]fact, wrong []string) {
	facts = map[string]fact{}
	for key, d := range expected {
		if id, ok := strings.CutPrefix(key, factKey); ok {
			facts[id] = fact{digest: d}
		}
	}
	found := make(map[string]bool, len(rows))
	for _, r := range rows {
		found[r.id] = true
		if want, known := facts[r.id]; known && r.marked && r.digest == want.digest {
			facts[r.id] = r.fact
		} else {
			wrong = append(wrong, r.id)
		}
	}
	for id := range facts {
		if !found[id] {
			wrong = append(wrong, id)
		}
	}
	slices.Sort(wrong)
	return facts, wrong
}

// noteWrong raises the alarm that rows of facts are not what the issuer left. What they
// are about holds all the same.
func (s *Store) noteWrong(wrong []string) {
	for _, id := range wrong[:min(len(wrong), maxForeign)] { // enough is said by then
		if _, known := s.forged.LoadOrStore("fact "+id, true); !known {
			s.alarms.Add(1)
			s.say(identity.Act{
				Kind: identity.ActAlarm, Verb: "tampered", Object: "fact", ObjectID: printable(id),
				Reason: "its row in the database is gone, or was not left so by the issuer; what the issuer knew of it holds",
			})
		}
	}
	s.wrongFacts = len(wrong)
}

// checkFacts compares the rows with what holds. Hold mu.
func (s *Store) checkFacts(t *Tx) error {
	rows, err := t.factRows()
	if err != nil {
		return err
	}
	expected := make(map[string]digest, len(s.facts))
	for id, f := range s.facts {
		expected[factKey+id] = f.digest
	}
	_, wrong := judgeFacts(expected, rows)
	s.noteWrong(wrong)
	s.tell(t.ctx)
	return nil
}

// mendFacts writes the rows of facts as they hold, and removes what is none. One whose
// value is not known any more holds for good.
func (t *Tx) mendFacts() error {
	rows, err := t.factRows()
	if err != nil {
		return err
	}
	for _, r := range rows {
		if f, ok := t.s.facts[r.id]; !ok || !r.marked || f.digest != r.digest {
			if err := t.exec(`DELETE FROM registry_facts WHERE id = ?`, r.id); err != nil {
				return fmt.Errorf("mend facts: %w", err)
			}
		}
	}
	for id, f := range maps.Clone(t.s.facts) {
		if slices.ContainsFunc(rows, func(r factRow) bool { return r.id == id && r.marked && r.digest == f.digest }) {
			continue
		}
		kind, about, _ := strings.Cut(id, " ")
		if newFact(id, f.value, f.until).digest != f.digest {
			switch kind {
			case factBanned, factEvicted, factUsed, factRemoved:
				t.keepFact(id, nil) // it is another fact, of the same meaning
				if err := t.setFact(kind, about, "", time.Time{}); err != nil {
					return err
				}
			}
			continue // the row that it is about fits its digest, or does not
		}
		mark := t.s.key.mark(f.digest)
		if err := t.exec(`INSERT INTO registry_facts (id, value, until, revision, mark) VALUES (?, ?, ?, ?, ?)`, id, f.value, f.until, int64(t.change.Revision), mark[:]); err != nil {
			return fmt.Errorf("mend facts: %w", err)
		}
	}
	return nil
}

// gatherFacts notes the facts of a database that had none, as its rows say.
func (t *Tx) gatherFacts() error {
	agents, err := t.agentsWhere(`TRUE`)
	if err != nil {
		return err
	}
	for _, a := range agents {
		if a.Banned {
			if err := t.setFact(factBanned, a.ID.String(), "", time.Time{}); err != nil {
				return err
			}
		}
	}
	type token struct {
		hash    []byte
		expires int64
	}
	used, err := queryAll(t, `SELECT hash, expires_at FROM registry_join_tokens WHERE used_at <> 0`, func(row scanner) (*token, error) {
		var k token
		return &k, row.Scan(&k.hash, &k.expires)
	})
	if err != nil {
		return fmt.Errorf("read tokens: %w", err)
	}
	for _, k := range used {
		if end := fromUnix(k.expires).Add(factMargin); t.now.Before(end) {
			if err := t.setFact(factUsed, hex.EncodeToString(k.hash), "", end); err != nil {
				return err
			}
		}
	}
	for _, q := range []struct{ kind, query string }{
		{factJournal, `SELECT '', mark FROM registry_authorities`}, {factJournal, `SELECT name, mark FROM registry_replicas`}, {factCRLs, `SELECT replica, mark FROM registry_crls`},
		{factBundle, `SELECT trust_domain, mark FROM registry_bundles`}, {factRelationship, `SELECT trust_domain, mark FROM registry_federation`},
	} {
		type latest struct {
			about string
			mark  []byte
		}
		rows, err := queryAll(t, q.query, func(row scanner) (*latest, error) {
			var l latest
			return &l, row.Scan(&l.about, &l.mark)
		})
		if err != nil {
			return fmt.Errorf("read what is latest: %w", err)
		}
		for _, l := range rows {
			if len(l.mark) == 0 {
				continue // a replica that has no authorities yet
			}
			if err := t.setLatest(q.kind, l.about, l.mark); err != nil {
				return err
			}
		}
	}
	removed, err := queryAll(t, `SELECT name FROM registry_replicas WHERE state = '`+stateRemoved+`'`, func(row scanner) (*string, error) {
		var name string
		return &name, row.Scan(&name)
	})
	if err != nil {
		return fmt.Errorf("read replicas: %w", err)
	}
	for _, name := range removed {
		if err := t.setFact(factRemoved, *name, "", time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

// adoptFacts keeps the facts of a database that is adopted, and notes what its rows say
// besides.
func (t *Tx) adoptFacts() error {
	rows, err := t.factRows()
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.marked {
			f := r.fact
			t.keepFact(r.id, &f)
		} else if err := t.exec(`DELETE FROM registry_facts WHERE id = ?`, r.id); err != nil {
			return fmt.Errorf("adopt facts: %w", err)
		}
	}
	return t.gatherFacts()
}

var errBanned = errors.New("the agent is banned: evict it first")
