package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
)

const (
	// Lease is how long a replica may be away before the others taint its
	// authorities, so that agents get SVIDs of a replica that is there.
	Lease = time.Hour
	// aliveFor is how recently a replica must have been heard of for others to wait
	// for it.
	aliveFor = 30 * time.Second
	// pulse is how often a replica says that it is there.
	pulse = 5 * time.Second

	stateLapsed  = "lapsed"
	stateRemoved = "removed"
)

// ErrRemoved says that an administrator removed this replica: its authorities
// are tainted everywhere, and it signs no more.
var ErrRemoved = errors.New("this replica was removed from the trust domain: give it another name (replica in the configuration) and an empty data directory to join anew")

// Replica is a process that signs, as the others know it.
type Replica struct {
	Name   string
	State  string // empty, lapsed or removed
	Joined time.Time
	// Alive is when it last said so, Live whether that is recent.
	Alive time.Time
	Live  bool

	overdue bool // its lease has ended
	// journal is nil where it is forged.
	journal  []byte
	forged   bool
	sequence uint64
	seen     map[string]uint64
}

// Member is this process among the replicas of a shared database. It is the
// journal of its authorities, and knows those of the others.
type Member struct {
	s    *Store
	name string
	log  *slog.Logger
}

// Join makes this process a replica by that name. Only one process at a time
// may have a name; that is for the caller to see to. The error is ErrRemoved
// when the name was removed.
func (s *Store) Join(ctx context.Context, name string, log *slog.Logger) (*Member, error) {
	if !s.shared {
		return nil, errors.New("join: a SQLite database has one process")
	}
	m := &Member{s: s, name: name, log: log}
	err := s.Update(ctx, func(tx *Tx) error {
		all, err := tx.replicas()
		if err != nil {
			return err
		}
		known := slices.IndexFunc(all, func(r *Replica) bool { return r.Name == name })
		switch {
		case known < 0:
			tx.replicasChanged = true
			return tx.exec(`INSERT INTO registry_replicas (name, journal, sequence, state, joined, alive, seen) VALUES (?, ?, 0, '', `+dbNow+`, `+dbNow+`, '{}')`, name, []byte{})
		case all[known].State == stateRemoved:
			return ErrRemoved
		}
		return tx.revive(name)
	})
	if err != nil {
		return nil, fmt.Errorf("join as replica %q: %w", name, err)
	}
	return m, nil
}

// dbNow is the database's clock, which is the same for all replicas.
const dbNow = `CAST(extract(epoch FROM now()) AS BIGINT)`

// revive tells the others that a replica is there, again perhaps.
func (t *Tx) revive(name string) error {
	t.replicasChanged = true
	return t.exec(`UPDATE registry_replicas SET alive = `+dbNow+`, sequence = sequence + 1, state = '' WHERE name = ? AND state <> 'removed'`, name)
}

