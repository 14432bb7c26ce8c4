package sqlstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/internal/atomicfile"
)

// adoptionPatience is how long it may take to mark all rows of a database.
const adoptionPatience = 10 * time.Minute

// ForeignError says that what a database holds is not what a store with this key
// left, so that none of it is served.
type ForeignError struct {
	// Why, in a sentence.
	Why string
	// Entries is how many there are, Digest stands for exactly those: who looked at
	// them may have them taken as they are.
	Entries int
	Digest  string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("the registry's database is not as this control plane left it: %s; it holds %d entries of digest %s", e.Why, e.Entries, e.Digest)
}

// openKey finds the key, makes one for a database that was never sealed, or takes
// over a database as it is where that is asked for. It returns what was seen of
// the registry.
func (s *Store) openKey(ctx context.Context) (was seen, err error) {
	st, err := s.readState(ctx)
	if err != nil {
		return was, err
	}
	secret, made, err := s.findKey(st)
	if err != nil {
		return was, err
	}
	if s.key, err = newSealer(secret); err != nil {
		return was, err
	}
	if s.cfg.SeenFile != "" {
		if was, err = readMemory(s.cfg.SeenFile, s.key.id); err != nil {
			return was, err
		}
		s.memory = &memory{path: s.cfg.SeenFile, broken: true}
	}
	if st.keyID == s.key.id {
		return was, nil
	}
	return s.introduce(ctx, secret, made, was)
}

func (s *Store) readState(ctx context.Context) (state, error) {
	tx, err := s.view(ctx)
	if err != nil {
		return state{}, fmt.Errorf("open registry: %w", err)
	}
	defer tx.Rollback()
	return (&Tx{ctx: ctx, s: s, tx: tx}).state("")
}

// pending is where a key is from before a database is sealed with it until after.
func (s *Store) pending() string { return s.cfg.KeyFile + ".pending" }

// findKey returns the key in the file, or one that is made now and is in no file
// yet.
func (s *Store) findKey(st state) (secret keys.Secret, made bool, err error) {
	// A crash may have been on either side of the commit that sealed.
	waiting, err := keys.LoadSecret(s.pending())
	switch {
	case errors.Is(err, keys.ErrNotFound):
	case err != nil:
		return secret, false, err
	default:
		k, err := newSealer(waiting)
		if err != nil {
			return secret, false, err
		}
		if k.id == st.keyID {
			if err := s.settleKey(); err != nil {
				return secret, false, err
			}
		} else if err := os.Remove(s.pending()); err != nil {
			return secret, false, fmt.Errorf("open registry: %w", err)
		}
	}
	secret, err = keys.LoadSecret(s.cfg.KeyFile)
	if errors.Is(err, keys.ErrNotFound) {
		return keys.NewSecret(), true, nil
	}
	return secret, false, err
}

