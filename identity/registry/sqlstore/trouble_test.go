package sqlstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/pgtest"
)

// create makes an entry with that name, and about 4 KB.
func create(t *testing.T, s *sqlstore.Store, name string) error {
	t.Helper()
	return s.Update(t.Context(), func(tx *sqlstore.Tx) error {
		e := full()
		e.SPIFFEID = path("/svc/" + name)
		e.Hint = strings.Repeat("x", 4096)
		_, err := tx.CreateEntry(e)
		return err
	})
}

// A full disk refuses what does not fit, says so, and loses nothing; with room
// again everything goes on, without a restart.
func TestDatabaseFull(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to mount a small file system")
		}
		t.Skip("needs root, to mount a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	file := filepath.Join(dir, "writ.db")
	s := open(t, openDB(t, file))
	// Everything but a few pages is somebody else's.
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, bytes.Repeat([]byte{1}, 512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var refused error
	made := 0
	for refused == nil && made < 1000 {
		if refused = create(t, s, fmt.Sprint(made)); refused == nil {
			made++
		}
	}
	if refused == nil || !strings.Contains(refused.Error(), "full") {
		t.Fatalf("after %d entries: %v", made, refused)
	}
	t.Log(made, refused)
	if n := len(s.Index().Entries()); n != made {
		t.Errorf("%d entries in the index, %d were made", n, made)
	}
	turned, trouble := s.Writable()
	if trouble == nil || trouble.Is != "is full" {
		t.Errorf("Writable: %v", trouble)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	// Nobody writes, and it is found all the same.
	follow(t, s)
	<-turned
	if _, trouble := s.Writable(); trouble != nil {
		t.Errorf("Writable, with room again: %v", trouble)
	}
	if err := create(t, s, "after"); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	again := open(t, openDB(t, file))
	if diff := cmp.Diff(s.Index().Entries(), again.Index().Entries(), ignoreZone); diff != "" || len(again.Index().Entries()) != made+1 {
		t.Errorf("%d entries on disk, want %d: %s", len(again.Index().Entries()), made+1, diff)
	}
}

// A database that another program has locked is waited for, then refused with
// its reason, and then works.
func TestDatabaseLocked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "writ.db")
	s := open(t, openDB(t, file))
	other, err := openDB(t, file).Begin() // takes the write lock
	if err != nil {
		t.Fatal(err)
	}
	err = create(t, s, "locked")
	if err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("locked: %v", err)
	}
	if n := len(s.Index().Entries()); n != 0 {
		t.Errorf("%d entries in the index", n)
	}
	turned, trouble := s.Writable()
	if trouble == nil || trouble.Is != "is locked by another process" {
		t.Errorf("Writable: %v", trouble)
	}
	if err := other.Rollback(); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	<-turned
	if err := create(t, s, "free"); err != nil {
		t.Errorf("free again: %v", err)
	}
}

// follow runs s.Follow until the test ends.
func follow(t *testing.T, s *sqlstore.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	following.Go(func() { _ = s.Follow(ctx, slog.New(slog.DiscardHandler)) })
	t.Cleanup(func() { cancel(); following.Wait() })
}

// What is written to files that nobody finds any more is lost with the process: it is
// refused, with an alarm, as long as they are not the ones that are open.
func TestDatabaseRemoved(t *testing.T) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		t.Run("writ.db"+suffix, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "writ.db")
			config := config(t)
			var alarms []identity.Act
			config.RetryInterval = time.Millisecond
			config.Record = func(_ context.Context, acts []identity.Act) error {
				alarms = append(alarms, acts...)
				return nil
			}
			s, err := sqlstore.Open(t.Context(), openDB(t, file), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			if err := create(t, s, "before"); err != nil {
				t.Fatal(err)
			}
			alarms = nil
			gone := file + suffix
			if err := os.Rename(gone, gone+".away"); err != nil {
				t.Fatal(err)
			}
			for n, put := range []func() error{
				func() error { return nil },
				func() error { return os.WriteFile(gone, nil, 0o600) }, // another in its place
			} {
				if err := put(); err != nil {
					t.Fatal(err)
				}
				err := create(t, s, fmt.Sprint("lost", n))
				if trouble := sqlstore.TroubleOf(err); trouble == nil || !trouble.Lost {
					t.Fatalf("write %d to a file that is gone: %v", n, err)
				}
			}
			turned, trouble := s.Writable()
			if trouble == nil || len(alarms) != 1 || alarms[0].Kind != identity.ActAlarm || alarms[0].ObjectID != file {
				t.Errorf("%v, alarms %v", trouble, alarms)
			}
			if n := len(s.Index().Entries()); n != 1 {
				t.Errorf("%d entries are served, 1 is there", n)
			}
			if err := os.Rename(gone+".away", gone); err != nil {
				t.Fatal(err)
			}
			follow(t, s)
			<-turned
			if err := create(t, s, "after"); err != nil {
				t.Errorf("put back: %v", err)
			}
		})
	}
}

// Between the begin of a transaction and its commit, too.
func TestDatabaseRemovedMeanwhile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "writ.db")
	db := openDB(t, file)
	if _, err := db.Exec(`CREATE TABLE a (n INTEGER)`); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`INSERT INTO a VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if trouble := sqlstore.TroubleOf(tx.Commit()); trouble == nil || !trouble.Lost {
		t.Errorf("committed: %v", trouble)
	}
	if _, err := db.Exec(`INSERT INTO a VALUES (2)`); sqlstore.TroubleOf(err) == nil {
		t.Errorf("written: %v", err)
	}
}

// A token that was used stays so when the server is killed the moment after.
func TestTokenSurvivesCrash(t *testing.T) {
	server := pgtest.New(t)
	dsn := server.Database(t)
	s := open(t, openPostgres(t, dsn))
	hash := registry.HashToken("once")
	update(t, s, func(tx *sqlstore.Tx) error {
		return tx.CreateJoinToken(registry.JoinToken{Hash: hash, ExpiresAt: now.Add(1e12)})
	})
	use := func() error {
		return s.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.UseJoinToken(hash); return err })
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	if err := use(); err == nil || errors.Is(err, registry.ErrTokenUsed) {
		t.Errorf("used at a server that is gone: %v", err)
	}
	server.Start(t)
	if err := use(); !errors.Is(err, registry.ErrTokenUsed) {
		t.Errorf("after the crash: %v", err)
	}
}
