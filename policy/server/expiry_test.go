package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

// TestExpiredDenialsAlarm: at activation when they have expired already, and
// when they expire, each once.
func TestExpiredDenialsAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := sqldb.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "writ.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var mu sync.Mutex
		var got []string
		full := false
		open := func() *Server {
			s, err := New(t.Context(), Config{
				DB: db, DecisionKey: key, AllowUnsigned: true, Log: slog.New(slog.DiscardHandler),
				Emit: func(_ context.Context, act identity.Act) error {
					if act.Kind == identity.ActAlarm {
						mu.Lock()
						defer mu.Unlock()
						if full {
							return errors.New("no room")
						}
						got = append(got, fmt.Sprintf("%v %s by %s", time.Since(start).Truncate(time.Hour), act.ObjectID, act.Actor))
					}
					return nil
				},
				Actor:  func(context.Context) string { return "ann" },
				PeerID: func(context.Context) (spiffeid.ID, error) { return spiffeid.ID{}, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		push := func(s *Server, more string) {
			t.Helper()
			at := func(d time.Duration) string { return start.Add(d).UTC().Format(time.RFC3339) }
			files, err := bundle.NewContent([]bundle.File{
				{Path: "data.json", Content: []byte(`{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`)},
				{Path: "rules.yaml", Content: []byte("service: orders\nrules:\n" +
					"  - {id: gone, action: deny, from: any, expires: " + at(-time.Hour) + "}\n" +
					"  - {id: allows, action: allow, from: any, expires: " + at(-time.Hour) + "}\n" +
					"  - {id: soon, action: deny, from: any, expires: " + at(10*time.Hour) + "}\n" +
					"  - {id: soon-too, action: deny, from: any, expires: " + at(10*time.Hour) + "}\n" +
					"  - {id: later, action: deny, from: any, expires: " + at(100*time.Hour) + "}\n" + more)},
			})
			if err != nil {
				t.Fatal(err)
			}
			archive, err := files.Archive(nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := (&adminService{Server: s}).Push(t.Context(), &policyv1.PushRequest{Bundle: archive})
			if err != nil || resp.Revision == nil {
				t.Fatal(resp, err)
			}
		}
		s := open()
		push(s, "")
		time.Sleep(11 * time.Hour)
		synctest.Wait()
		push(s, "  - {id: other, action: deny, from: any}\n") // Nothing again.
		time.Sleep(time.Hour)
		s.Close()
		s = open()
		if n := len(s.StandingAlarms()); n != 3 {
			t.Errorf("%d alarms stand after a restart, want 3", n)
		}
		// What cannot be put on record is not lost when a policy comes between.
		fill := func(is bool) { mu.Lock(); full = is; mu.Unlock() }
		fill(true)
		time.Sleep(time.Until(start.Add(100*time.Hour + time.Second)))
		synctest.Wait()
		fill(false)
		push(s, "  - {id: another, action: deny, from: any}\n")
		time.Sleep(100 * time.Hour)
		synctest.Wait()
		s.Close()
		want := []string{"0s gone by ann", "10h0m0s soon by writd", "10h0m0s soon-too by writd", "100h0m0s later by writd"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("alarms (-want +got):\n%s", diff)
		}
	})
}