// settleKey gives the key that a database was sealed with its name.
func (s *Store) settleKey() error {
	if err := os.Rename(s.pending(), s.cfg.KeyFile); err != nil {
		return fmt.Errorf("keep the key of the registry: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(s.cfg.KeyFile))
}

// introduce seals a database that is not sealed with this key, if it may be: one
// that was never sealed and is empty, or that there was no key for yet, and else
// none but the one that is to be adopted.
func (s *Store) introduce(ctx context.Context, secret keys.Secret, made bool, was seen) (seen, error) {
	err := s.sealing(ctx, func(t *Tx, st state, rows []row) error {
		if st.keyID == s.key.id {
			return nil // another replica with this key was faster
		}
		why := ""
		switch found := digestOf(rows); {
		case s.cfg.Adopt != "" && s.cfg.Adopt == found:
		case st.keyID != "" && made:
			why = fmt.Sprintf("it is sealed with key %s, which this control plane does not have: put the key of a replica that has it into %s", st.keyID, s.cfg.KeyFile)
		case st.keyID != "":
			why = fmt.Sprintf("it is sealed with key %s, and %s holds key %s", st.keyID, s.cfg.KeyFile, s.key.id)
		case was.entries != nil:
			why = "it was sealed, and is no longer"
		case len(rows) > 0 && !made:
			why = "it was never sealed, though there is a key for it already"
		}
		if why != "" {
			return s.refuse(t.ctx, why, rows)
		}
		if made {
			if err := keys.SaveSecret(s.pending(), secret); err != nil {
				return err
			}
		}
		return s.seal(t, st, rows)
	})
	if err == nil && made {
		err = s.settleKey()
	}
	return seen{}, err // what was seen before is no longer what counts
}

// adopt takes over what is to be adopted of a database that is sealed with this
// key, and is not as it was left.
func (s *Store) adopt(ctx context.Context) error {
	return s.sealing(ctx, func(t *Tx, st state, rows []row) error {
		if found := digestOf(rows); found != s.cfg.Adopt {
			return s.refuse(t.ctx, "it is not what was to be adopted, digest "+s.cfg.Adopt, rows)
		}
		return s.seal(t, st, rows)
	})
}

// sealing runs fn while nobody else writes to the database.
func (s *Store) sealing(ctx context.Context, fn func(*Tx, state, []row) error) error {
	ctx, cancel := context.WithTimeout(ctx, adoptionPatience)
	defer cancel()
	sqlTx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("seal registry: %w", err)
	}
	defer sqlTx.Rollback()
	t := &Tx{ctx: ctx, s: s, tx: sqlTx}
	suffix := ""
	if s.shared {
		suffix = ` FOR UPDATE`
	}
	st, err := t.state(suffix)
	if err != nil {
		return err
	}
	rows, err := t.rowsWhere(`TRUE`)
	if err != nil {
		return fmt.Errorf("seal registry: %w", err)
	}
	if err := fn(t, st, rows); err != nil {
		return err
	}
	if err := sqlTx.Commit(); err != nil {
		return &CommitError{Err: err}
	}
	return nil
}

// seal marks the rows that are entries, seals them, and puts that on record.
func (s *Store) seal(t *Tx, st state, rows []row) error {
	var total sum
	for _, r := range rows {
		if r.entry == nil {
			continue
		}
		s.key.toggle(&total, r.digest)
		if r.marked {
			continue
		}
		mark, alike := s.key.mark(r.digest), r.entry.Similarity()
		if err := t.exec(`UPDATE registry_entries SET mark = ?, similarity = ? WHERE id = ?`, mark[:], alike[:], r.id); err != nil {
			return fmt.Errorf("seal registry: entry %q: %w", r.id, err)
		}
	}
	if err := t.markAll(); err != nil {
		return fmt.Errorf("seal registry: %w", err)
	}
	revision := st.revision
	if len(rows) > 0 {
		revision++ // others read everything again
	}
	t.total, t.now, t.change.Revision = total, s.clock(), revision
	if err := t.adoptFacts(); err != nil {
		return fmt.Errorf("seal registry: %w", err)
	}
	// Templates are not taken over: nobody looked at them.
	err := t.exec(`UPDATE registry_revision SET revision = ?, log_floor = ?, key_id = ?, seal = ?, templates_revision = 0, templates_seal = ?, facts = ?`,
		int64(revision), int64(revision), s.key.id, []byte(s.key.seal(revision, t.total, 0, revision+1)), []byte{}, int64(revision+1))
	if err != nil {
		return fmt.Errorf("seal registry: %w", err)
	}
	if err := s.cfg.Record(t.ctx, []identity.Act{sealedAct(s.key.id, readable(rows), digestOf(rows))}); err != nil {
		return fmt.Errorf("seal registry: put on record: %w", err)
	}
	return nil
}

// digestOf stands for the entries among rows: SHA-256 of their digests, each
// after the length of the ID and the ID, in the order of the IDs.
func digestOf(rows []row) string {
	sorted := slices.SortedFunc(slices.Values(rows), func(a, b row) int { return cmp.Compare(a.id, b.id) })
	h := sha256.New()
	for _, r := range sorted {
		if r.entry == nil {
			continue
		}
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(r.id)))
		h.Write(length[:])
		h.Write([]byte(r.id))
		h.Write(r.digest[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

func readable(rows []row) (n int) {
	for _, r := range rows {
		if r.entry != nil {
			n++
		}
	}
	return n
}

// doubtful notes that no set of the entries fits the seal.
func (s *Store) doubtful(ctx context.Context, st state, rows []row) {
	why := "no set of its entries fits its seal"
	if st.keyID != s.key.id {
		why = fmt.Sprintf("it is sealed with key %q, and %s holds key %s", st.keyID, s.cfg.KeyFile, s.key.id)
	}
	s.setDoubt(s.refuse(ctx, why, rows))
}

// refuse raises the alarm that none of a database is served.
func (s *Store) refuse(ctx context.Context, why string, rows []row) *ForeignError {
	foreign := &ForeignError{Why: why, Entries: readable(rows), Digest: digestOf(rows)}
	s.say(foreignAct(foreign))
	s.tell(ctx)
	return foreign
}

func foreignAct(e *ForeignError) identity.Act {
	return identity.Act{
		Kind: identity.ActAlarm, Verb: "refused", Object: "registry", ObjectID: e.Digest, Reason: e.Why,
		Details: [][2]string{{"entries", fmt.Sprint(e.Entries)}},
	}
}

// factsAct says that facts are kept from now on, of a database of before.
func factsAct(keyID string, facts int) identity.Act {
	return identity.Act{
		Kind: identity.ActAdmin, Verb: "sealed", Object: "facts", ObjectID: keyID, Details: [][2]string{{"facts", fmt.Sprint(facts)}},
	}
}

// sealedAct says that a database was sealed. Where there was something in it, a
// person should know: nobody vouched for it.
func sealedAct(keyID string, entries int, found string) identity.Act {
	act := identity.Act{
		Kind: identity.ActAdmin, Verb: "sealed", Object: "registry", ObjectID: found,
		Details: [][2]string{{"key", keyID}, {"entries", fmt.Sprint(entries)}},
	}
	if entries > 0 {
		act.Kind, act.Verb = identity.ActAlarm, "adopted"
		act.Reason = "the entries of the database were taken as they are, once"
	}
	return act
}
