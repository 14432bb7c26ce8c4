package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/internal/pgtest"
)

// replicas are stores of one database, each of which follows the others.
func replicas(t *testing.T, n int, dsn string) []*sqlstore.Store {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	t.Cleanup(func() { cancel(); ended.Wait() })
	var all []*sqlstore.Store
	for range n {
		s := open(t, openPostgres(t, dsn))
		ended.Go(func() {
			if err := s.Follow(ctx, slog.New(slog.DiscardHandler)); err != nil {
				t.Error(err)
			}
		})
		all = append(all, s)
	}
	return all
}

// await waits until the store has a revision, told by its own signal.
func await(t *testing.T, s *sqlstore.Store, revision uint64) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		have, changed := s.Index().Revision()
		if have >= revision {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("at revision %d, want %d", have, revision)
		}
	}
}

func agentID(n int) spiffeid.ID { return path(fmt.Sprintf("/spire/agent/x/%d", n)) }

// A change made by one replica reaches the watches of another, those of the
// agents that it concerns and no others.
func TestWatchAcrossReplicas(t *testing.T) {
	all := replicas(t, 2, pgtest.DSN(t))
	a, b := all[0], all[1]
	update(t, a, func(tx *sqlstore.Tx) error {
		for n := range 2 {
			if err := tx.PutAgent(registry.Agent{ID: agentID(n), ExpiresAt: now.Add(time.Hour)}); err != nil {
				return err
			}
		}
		return nil
	})
	await(t, b, 1)
	concerned, other := b.Index().Watch(agentID(0)), b.Index().Watch(agentID(1))
	defer concerned.Close()
	defer other.Close()
	e := full()
	e.ParentID = agentID(0)
	update(t, a, func(tx *sqlstore.Tx) error { _, err := tx.CreateEntry(e); return err })
	<-concerned.C()
	if got := b.Index().Authorized(agentID(0), now); len(got) != 1 || got[0].SPIFFEID != e.SPIFFEID {
		t.Errorf("authorized: %v", got)
	}
	select {
	case <-other.C():
		t.Error("an agent was told of what does not concern it")
	default:
	}
	// So is a revocation, here and by who opens the database later.
	_, revoked := b.Revocations().Now()
	update(t, a, func(tx *sqlstore.Tx) error {
		_, err := tx.Revoke(revocation.Revocation{Kind: revocation.Serial, Subject: "17", Expires: now.Add(time.Hour)})
		return err
	})
	<-revoked
	await(t, b, 3)
	// A ban is seen everywhere.
	update(t, a, func(tx *sqlstore.Tx) error {
		return tx.PutAgent(registry.Agent{ID: agentID(0), Banned: true, ExpiresAt: now.Add(time.Hour)})
	})
	<-concerned.C()
	if got := b.Index().Authorized(agentID(0), now); len(got) != 0 {
		t.Errorf("banned, and authorized for %v", got)
	}
}

