package server_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// backup copies the database as it is now.
func (p *plane) backup() string {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "backup.db")
	if _, err := p.config.DB.ExecContext(p.t.Context(), `VACUUM INTO ?`, file); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// restore goes on with such a copy, as a control plane after a loss does.
func (p *plane) restore(file string) {
	p.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	file = filepath.Join(p.t.TempDir(), "restored.db")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	db, err := sqldb.OpenSQLite(p.t.Context(), file)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { db.Close() })
	p.config.DB = db
	p.start()
}

func TestRestoredPlane(t *testing.T) {
	p := newPlane(t, func(c *server.Config) { c.Heartbeat = 5 * time.Millisecond })
	dir := t.TempDir()
	_, activated, stop := p.follower(dir, ordersID)
	p.push(sources("GET"))
	p.push(sources("PUT"))
	saved := p.backup()
	p.push(sources("POST"))
	for (<-activated).Revision.Number != 3 {
	}
	stop()

	p.restore(saved)
	_, activated, stop = p.follower(dir, ordersID)
	if kept := <-activated; kept.Revision.Number != 3 {
		t.Fatalf("kept: %v", kept.Revision)
	}
	p.await(func(r []server.PeerReport) bool { return len(r) == 1 && r[0].Report.Refused != "" })
	ids, newest, err := p.server.Ahead(t.Context())
	if err != nil || len(ids) != 1 || ids[0].String() != ordersID || newest.Number != 3 {
		t.Errorf("ahead: %v %v", ids, newest)
	}
	resp, err := p.admin.RaiseEpoch(t.Context(), &policyv1.RaiseEpochRequest{Reason: "restored"})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Revision.Epoch != 2 || resp.Revision.Number != 3 {
		t.Errorf("raised: %v", resp.Revision)
	}
	taken := <-activated
	if taken.Revision.Epoch != 2 || verdict(taken.Decider, request("orders", "PUT")) != policy.Allow {
		t.Errorf("the follower runs %v", taken.Revision)
	}
	p.await(func(r []server.PeerReport) bool {
		return r[0].Report.Refused == "" && r[0].Report.Revision.GetEpoch() == 2
	})
	if ids, _, err := p.server.Ahead(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("still ahead: %v, %v", ids, err)
	}

	// Once more from the same backup: what was heard of counts.
	p.push(sources("PATCH"))
	if pushed := <-activated; pushed.Revision.Epoch != 2 || pushed.Revision.Number != 4 {
		t.Errorf("pushed after it: %v", pushed.Revision)
	}
	stop()
	p.restore(saved)
	_, activated, _ = p.follower(dir, ordersID)
	<-activated
	p.await(func(r []server.PeerReport) bool { return len(r) == 1 && r[0].Report.Refused != "" })
	if resp, err = p.admin.RaiseEpoch(t.Context(), &policyv1.RaiseEpochRequest{Reason: "again"}); err != nil || resp.Revision.Epoch != 3 {
		t.Fatalf("raised again: %v, %v", resp, err)
	}
	if taken = <-activated; taken.Revision.Epoch != 3 {
		t.Errorf("the follower runs %v", taken.Revision)
	}
}

// A rollout that ran when the backup was made does not stand in the way.
func TestRestoredRollout(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	if _, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("PUT"), p.publisher), Rollout: &policyv1.Rollout{Percent: 10}}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.admin.RaiseEpoch(t.Context(), &policyv1.RaiseEpochRequest{Reason: "x"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("raised during a rollout: %v", err)
	}
	p.restore(p.backup())
	raised, err := p.server.Restored(t.Context(), "restored")
	if err != nil || !raised {
		t.Fatalf("raised %v, %v", raised, err)
	}
	if r := p.server.Active().Revision; r.Epoch != 2 || r.Number != 4 || r.Digest != sources("GET").Digest() {
		t.Errorf("in force: %v", r)
	}
}

