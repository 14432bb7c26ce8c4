package sqlstore

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
)

// maxForeign is how many rows that nobody knows are kept to be shown; the others
// are counted, so that who fills the table does not fill the memory and the
// record.
const maxForeign = 1000

// Withheld are the entries that are not served, by ID, and how many more rows
// there are that are none.
func (s *Store) Withheld() (list []*Withheld, more int) {
	held := *s.withheld.Load()
	list = slices.SortedFunc(maps.Values(held), func(a, b *Withheld) int { return cmp.Compare(a.ID, b.ID) })
	return list, int(s.more.Load())
}

// Alarms is how often a row was found that is not what the issuer left.
func (s *Store) Alarms() uint64 { return s.alarms.Load() }

// Doubt is why nothing can be said about the database, nil if it can: what it
// holds is not what a store with this key left.
func (s *Store) Doubt() error {
	if doubt := s.doubt.Load(); doubt != nil {
		return doubt
	}
	return nil
}

// expected is the digest of the entry that is to be there by that ID, or of the fact
// after factKey.
func (s *Store) expected(id string) (digest, bool) {
	if about, ok := strings.CutPrefix(id, factKey); ok {
		f, known := s.facts[about]
		return f.digest, known
	}
	if e := s.index.Entry(id); e != nil {
		return e.Digest(), true
	}
	if w := (*s.withheld.Load())[id]; w != nil && w.Known {
		return w.Want, true
	}
	return digest{}, false
}

// allExpected are the digests of all that is to be there, by ID.
func (s *Store) allExpected() iter.Seq2[string, digest] {
	return func(yield func(string, digest) bool) {
		for _, e := range s.index.Entries() {
			if !yield(e.ID, e.Digest()) {
				return
			}
		}
		for id, w := range *s.withheld.Load() {
			if w.Known && !yield(id, w.Want) {
				return
			}
		}
		for id, f := range s.facts {
			if !yield(factKey+id, f.digest) {
				return
			}
		}
	}
}

// known is all that is to be there, at the revision of the index.
func (s *Store) known() seen {
	revision, _ := s.index.Revision()
	return seen{revision: revision, entries: maps.Collect(s.allExpected())}
}

// suspect looks after the rows that a transaction met and that are not what the
// issuer left, and forgets those that it replaced.
func (s *Store) suspect(ctx context.Context, tx *Tx) {
	if len(tx.suspects)+len(tx.gone)+len(*s.withheld.Load()) == 0 {
		s.tell(ctx)
		return
	}
	changes := map[string]*Withheld{}
	now := s.clock()
	for _, r := range tx.suspects {
		want, known := s.expected(r.id)
		changes[r.id] = r.withheld(known, want, now)
	}
	for _, id := range tx.gone {
		if want, known := s.expected(id); known && changes[id] == nil {
			changes[id] = missing(id, want, now)
		}
	}
	if tx.committed {
		for _, id := range tx.cleared {
			if w := changes[id]; w != nil && w.Known {
				changes[id] = missing(id, w.Want, now)
			}
		}
		held := *s.withheld.Load()
		var replaced []*Withheld
		for id := range tx.written {
			if w := changes[id]; w != nil && !w.same(held[id]) {
				replaced = append(replaced, w)
			}
			delete(changes, id)
			if held[id] != nil {
				changes[id] = nil
			}
		}
		for _, id := range tx.cleared {
			if w := changes[id]; w != nil && !w.Known {
				if !w.same(held[id]) {
					replaced = append(replaced, w)
				}
				changes[id] = nil
			}
		}
		s.alarm(ctx, replaced...)
	}
	s.hold(ctx, changes, nil, false)
}

// compare holds rows against what is to be there, by the IDs that were asked for;
// all says that these are all rows and IDs there are.
func (s *Store) compare(ctx context.Context, rows []row, asked []string, all bool) {
	held, now := *s.withheld.Load(), s.clock()
	changes := map[string]*Withheld{}
	var back []registry.EntryChange
	there := make(map[string]struct{}, len(rows))
	for _, r := range rows {
		there[r.id] = struct{}{}
		want, known := s.expected(r.id)
		if !known || !r.marked || r.digest != want {
			changes[r.id] = r.withheld(known, want, now)
		} else if held[r.id] != nil {
			changes[r.id] = nil
			back = append(back, registry.EntryChange{New: r.entry})
		}
	}
	for _, id := range asked {
		if _, ok := there[id]; ok {
			continue
		}
		changes[id] = nil
		if want, known := s.expected(id); known {
			changes[id] = missing(id, want, now)
		}
	}
	s.hold(ctx, changes, back, all)
}