// Replicas are all there are and were, by name.
func (t *Tx) replicas() ([]*Replica, error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT name, journal, sequence, state, joined, alive,
		alive >= `+dbNow+` - ?, alive < `+dbNow+` - ?, seen, mark FROM registry_replicas ORDER BY name`, int64(aliveFor/time.Second), int64(Lease/time.Second))
	if err != nil {
		return nil, fmt.Errorf("read replicas: %w", err)
	}
	defer rows.Close()
	var all []*Replica
	for rows.Next() {
		var r Replica
		var joined, alive int64
		var seen string
		var mark []byte
		if err := rows.Scan(&r.Name, &r.journal, &r.sequence, &r.State, &joined, &alive, &r.Live, &r.overdue, &seen, &mark); err != nil {
			return nil, fmt.Errorf("read replicas: %w", err)
		}
		if err := json.Unmarshal([]byte(seen), &r.seen); err != nil {
			return nil, fmt.Errorf("read replicas: %s: seen: %w", r.Name, err)
		}
		switch err := t.s.checkJournal(t.ctx, r.Name, r.journal, mark); {
		case err != nil, len(r.journal) > 0 && t.stale(factJournal, r.Name, "authorities", mark) != nil:
			r.journal, r.forged = nil, true
		case len(r.journal) == 0 && t.holds(factJournal, r.Name):
			t.lostJournal(r.Name)
			r.forged = true
		}
		if r.State != stateRemoved && t.holds(factRemoved, r.Name) {
			t.undone(factRemoved, r.Name, "replica", "its row in the database says that it was not removed, and it was")
			r.State = stateRemoved
		}
		r.Joined, r.Alive = fromUnix(joined), fromUnix(alive)
		r.Live = r.Live && r.State == ""
		all = append(all, &r)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return t.withLost(all), nil
}

// withLost adds the replicas that are to be there and have no row.
func (t *Tx) withLost(all []*Replica) []*Replica {
	names := map[string]bool{}
	for _, r := range all {
		names[r.Name] = true
	}
	for id := range t.s.facts {
		kind, name, _ := strings.Cut(id, " ")
		if kind != factJournal && kind != factRemoved || name == "" || names[name] || !t.holds(kind, name) {
			continue
		}
		t.lostJournal(name)
		r := &Replica{Name: name, forged: true}
		if t.holds(factRemoved, name) {
			r.State = stateRemoved
		}
		names[name] = true
		all = append(all, r)
	}
	return all
}

// lostJournal raises the alarm that a replica's authorities are in the database no
// more.
func (t *Tx) lostJournal(name string) {
	t.undone(factJournal, name, "authorities", "their row in the database is gone, or empty")
}

// Replicas reads all there are and were, by name. On SQLite there are none.
func (s *Store) Replicas(ctx context.Context) ([]*Replica, error) {
	if !s.shared {
		return nil, nil
	}
	var all []*Replica
	err := s.look(ctx, func(t *Tx) (err error) {
		all, err = t.replicas()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read replicas: %w", err)
	}
	return all, nil
}

// RemoveReplica ends a replica for good. The others taint its authorities, and
// it signs no more. The error is registry.ErrNotFound when there is none.
func (t *Tx) RemoveReplica(name string) error {
	all, err := t.replicas()
	if err != nil {
		return err
	}
	n := slices.IndexFunc(all, func(r *Replica) bool { return r.Name == name })
	if n < 0 || all[n].State == stateRemoved {
		return registry.ErrNotFound
	}
	t.replicasChanged = true
	if err := t.exec(`UPDATE registry_replicas SET state = 'removed', sequence = sequence + 1 WHERE name = ?`, name); err != nil {
		return fmt.Errorf("remove replica %q: %w", name, err)
	}
	return t.setFact(factRemoved, name, "", time.Time{})
}

// LoadJournal implements ca.Journal.
func (m *Member) LoadJournal(ctx context.Context) ([]byte, error) {
	all, err := m.s.Replicas(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Name == m.name && r.forged {
			return nil, ErrForged
		}
		if r.Name == m.name && len(r.journal) > 0 {
			return r.journal, nil
		}
	}
	return nil, nil
}

// SaveJournal implements ca.Journal. The others are told.
func (m *Member) SaveJournal(ctx context.Context, doc []byte) error {
	mark := m.s.journalMark(m.name, doc)
	err := m.s.Update(ctx, func(tx *Tx) error {
		if tx.holds(factRemoved, m.name) {
			return ErrRemoved
		}
		tx.replicasChanged = true
		r, err := tx.tx.ExecContext(tx.ctx, `UPDATE registry_replicas SET journal = ?, mark = ?, sequence = sequence + 1, alive = `+dbNow+` WHERE name = ? AND state <> 'removed'`, doc, mark, m.name)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrRemoved)
		}
		return tx.setLatest(factJournal, m.name, mark)
	})
	if err != nil {
		return fmt.Errorf("save authorities: %w", err)
	}
	return nil
}

// Peers implements ca.Peers.
func (m *Member) Peers(ctx context.Context) (ca.PeerState, error) {
	// Begin listening before the look, so that no change falls between.
	changed := m.s.replicasChanged()
	var all []*Replica
	var lists map[string][]byte
	err := m.s.look(ctx, func(t *Tx) (err error) {
		if all, err = t.replicas(); err == nil {
			lists, err = t.crls()
		}
		return err
	})
	if err != nil {
		return ca.PeerState{}, fmt.Errorf("read replicas: %w", err)
	}
	state := ca.PeerState{Changed: changed}
	var own uint64
	for _, r := range all {
		state.Sequence += r.sequence
		if r.Name == m.name {
			own, state.Removed = r.sequence, r.State == stateRemoved
		}
	}
	for _, r := range all {
		if r.Name != m.name {
			state.Peers = append(state.Peers, ca.Peer{Name: r.Name, Journal: r.journal, CRLs: lists[r.Name], Sequence: r.sequence, Tainted: r.State != "", Removed: r.State == stateRemoved, Live: r.Live, Knows: r.seen[m.name] >= own})
		}
	}
	return state, nil
}

// Publishes implements ca.Peers: it tells the others what of theirs is in the
// bundle that this one serves.
func (m *Member) Publishes(ctx context.Context, peers []ca.Peer) error {
	seen := make(map[string]uint64, len(peers))
	for _, p := range peers {
		seen[p.Name] = p.Sequence
	}
	doc, err := json.Marshal(seen)
	if err != nil {
		return err
	}
	return m.s.Update(ctx, func(tx *Tx) error {
		all, err := tx.replicas()
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Name == m.name && !maps.Equal(r.seen, seen) {
				tx.replicasChanged = true
				return tx.exec(`UPDATE registry_replicas SET seen = ? WHERE name = ?`, string(doc), m.name)
			}
		}
		return nil
	})
}

// Run says that this replica is there, and finds those that have not been for
// longer than Lease, until ctx ends. It returns ErrRemoved when this one was
// removed.
func (m *Member) Run(ctx context.Context) error {
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	for {
		if err := m.Beat(ctx); errors.Is(err, ErrRemoved) {
			return err
		} else if err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "cannot tell the other replicas of this one", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Beat says once that this replica is there, and looks at the others. Run does
// it again and again.
func (m *Member) Beat(ctx context.Context) error {
	if _, err := m.s.db.ExecContext(ctx, `UPDATE registry_replicas SET alive = `+dbNow+` WHERE name = ?`, m.name); err != nil {
		return err
	}
	all, err := m.s.Replicas(ctx)
	if err != nil {
		return err
	}
	var lapsed []string
	revive := false
	for _, r := range all {
		switch {
		case r.Name == m.name && r.State == stateRemoved:
			return ErrRemoved
		case r.Name == m.name:
			revive = r.State == stateLapsed
		case r.State == "" && r.overdue:
			lapsed = append(lapsed, r.Name)
		}
	}
	if len(lapsed) == 0 && !revive {
		return nil
	}
	return m.s.Update(ctx, func(tx *Tx) error {
		for _, name := range lapsed {
			m.log.WarnContext(ctx, "a replica has been away for longer than its lease, its authorities are tainted", "replica", name)
			tx.replicasChanged = true
			err := tx.exec(`UPDATE registry_replicas SET state = 'lapsed', sequence = sequence + 1 WHERE name = ? AND state = '' AND alive < `+dbNow+` - ?`, name, int64(Lease/time.Second))
			if err != nil {
				return err
			}
		}
		if revive {
			return tx.revive(m.name)
		}
		return nil
	})
}

// replicasChanged is closed at the next change of the replicas.
func (s *Store) replicasChanged() <-chan struct{} {
	s.replicaMu.Lock()
	defer s.replicaMu.Unlock()
	return s.replicaSignal
}

func (s *Store) tellReplicas() {
	s.replicaMu.Lock()
	defer s.replicaMu.Unlock()
	close(s.replicaSignal)
	s.replicaSignal = make(chan struct{})
}