func TestRaiseEpoch(t *testing.T) {
	p := newPlane(t, nil)
	ctx := t.Context()
	if resp, err := p.admin.RaiseEpoch(ctx, &policyv1.RaiseEpochRequest{Epoch: 2, Reason: "nothing yet"}); err != nil || resp.Revision != nil {
		t.Errorf("without a policy: %v, %v", resp, err)
	}
	if first := p.push(sources("GET")); first.Revision.Epoch != 2 {
		t.Errorf("the first: %v", first.Revision)
	}
	for _, epoch := range []uint64{1, 2, 1 << 50} {
		if _, err := p.admin.RaiseEpoch(ctx, &policyv1.RaiseEpochRequest{Epoch: epoch}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
	if _, err := p.admin.RaiseEpoch(ctx, &policyv1.RaiseEpochRequest{Reason: strings.Repeat("x", 2000)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a long reason: %v", err)
	}
	p.emitFail = errors.New("no room")
	if _, err := p.admin.RaiseEpoch(ctx, &policyv1.RaiseEpochRequest{Epoch: 9, Reason: "x"}); err == nil {
		t.Error("raised off the record")
	}
	p.emitFail = nil
	resp, err := p.admin.RaiseEpoch(ctx, &policyv1.RaiseEpochRequest{Epoch: 7, Reason: "for good"})
	if err != nil || resp.Revision.Epoch != 7 || resp.Revision.Number != 2 {
		t.Fatalf("raised: %v, %v", resp, err)
	}
	list, err := p.admin.List(ctx, &policyv1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Epochs) != 2 || list.Epochs[0].Epoch != 7 || list.Epochs[0].From.GetNumber() != 1 || list.Epochs[0].Reason != "for good" {
		t.Fatalf("epochs: %v", list.Epochs)
	}
	statement, err := bundle.OpenEpochStatement(list.Epochs[0].Statement, p.keys)
	if err != nil {
		t.Fatal(err)
	}
	from := policy.Revision{Epoch: 2, Number: 1, Digest: sources("GET").Digest()}
	want := &bundle.EpochStatement{Purpose: "writ-policy-epoch", Epoch: 7, From: from.String(), Actor: "unix:uid:1000", Reason: "for good",
		Raised: p.config.Clock()}
	if diff := cmp.Diff(want, statement); diff != "" {
		t.Errorf("statement (-want +got):\n%s", diff)
	}
	if _, err := bundle.OpenEpochStatement(list.Epochs[0].Statement, keysOf(t, p.publisher)); err == nil {
		t.Error("the statement verifies with another key")
	}
	act := p.acts[len(p.acts)-2]
	if act.Kind != identity.ActAlarm || act.Verb != "raised" || act.ObjectID != "7" {
		t.Errorf("on record: %+v", act)
	}
	p.start()
	if r := p.server.Active().Revision; r.Epoch != 7 || r.Number != 2 {
		t.Errorf("after a restart: %v", r)
	}
}

// TestEpochsAreNotUsedUp: the highest epoch that a person may name leaves room
// for restores.
func TestEpochsAreNotUsedUp(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	for _, epoch := range []uint64{1 << 40, 0, 0} {
		if _, err := p.admin.RaiseEpoch(t.Context(), &policyv1.RaiseEpochRequest{Epoch: epoch, Reason: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if raised, err := p.server.Restored(t.Context(), "x"); !raised || err != nil {
		t.Errorf("a restore: %v, %v", raised, err)
	}
	if r := p.server.Active().Revision; r.Epoch != 1<<40+3 {
		t.Errorf("in force: %v", r)
	}
}

func TestSlice(t *testing.T) {
	p := newPlane(t, nil)
	get := func(id string, number uint64) (*bundle.Slice, error) {
		resp, err := p.admin.Slice(t.Context(), &policyv1.SliceRequest{SpiffeId: id, Number: number})
		if err != nil {
			return nil, err
		}
		return bundle.OpenSlice(resp.Bundle, p.keys, spiffeid.RequireFromString(id))
	}
	if _, err := get(ordersID, 0); status.Code(err) != codes.NotFound {
		t.Errorf("without a policy: %v", err)
	}
	p.push(sources("GET"))
	p.push(sources("PUT"))
	for number, method := range map[uint64]string{0: "PUT", 1: "GET", 2: "PUT"} {
		slice, err := get(ordersID, number)
		if err != nil {
			t.Fatal(err)
		}
		cutter, err := bundle.NewCutter(sources(method))
		if err != nil {
			t.Fatal(err)
		}
		revision := slice.Revision
		revision.Digest = sources(method).Digest()
		rebuilt, err := cutter.Cut(bundle.SliceConfig{Revision: revision, Activated: slice.Activated, SPIFFEID: slice.SPIFFEID})
		if err != nil {
			t.Fatal(err)
		}
		if rebuilt.Program, err = compile.Slice(t.Context(), sources(method), rebuilt); err != nil {
			t.Fatal(err)
		}
		if slice.Program == nil {
			t.Errorf("revision %d: the slice has no compiled form", number)
		}
		if found := slice.Compare(rebuilt); len(found) > 0 {
			t.Errorf("revision %d: %v", number, found)
		}
		other := sources("DELETE")
		if cutter, err = bundle.NewCutter(other); err != nil {
			t.Fatal(err)
		}
		revision.Digest = other.Digest()
		if rebuilt, err = cutter.Cut(bundle.SliceConfig{Revision: revision, SPIFFEID: slice.SPIFFEID}); err != nil {
			t.Fatal(err)
		}
		rebuilt.Program = slice.Program
		var files []string
		for _, d := range slice.Compare(rebuilt) {
			files = append(files, d.File)
		}
		if diff := cmp.Diff([]string{".manifest", "orders.rego"}, files); diff != "" {
			t.Errorf("revision %d beside other sources (-want +got):\n%s", number, diff)
		}
	}
	if _, err := get(ordersID, 9); status.Code(err) != codes.NotFound {
		t.Errorf("revision 9: %v", err)
	}
	if _, err := p.admin.Slice(context.Background(), &policyv1.SliceRequest{SpiffeId: "orders"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no SPIFFE ID: %v", err)
	}
}