// hold withholds entries, by ID, and no longer those that are nil; back are served
// again. What is new is an alarm, once. all says that changes speak of all rows.
func (s *Store) hold(ctx context.Context, changes map[string]*Withheld, back []registry.EntryChange, all bool) {
	old := *s.withheld.Load()
	next := maps.Clone(old)
	foreign := 0
	for _, w := range old {
		if !w.Known {
			foreign++
		}
	}
	change := registry.Change{Entries: back}
	change.Revision, _ = s.index.Revision()
	var found []*Withheld
	more := 0
	for _, id := range slices.Sorted(maps.Keys(changes)) {
		w, before := changes[id], old[id]
		switch {
		case w == nil:
			if before != nil && !before.Known {
				foreign--
			}
			delete(next, id)
		case w.same(before):
		case !w.Known && before == nil && foreign >= maxForeign:
			more++
		default:
			if !w.Known && before == nil {
				foreign++
			}
			next[id] = w
			found = append(found, w)
			if e := s.index.Entry(id); e != nil {
				change.Entries = append(change.Entries, registry.EntryChange{Old: e})
			}
		}
	}
	s.withheld.Store(&next)
	if len(change.Entries) > 0 {
		s.index.Apply(change)
	}
	if !all {
		more += int(s.more.Load())
	}
	if s.more.Swap(int64(more)) < int64(more) {
		s.say(identity.Act{
			Kind: identity.ActAlarm, Verb: "withheld", Object: "registry", ObjectID: s.key.id,
			Details: [][2]string{{"rows", fmt.Sprint(more)}},
			Reason:  "more rows of the database are no entries that the issuer made",
		})
	}
	s.alarm(ctx, found...)
}

// alarm puts what was found on record.
func (s *Store) alarm(ctx context.Context, found ...*Withheld) {
	for _, w := range found {
		s.alarms.Add(1)
		s.say(w.act())
	}
	s.tell(ctx)
}

// say notes an act that is to be on record.
func (s *Store) say(act identity.Act) { s.unsaid = append(s.unsaid, act) }

// tell puts on record what was noted. What cannot be now is tried again later.
func (s *Store) tell(ctx context.Context) {
	if len(s.unsaid) == 0 {
		return
	}
	if err := s.cfg.Record(context.WithoutCancel(ctx), s.unsaid); err != nil {
		s.cfg.Log.ErrorContext(ctx, "cannot record alarms of the registry, trying again", "alarms", len(s.unsaid), "error", err)
		return
	}
	s.unsaid = nil
}

// Why says in a sentence why an entry is withheld.
func (w *Withheld) Why() string {
	switch w.Reason {
	case Missing:
		return "its row in the database is gone, and nobody deleted it here"
	case Unreadable:
		return "its row in the database is no entry"
	case Stale:
		return "its row in the database is an old one that was put back"
	}
	return "its row in the database was not written by the issuer"
}

func (w *Withheld) act() identity.Act {
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "withheld", Object: "entry", ObjectID: printable(w.ID), Reason: w.Why(),
		Details: [][2]string{{"cause", w.Reason}},
	}
	detail := func(name, value string) { act.Details = append(act.Details, [2]string{name, printable(value)}) }
	if w.Entry != nil {
		detail("spiffe_id", w.Entry.SPIFFEID.String())
		detail("parent_id", w.Entry.ParentID.String())
		detail("digest", hex.EncodeToString(w.Digest[:]))
	}
	if w.Known {
		detail("want_digest", hex.EncodeToString(w.Want[:]))
	}
	return act
}

// printable is text of somebody else's as the record takes it.
func printable(s string) string {
	const most = 512
	return strings.ToValidUTF8(s[:min(len(s), most)], "\uFFFD")
}