// Whatever several replicas write at once, all of them end with what the
// database holds, none sees revisions go back, and a transaction sees in the
// index all that was committed before it.
func TestReplicasAgree(t *testing.T) {
	dsn := pgtest.DSN(t)
	all := replicas(t, 3, dsn)
	var last atomic.Uint64
	var writers sync.WaitGroup
	for n, s := range all {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(n)))
			for range 60 {
				err := s.Update(t.Context(), func(tx *sqlstore.Tx) error {
					if have, _ := s.Index().Revision(); have != last.Load() {
						t.Errorf("transaction after revision %d begins with an index at %d", last.Load(), have)
					}
					last.Add(1)
					return write(t, tx, s, rng)
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	want := open(t, openPostgres(t, dsn))
	for n, s := range all {
		await(t, s, last.Load())
		if diff := cmp.Diff(want.Index().Entries(), s.Index().Entries(), ignoreZone); diff != "" {
			t.Errorf("replica %d: %s", n, diff)
		}
		if diff := cmp.Diff(want.Index().Agents(), s.Index().Agents(), ignoreZone); diff != "" {
			t.Errorf("replica %d: %s", n, diff)
		}
		sameTemplates(t, want.Index().Templates(), s.Index().Templates())
		ours, theirs := domains(want.Index()), domains(s.Index())
		if diff := cmp.Diff(ours, theirs); diff != "" {
			t.Errorf("replica %d: %s", n, diff)
		}
	}
}

func domains(x *registry.Index) (names []string) {
	for _, b := range x.FederatedBundles() {
		names = append(names, b.TrustDomain.Name())
	}
	relationships, _ := x.Relationships()
	for _, r := range relationships {
		names = append(names, "relationship with "+r.TrustDomain.Name())
	}
	slices.Sort(names)
	return names
}

// write changes something, always.
func write(t *testing.T, tx *sqlstore.Tx, s *sqlstore.Store, rng *rand.Rand) error {
	entries, templates := s.Index().Entries(), s.Index().Templates()
	switch {
	case len(templates) > 0 && rng.IntN(8) == 0:
		_, err := tx.DeleteTemplate(templates[rng.IntN(len(templates))].ID)
		return err
	case rng.IntN(6) == 0:
		r := fullTemplate(t)
		r.ParentID = path(fmt.Sprintf("/node/%d", rng.Uint64()))
		_, err := tx.CreateTemplate(r)
		return err
	case len(entries) > 0 && rng.IntN(3) == 0:
		_, err := tx.DeleteEntry(entries[rng.IntN(len(entries))].ID)
		return err
	case len(entries) > 0 && rng.IntN(2) == 0:
		e := *entries[rng.IntN(len(entries))]
		e.Selectors = slices.Clone(e.Selectors)
		e.Hint = fmt.Sprint(rng.Uint64())
		_, err := tx.UpdateEntry(e)
		return err
	case rng.IntN(5) == 0:
		bundles := s.Index().FederatedBundles()
		if len(bundles) > 2 {
			return tx.DeleteFederatedBundle(bundles[rng.IntN(len(bundles))].TrustDomain)
		}
		td := spiffeid.RequireTrustDomainFromString(fmt.Sprintf("d%d.org", rng.Uint64()))
		if err := tx.PutRelationship(registry.Relationship{TrustDomain: td, EndpointURL: "https://x", Profile: "https_web"}); err != nil {
			return err
		}
		return tx.PutFederatedBundle(registry.FederatedBundle{TrustDomain: td, Sequence: 1})
	case rng.IntN(3) == 0:
		return tx.PutAgent(registry.Agent{ID: agentID(rng.IntN(5)), Serial: fmt.Sprint(rng.Uint64())})
	}
	e := full()
	e.SPIFFEID = path(fmt.Sprintf("/svc/%d", rng.Uint64()))
	_, err := tx.CreateEntry(e)
	return err
}

// One token, many takers on several replicas: one gets it.
func TestTokenAcrossReplicas(t *testing.T) {
	all := replicas(t, 3, pgtest.DSN(t))
	hash := registry.HashToken("once")
	update(t, all[0], func(tx *sqlstore.Tx) error {
		return tx.CreateJoinToken(registry.JoinToken{Hash: hash, ExpiresAt: now.Add(time.Minute)})
	})
	var got, used atomic.Int64
	var takers sync.WaitGroup
	for n := range 12 {
		takers.Go(func() {
			err := all[n%3].Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.UseJoinToken(hash); return err })
			switch {
			case err == nil:
				got.Add(1)
			case errors.Is(err, registry.ErrTokenUsed):
				used.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	takers.Wait()
	if got.Load() != 1 || used.Load() != 11 {
		t.Errorf("%d got it, %d were told that it is used", got.Load(), used.Load())
	}
}

// A replica that was cut off gets what it missed when the database is back; it
// is not fresh meanwhile, for longer than it may be.
func TestReplicaCatchesUp(t *testing.T) {
	server := pgtest.New(t)
	dsn := server.Database(t)
	s := replicas(t, 1, dsn)[0]
	writer := open(t, openPostgres(t, dsn))
	make := func(name string) error {
		return writer.Update(t.Context(), func(tx *sqlstore.Tx) error {
			e := full()
			e.SPIFFEID = path("/svc/" + name)
			_, err := tx.CreateEntry(e)
			return err
		})
	}
	if err := make("before"); err != nil {
		t.Fatal(err)
	}
	await(t, s, 1)
	server.Stop(t)
	if err := make("during"); err == nil {
		t.Fatal("wrote to a database that is gone")
	} else {
		t.Log(err)
	}
	if err := s.Refresh(t.Context()); err == nil {
		t.Error("read a database that is gone")
	}
	server.Start(t)
	// Nothing is lost, and the writer recovers by itself.
	if err := make("after"); err != nil {
		t.Fatal(err)
	}
	await(t, s, 2)
	if diff := cmp.Diff(writer.Index().Entries(), s.Index().Entries(), ignoreZone); diff != "" || len(s.Index().Entries()) != 2 {
		t.Error(diff, len(s.Index().Entries()))
	}
}

// One whose revision the log no longer reaches back to reads everything again.
func TestReplicaReloads(t *testing.T) {
	dsn := pgtest.DSN(t)
	db := openPostgres(t, dsn)
	writer, behind := open(t, db), open(t, openPostgres(t, dsn))
	update(t, writer, func(tx *sqlstore.Tx) error { _, err := tx.CreateEntry(full()); return err })
	if _, err := db.Exec(`DELETE FROM registry_changes; UPDATE registry_revision SET log_floor = 1`); err != nil {
		t.Fatal(err)
	}
	if err := behind.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := open(t, db)
	if diff := cmp.Diff(fresh.Index().Entries(), behind.Index().Entries(), ignoreZone); diff != "" {
		t.Error(diff)
	}
}

// A replica tells how many changes it lacks, and how old what it knows is.
func TestLag(t *testing.T) {
	server := pgtest.New(t)
	dsn := server.Database(t)
	writer, behind := open(t, openPostgres(t, dsn)), open(t, openPostgres(t, dsn))
	const changes = 3
	for n := range changes {
		update(t, writer, func(tx *sqlstore.Tx) error {
			e := full()
			e.SPIFFEID = path(fmt.Sprintf("/svc/%d", n))
			_, err := tx.CreateEntry(e)
			return err
		})
	}
	behind.ConfirmAt(time.Now().Add(-time.Hour))
	if lag, err := behind.Lag(t.Context()); err != nil || lag.Changes != changes || lag.Age < time.Hour {
		t.Errorf("lag %+v, %v", lag, err)
	}
	if lag, err := writer.Lag(t.Context()); err != nil || lag.Changes != 0 || lag.Age >= time.Hour {
		t.Errorf("lag of who wrote %+v, %v", lag, err)
	}
	if err := behind.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lag, err := behind.Lag(t.Context()); err != nil || lag.Changes != 0 || lag.Age >= time.Hour {
		t.Errorf("lag after a look %+v, %v", lag, err)
	}
	server.Stop(t)
	behind.ConfirmAt(time.Now().Add(-time.Hour))
	if lag, err := behind.Lag(t.Context()); err == nil || lag.Age < time.Hour {
		t.Errorf("lag without a database %+v, %v", lag, err)
	}
}

// Who has not reached a shared database for too long says so, until it has; a
// database of one process is never stale.
func TestFresh(t *testing.T) {
	onEach(t, func(t *testing.T, again func() *sql.DB) {
		s := open(t, again())
		if err := s.Fresh(); err != nil {
			t.Fatal(err)
		}
		until, doubted, err := s.Freshness()
		if ends := time.Until(until); err != nil || until.IsZero() == s.Shared() || ends > sqlstore.MaxStale {
			t.Errorf("fresh until %v, %v", until, err)
		}
		s.ConfirmAt(time.Now().Add(-sqlstore.MaxStale - time.Second))
		var stale *sqlstore.StaleError
		if err := s.Fresh(); errors.As(err, &stale) != s.Shared() {
			t.Errorf("not heard of for too long: %v", err)
		}
		until, answered, err := s.Freshness()
		if errors.As(err, &stale) != s.Shared() || !until.IsZero() {
			t.Errorf("not heard of for too long: until %v, %v", until, err)
		}
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Fresh(); s.Shared() && err != nil {
			t.Errorf("heard of again: %v", err)
		}
		if s.Shared() {
			<-answered // or it waits for ever
		}
		select {
		case <-doubted:
			t.Error("doubted what is as it was left")
		default:
		}
	})
}
