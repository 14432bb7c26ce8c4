package sqlstore

import (
	"context"
	"fmt"
	"math"

	"github.com/writ-dev/writ/identity"
)

// state is what the database says of itself.
type state struct {
	revision uint64
	keyID    string
	seal     string
	// templates is the revision at which templates last changed, and templatesSeal
	// is on them.
	templates     uint64
	templatesSeal string
	// facts is the revision since which there are facts, 0 for none yet.
	facts uint64
	// floor is after which revision the log of changes has everything.
	floor uint64
}

// same says whether two states are of the same content.
func (st state) same(o state) bool {
	return st.revision == o.revision && st.keyID == o.keyID && st.seal == o.seal && st.templates == o.templates && st.templatesSeal == o.templatesSeal && st.facts == o.facts
}

func (t *Tx) state(suffix string) (st state, err error) {
	var seal, templatesSeal []byte
	var revision, floor, templates, facts int64
	err = t.queryRow(`SELECT revision, key_id, seal, log_floor, templates_revision, templates_seal, facts FROM registry_revision`+suffix).Scan(&revision, &st.keyID, &seal, &floor, &templates, &templatesSeal, &facts)
	if err != nil {
		return st, fmt.Errorf("read the registry's revision: %w", err)
	}
	// Who writes the database may write anything.
	if revision < 0 || revision > math.MaxInt64/2 || floor < 0 || templates < 0 || facts < 0 {
		return st, fmt.Errorf("read the registry's revision: %d, log from %d: not numbers of this program", revision, floor)
	}
	st.revision, st.floor, st.seal = uint64(revision), uint64(floor), string(seal)
	st.templates, st.templatesSeal, st.facts = uint64(templates), string(templatesSeal), uint64(facts)
	return st, nil
}

// load reads the whole content and judges it by what was seen.
func (s *Store) load(ctx context.Context, was seen) error {
	sqlTx, err := s.view(ctx)
	if err != nil {
		return fmt.Errorf("load registry: %w", err)
	}
	defer sqlTx.Rollback()
	t := &Tx{ctx: ctx, s: s, tx: sqlTx}
	st, err := t.state("")
	if err == nil {
		err = s.reload(t, st, was)
	}
	if err != nil {
		return fmt.Errorf("load registry: %w", err)
	}
	return nil
}

// reload is load in a transaction.
func (s *Store) reload(t *Tx, st state, was seen) error {
	rows, err := t.rowsWhere(`TRUE`)
	if err != nil {
		return err
	}
	facts, err := t.factRows()
	if err != nil {
		return err
	}
	names, err := t.readTemplates()
	if err != nil {
		return err
	}
	if err := s.mergeRevocations(t, 0); err != nil {
		return err
	}
	var log map[string]*digest
	if s.shared && was.entries != nil && st.revision > was.revision && was.revision >= st.floor {
		touched, err := t.changedSince(was.revision)
		if err != nil {
			return err
		}
		log = touched.digests
	}
	v := judge(s.key, st, rows, facts, was, log, s.clock())
	again := s.judged.same(st)
	s.judged = st
	if !v.settled {
		s.doubtful(t.ctx, st, rows)
		return nil
	}
	// Facts first: they say which of the other rows still hold.
	s.facts = v.facts
	s.noteWrong(v.wrong)
	agents, err := t.allAgents()
	if err != nil {
		return err
	}
	bundles, relationships, err := t.federation()
	if err != nil {
		return err
	}
	s.setDoubt(nil)
	s.total = v.total
	// Not below what was seen, whatever the database says.
	revision := max(st.revision, was.revision)
	fits := s.key.seals(st, v.total)
	s.index.LoadTemplates(s.judgeTemplates(st, fits, names))
	s.index.LoadFederation(bundles, relationships)
	s.index.Reload(revision, v.entries, agents)
	changes := v.withheld
	for id := range *s.withheld.Load() {
		if changes[id] == nil {
			changes[id] = nil
		}
	}
	if !again && !fits {
		s.say(stateAct(st, was.revision))
	}
	s.hold(t.ctx, changes, nil, true)
	s.tell(t.ctx)
	s.tellReplicas()
	s.rewriteMemory(revision)
	return nil
}

// checkState notices that somebody else wrote to a database that only this
// process writes to.
func (s *Store) checkState(ctx context.Context, st state) {
	if s.judged.same(st) {
		return
	}
	have, _ := s.index.Revision()
	s.judged = st
	s.say(stateAct(st, have))
	s.tell(ctx)
}

// stateAct is the alarm that a database is not in the state in which it was left.
func stateAct(st state, seen uint64) identity.Act {
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "tampered", Object: "registry", ObjectID: fmt.Sprint(st.revision),
		Details: [][2]string{{"revision", fmt.Sprint(st.revision)}, {"seen_revision", fmt.Sprint(seen)}},
		Reason:  "the seal of the database is not that of what it held: somebody else wrote it",
	}
	if st.revision < seen {
		act.Verb, act.Reason = "rolled back", "the database is older than what this process has seen of it: an old state was put back"
	}
	return act
}
