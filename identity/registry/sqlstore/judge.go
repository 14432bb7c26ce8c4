package sqlstore

import (
	"strings"
	"time"

	"github.com/writ-dev/writ/identity/registry"
)

// Why an entry is withheld.
const (
	// Unreadable: the row is no entry.
	Unreadable = "unreadable"
	// Unmarked: the issuer did not write the row, or not like this.
	Unmarked = "unmarked"
	// Stale: the issuer wrote the row, but it was replaced or deleted since.
	Stale = "stale"
	// Missing: the row is gone, and nobody deleted the entry.
	Missing = "missing"
)

// Withheld is an entry that is not served, because its row is not what the issuer
// left. It does not change.
type Withheld struct {
	ID     string
	Reason string // one of the constants
	Since  time.Time
	// Entry is the row, nil where it is missing or unreadable, and Digest is the
	// entry's.
	Entry  *registry.Entry
	Digest [32]byte
	// Known says that there is to be an entry of that ID, with the digest Want.
	Known bool
	Want  [32]byte
}

// same says whether a row is as it was when w was found.
func (w *Withheld) same(o *Withheld) bool {
	return o != nil && w.Reason == o.Reason && w.Digest == o.Digest && w.Known == o.Known && w.Want == o.Want
}

// verdict is what is made of all rows of the database.
type verdict struct {
	entries  []*registry.Entry
	withheld map[string]*Withheld
	total    sum // of the entries and facts that are to be there
	facts    map[string]fact
	wrong    []string // facts whose rows are not as they are to be
	settled  bool
}

// seen is what a process knows that the registry held at a revision.
type seen struct {
	revision uint64
	entries  map[string]digest // and facts, see factKey; nil: nothing is known
}

// judge says which rows are what the issuer left. The set that is to be there is
// what was seen, if the database is not after that; otherwise, of the sets
// that it can be, the one that fits the seal. log are the changes after what was
// seen, nil where they are not known. Where no set fits, nothing is settled.
func judge(k *sealer, st state, rows []row, facts []factRow, was seen, log map[string]*digest, now time.Time) verdict {
	v := verdict{withheld: map[string]*Withheld{}}
	expected := was.entries
	switch {
	case was.entries != nil && st.revision <= was.revision:
		v.total, v.settled = k.total(expected), true
	default:
		for _, candidate := range []func() map[string]digest{
			func() map[string]digest { return afterLog(was, log) },
			func() map[string]digest { return withNewer(was, rows, facts) },
			func() map[string]digest { return withNewer(seen{}, rows, facts) },
		} {
			set := candidate()
			if total := k.total(set); set != nil && k.seals(st, total) {
				expected, v.total, v.settled = set, total, true
				break
			}
		}
	}
	if !v.settled {
		return v
	}
	v.facts, v.wrong = judgeFacts(expected, facts)
	there := len(v.facts)
	v.entries = make([]*registry.Entry, 0, len(rows))
	for _, r := range rows {
		want, known := expected[r.id]
		if known = known && !strings.HasPrefix(r.id, factKey); known {
			there++
		}
		if known && r.marked && r.digest == want {
			v.entries = append(v.entries, r.entry)
		} else {
			v.withheld[r.id] = r.withheld(known, want, now)
		}
	}
	if there == len(expected) {
		return v
	}
	found := make(map[string]struct{}, len(rows))
	for _, r := range rows {
		found[r.id] = struct{}{}
	}
	for id, want := range expected {
		if _, ok := found[id]; !ok && !strings.HasPrefix(id, factKey) {
			v.withheld[id] = missing(id, want, now)
		}
	}
	return v
}

// afterLog is what was seen with the log of changes on top, nil where one of them
// is not known.
func afterLog(was seen, log map[string]*digest) map[string]digest {
	if was.entries == nil || log == nil {
		return nil
	}
	set := make(map[string]digest, len(was.entries)+len(log))
	for id, d := range was.entries {
		set[id] = d
	}
	for id, d := range log {
		if d == nil {
			delete(set, id)
		} else {
			set[id] = *d
		}
	}
	return set
}

// withNewer is what was seen, and the rows with the issuer's mark that are newer.
func withNewer(was seen, rows []row, facts []factRow) map[string]digest {
	set := make(map[string]digest, len(was.entries)+len(rows))
	for id, d := range was.entries {
		set[id] = d
	}
	for _, r := range rows {
		if r.marked && (was.entries == nil || r.entry.RevisionNumber > int64(was.revision)) {
			set[r.id] = r.digest
		}
	}
	for _, r := range facts {
		if r.marked && (was.entries == nil || r.revision > int64(was.revision)) {
			set[factKey+r.id] = r.digest
		}
	}
	return set
}

// withheld is the row as one that is not served, in place of what is wanted.
func (r *row) withheld(known bool, want digest, now time.Time) *Withheld {
	w := &Withheld{ID: r.id, Since: now, Entry: r.entry, Digest: r.digest, Known: known, Want: want}
	switch {
	case r.entry == nil:
		w.Reason = Unreadable
	case !r.marked:
		w.Reason = Unmarked
	default:
		w.Reason = Stale
	}
	return w
}

func missing(id string, want digest, now time.Time) *Withheld {
	return &Withheld{ID: id, Reason: Missing, Since: now, Known: true, Want: want}
}
