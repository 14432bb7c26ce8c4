package issuer_test

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/withheldv1"
	"github.com/writ-dev/writ/internal/sqldb"
)

// byHand runs a statement in the issuer's database as another process would.
func (w *world) byHand(statements ...string) {
	w.t.Helper()
	db, err := sqldb.OpenSQLite(w.t.Context(), w.file)
	must(w.t, err)
	defer db.Close()
	for _, s := range statements {
		_, err = db.ExecContext(w.t.Context(), s)
		must(w.t, err)
	}
}

func detail(act identity.Act, name string) string {
	for _, d := range act.Details {
		if d[0] == name {
			return d[1]
		}
	}
	return ""
}

// An agent gets nothing that somebody wrote into the database, and keeps nothing
// that was changed there; an administrator sees it, and says what it is to be.
func TestWithheld(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := w.join(w.token("/node/a"))
	made := w.create(entry("/svc/one", "/node/a", "uid:1"), entry("/svc/two", "/node/a", "uid:2"), entry("/svc/three", "/node/a", "uid:3"))
	created := w.did("entry", "created")
	for n, act := range created[len(created)-3:] {
		digest := w.store.Index().Entry(made[n].Id).Digest()
		if detail(act, "digest") != hex.EncodeToString(digest[:]) {
			t.Errorf("entry %d has digest %x, on record is %+v", n, digest, act)
		}
	}
	authorized := func() (paths []string) {
		t.Helper()
		resp, err := a.entries().GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{})
		must(t, err)
		for _, e := range resp.Entries {
			paths = append(paths, e.SpiffeId.Path)
		}
		slices.Sort(paths)
		return paths
	}
	want := func(paths ...string) {
		t.Helper()
		if got := authorized(); !slices.Equal(got, paths) {
			t.Errorf("authorized for %q, want %q", got, paths)
		}
	}
	want("/node/a", "/svc/one", "/svc/three", "/svc/two")
	w.byHand(`INSERT INTO registry_entries SELECT 'slipped-in', replace(spiffe_id, 'one', 'root'), parent_id, selectors, mark, x509_svid_ttl, jwt_svid_ttl, federates_with, dns_names, 1, downstream, store_svid, hint, expires_at, revision, created_at, mark FROM registry_entries WHERE id = '`+made[0].Id+`'`,
		`UPDATE registry_entries SET admin = 1 WHERE id = '`+made[0].Id+`'`, `DELETE FROM registry_entries WHERE id = '`+made[1].Id+`'`)
	for range 2 {
		must(t, w.store.Check(ctx))
	}
	want("/node/a", "/svc/three")
	alarms := w.did("entry", "withheld")
	if len(alarms) != 3 || w.issuer.RegistryAlarms() != 3 {
		t.Fatalf("%d alarms, %d counted: %+v", len(alarms), w.issuer.RegistryAlarms(), alarms)
	}
	for _, act := range alarms {
		if act.Kind != identity.ActAlarm || act.Reason == "" {
			t.Errorf("alarm %+v", act)
		}
	}
	admin := withheldv1.NewAdminClient(w.admin)
	list, err := admin.List(ctx, &withheldv1.ListRequest{})
	must(t, err)
	held := map[string]*withheldv1.Entry{}
	for _, e := range list.Entries {
		held[e.Id] = e
	}
	if e := held[made[0].Id]; len(held) != 3 || !e.GetRow().GetAdmin() || len(e.GetWantDigest()) != 32 || bytes.Equal(e.Digest, e.WantDigest) || held[made[1].Id].GetCause() != "missing" {
		t.Fatalf("withheld: %v", list)
	}
	_, err = withheldv1.NewAdminClient(a.conn).List(ctx, &withheldv1.ListRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("an agent lists them: %v", err)
	}

	accept := func(id string, digest []byte) codes.Code {
		t.Helper()
		resp, err := admin.Accept(ctx, &withheldv1.AcceptRequest{Items: []*withheldv1.AcceptRequest_Item{{Id: id, Digest: digest}}})
		must(t, err)
		return codes.Code(resp.Results[0].Code)
	}
	for _, c := range []struct {
		id     string
		digest []byte
		want   codes.Code
	}{
		{"unknown", nil, codes.NotFound},
		{made[2].Id, nil, codes.FailedPrecondition},
		{made[0].Id, make([]byte, 32), codes.Aborted},
		{made[1].Id, make([]byte, 32), codes.FailedPrecondition},
		{made[1].Id, nil, codes.OK},
		{made[0].Id, held[made[0].Id].Digest, codes.OK},
	} {
		if got := accept(c.id, c.digest); got != c.want {
			t.Errorf("accept %s: %v, want %v", c.id, got, c.want)
		}
	}
	w.deleteEntry("slipped-in")
	must(t, w.store.Check(ctx))
	want("/node/a", "/svc/one", "/svc/three")
	accepted := w.did("entry", "accepted")
	digest := w.store.Index().Entry(made[0].Id).Digest()
	if len(accepted) != 1 || detail(accepted[0], "digest") != hex.EncodeToString(digest[:]) || detail(accepted[0], "row_digest") != hex.EncodeToString(held[made[0].Id].Digest) {
		t.Errorf("accepted: %+v", accepted)
	}
	if list, err := admin.List(ctx, &withheldv1.ListRequest{}); err != nil || len(list.Entries) != 0 {
		t.Errorf("still withheld: %v, %v", list, err)
	}
	if len(w.did("entry", "withheld")) != 3 {
		t.Error("another alarm")
	}
}

// What could not be made cannot be accepted.
func TestAcceptRefuses(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	made := w.create(entry("/svc/one", "/node/a", "uid:1"))
	w.byHand(`UPDATE registry_entries SET spiffe_id = 'spiffe://other.org/svc/one' WHERE id = '` + made[0].Id + `'`)
	must(t, w.store.Check(ctx))
	admin := withheldv1.NewAdminClient(w.admin)
	list, err := admin.List(ctx, &withheldv1.ListRequest{})
	must(t, err)
	resp, err := admin.Accept(ctx, &withheldv1.AcceptRequest{Items: []*withheldv1.AcceptRequest_Item{{Id: made[0].Id, Digest: list.Entries[0].Digest}}})
	must(t, err)
	if codes.Code(resp.Results[0].Code) != codes.InvalidArgument {
		t.Errorf("a name of another trust domain: %v", resp)
	}
	// Not on record, not accepted.
	w.byHand(`UPDATE registry_entries SET spiffe_id = 'spiffe://example.org/svc/won' WHERE id = '` + made[0].Id + `'`)
	must(t, w.store.Check(ctx))
	list, err = admin.List(ctx, &withheldv1.ListRequest{})
	must(t, err)
	w.refuseActs(func(act identity.Act) bool { return act.Verb == "accepted" })
	if _, err := admin.Accept(ctx, &withheldv1.AcceptRequest{Items: []*withheldv1.AcceptRequest_Item{{Id: made[0].Id, Digest: list.Entries[0].Digest}}}); status.Code(err) != codes.Unavailable {
		t.Errorf("accepted off the record: %v", err)
	}
	if e := w.store.Index().Entry(made[0].Id); e != nil {
		t.Errorf("served: %+v", e)
	}
}
