package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/sqldb"
)

// registrar is a real issuer behind an admin socket in a data directory.
type registrar struct {
	t     *testing.T
	dir   string
	store *sqlstore.Store
}

func newRegistrar(t *testing.T) *registrar {
	t.Helper()
	r := &registrar{t: t, dir: t.TempDir()}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	emit := func(context.Context, identity.Act) error { return nil }
	db, err := sqldb.OpenSQLite(t.Context(), filepath.Join(r.dir, "writ.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if r.store, err = sqlstore.Open(t.Context(), db, sqlstore.Config{KeyFile: filepath.Join(r.dir, "registry.key"), Record: func(context.Context, []identity.Act) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	authorities, err := ca.Open(t.Context(), ca.Config{TrustDomain: td, Keys: &keys.Memory{}, Journal: r.store, Emit: emit})
	if err != nil {
		t.Fatal(err)
	}
	iss, err := issuer.New(issuer.Config{TrustDomain: td, Store: r.store, CA: authorities, Emit: emit})
	if err != nil {
		t.Fatal(err)
	}
	serveAdmin(t, r.dir, func(s *grpc.Server) {
		iss.Register(s, func(context.Context) (issuer.Caller, error) { return issuer.LocalCaller(0), nil })
	})
	return r
}

// run is policyctl with these three commands, whatever else it has.
func (r *registrar) run(args ...string) (code int, stdout, stderr string) {
	r.t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
	root := newRootCmd(a)
	if !hasCommand(root, "entry") {
		root.AddCommand(newEntryCmd(a), newTokenCmd(a), newAgentCmd(a))
	}
	// Completion takes the last argument for the unfinished word.
	at := 0
	if args[0] == "__complete" {
		at = 1
	}
	code = execute(r.t.Context(), root, slices.Insert(slices.Clone(args), at, "--data-dir", r.dir))
	return code, out.String(), errs.String()
}

func (r *registrar) ok(args ...string) string {
	r.t.Helper()
	code, out, errs := r.run(args...)
	if code != 0 {
		r.t.Fatalf("%v: exit %d: %s", args, code, errs)
	}
	return out
}

func TestEntryCommands(t *testing.T) {
	r := newRegistrar(t)
	create := []string{"entry", "create", "--spiffe-id", "spiffe://example.org/svc/web", "--parent-id", "spiffe://example.org/node/a",
		"--selector", "unix:uid:1000", "--selector", "unix:path:/usr/bin/web", "--x509-svid-ttl", "10m", "--dns", "web", "--hint", "internal"}
	var made entryInfo
	if err := json.Unmarshal([]byte(r.ok(append(create, "-o", "json")...)), &made); err != nil {
		t.Fatal(err)
	}
	want := entryInfo{
		ID: made.ID, SPIFFEID: "spiffe://example.org/svc/web", ParentID: "spiffe://example.org/node/a",
		Selectors: []string{"unix:path:/usr/bin/web", "unix:uid:1000"}, X509SVIDTTL: 600, DNSNames: []string{"web"}, Hint: "internal",
		CreatedAt: made.CreatedAt, Revision: made.Revision, Digest: made.Digest,
	}
	if diff := cmp.Diff(want, made); diff != "" || made.ID == "" {
		t.Error(diff)
	}
	if code, out, errs := r.run(create...); code != 1 || out != "" || !strings.Contains(errs, "entry "+made.ID+" has the same") {
		t.Errorf("again: exit %d, %q, %q", code, out, errs)
	}
	if text := r.ok("entry", "show", made.ID); !strings.Contains(text, "x509-svid ttl  10m0s") || !strings.Contains(text, "selector       unix:uid:1000") {
		t.Errorf("show:\n%s", text)
	}
	r.ok("entry", "create", "--spiffe-id", "spiffe://example.org/svc/db", "--parent-id", "spiffe://example.org/node/b", "--selector", "unix:uid:2")
	for filter, n := range map[string]int{
		"": 2, "--parent-id=spiffe://example.org/node/a": 1, "--spiffe-id=spiffe://example.org/svc/db": 1,
		"--selector=unix:uid:1000": 1, "--selector=unix:uid:3": 0, "--hint=internal": 1, "--hint=": 1,
	} {
		args := []string{"entry", "list", "-o", "json"}
		if filter != "" {
			args = append(args, filter)
		}
		var list struct{ Entries []entryInfo }
		if err := json.Unmarshal([]byte(r.ok(args...)), &list); err != nil || list.Entries == nil || len(list.Entries) != n {
			t.Errorf("list %s: %d entries, want %d, %v", filter, len(list.Entries), n, err)
		}
	}
	if table := r.ok("entry", "list"); strings.Count(table, "\n") != 3 || !strings.HasPrefix(table, "ENTRY ") {
		t.Errorf("table:\n%s", table)
	}
	if _, out, _ := r.run("__complete", "entry", "show", ""); !strings.Contains(out, made.ID) {
		t.Errorf("completion: %s", out)
	}
	code, out, errs := r.run("entry", "delete", made.ID, "no-such")
	if code != 1 || out != "deleted "+made.ID+"\n" || !strings.Contains(errs, "no-such: entry not found") {
		t.Errorf("delete: exit %d, %q, %q", code, out, errs)
	}
	if code, _, errs := r.run("entry", "show", made.ID); code != 1 || errs != "policyctl: entry show "+made.ID+": entry not found\n" {
		t.Errorf("show of nothing: exit %d, %q", code, errs)
	}
}

func TestEntryCommandErrors(t *testing.T) {
	r := newRegistrar(t)
	base := []string{"entry", "create", "--parent-id", "spiffe://example.org/node/a"}
	for want, args := range map[string][]string{
		`required flag(s)`:                  {"entry", "create"},
		`--spiffe-id "web" is not a`:        append(base, "--spiffe-id", "web", "--selector", "unix:uid:1"),
		`--selector "uid": want TYPE:VALUE`: append(base, "--spiffe-id", "spiffe://example.org/a", "--selector", "uid"),
		`--x509-svid-ttl 1.5s: want whole`:  append(base, "--spiffe-id", "spiffe://example.org/a", "--selector", "unix:uid:1", "--x509-svid-ttl", "1500ms"),
		`x509_svid_ttl: 5 seconds, want at`: append(base, "--spiffe-id", "spiffe://example.org/a", "--selector", "unix:uid:1", "--x509-svid-ttl", "5s"),
		`trust domain is "other.org", want`: append(base, "--spiffe-id", "spiffe://other.org/a", "--selector", "unix:uid:1"),
		`--ttl -1s is negative`:             {"token", "create", "--ttl", "-1s"},
		`names under /spire/ belong`:        {"token", "create", "--spiffe-id", "spiffe://example.org/spire/server"},
		`"x" is not the SPIFFE ID of an`:    {"agent", "ban", "x"},
		`agent not found`:                   {"agent", "evict", "spiffe://example.org/spire/agent/join_token/x"},
		`which begins with /spire/agent/`:   {"agent", "ban", "spiffe://example.org/svc/web"},
	} {
		code, out, errs := r.run(args...)
		if code != 1 || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%v: exit %d, stdout %q, stderr %q; want %q", args, code, out, errs, want)
		}
	}
}

// What somebody wrote into the database is shown as such, and is accepted or
// deleted.
func TestWithheldEntries(t *testing.T) {
	r := newRegistrar(t)
	create := func(name string) (e entryInfo) {
		t.Helper()
		out := r.ok("entry", "create", "--spiffe-id", "spiffe://example.org/svc/"+name, "--parent-id", "spiffe://example.org/node/a", "--selector", "unix:uid:1", "-o", "json")
		if err := json.Unmarshal([]byte(out), &e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	a, b, c := create("a"), create("b"), create("c")
	if digest := r.store.Index().Entry(a.ID).Digest(); a.Digest != hex.EncodeToString(digest[:]) {
		t.Errorf("digest %s, want %x", a.Digest, digest)
	}
	if out := r.ok("entry", "list", "--withheld"); out != "every entry is as it was written\n" {
		t.Errorf("nothing is withheld: %q", out)
	}
	db, err := sqldb.OpenSQLite(t.Context(), filepath.Join(r.dir, "writ.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for id, statement := range map[string]string{
		a.ID: `UPDATE registry_entries SET hint = 'mine' WHERE id = ?`, b.ID: `DELETE FROM registry_entries WHERE id = ?`, c.ID: `UPDATE registry_entries SET admin = 1 WHERE id = ?`,
	} {
		if _, err := db.Exec(statement, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.store.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := r.run("entry", "list"); code != 0 || !strings.Contains(errs, "3 entries are not served") {
		t.Errorf("list: exit %d, %q", code, errs)
	}
	out := r.ok("entry", "list", "--withheld")
	for _, want := range []string{a.ID, "unmarked: its row in the database was not written by the issuer", "in the database: hint", "mine", "missing: its row", a.Digest} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	var list struct{ Withheld []withheldInfo }
	if err := json.Unmarshal([]byte(r.ok("entry", "list", "--withheld", "-o", "json")), &list); err != nil || len(list.Withheld) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	if code, _, errs := r.run("entry", "accept"); code != 1 || !strings.Contains(errs, "name entries, or give --all") {
		t.Errorf("accept nothing: exit %d, %q", code, errs)
	}
	if code, _, errs := r.run("entry", "accept", "x"); code != 1 || !strings.Contains(errs, "x: it is not withheld") {
		t.Errorf("accept what is not: exit %d, %q", code, errs)
	}
	if out := r.ok("entry", "accept", a.ID); out != "accepted "+a.ID+": spiffe://example.org/svc/a for unix:uid:1 below spiffe://example.org/node/a\n" {
		t.Errorf("accept says %q", out)
	}
	r.ok("entry", "delete", c.ID)
	if out := r.ok("entry", "accept", "--all"); out != "deleted "+b.ID+"\n" {
		t.Errorf("accept all says %q", out)
	}
	if out := r.ok("entry", "show", a.ID); !strings.Contains(out, "mine") {
		t.Errorf("accepted as\n%s", out)
	}
	if out := r.ok("entry", "list", "--withheld"); out != "every entry is as it was written\n" {
		t.Errorf("still withheld: %q", out)
	}
}

func TestTokenCommand(t *testing.T) {
	r := newRegistrar(t)
	token := strings.TrimSuffix(r.ok("token", "create"), "\n")
	if len(token) < 22 || strings.ContainsAny(token, " \n") {
		t.Errorf("stdout is %q, want the token alone", token)
	}
	file := filepath.Join(t.TempDir(), "join.token")
	code, out, errs := r.run("token", "create", "--file", file, "--spiffe-id", "spiffe://example.org/node/a", "--ttl", "1m")
	if code != 0 || out != "" || !strings.Contains(errs, "wrote a join token to "+file) {
		t.Fatalf("exit %d, %q, %q", code, out, errs)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if strings.Contains(errs, strings.TrimSpace(string(content))) {
		t.Error("the token is on stderr")
	}
	// It is the token that the store knows, with its alias and its time.
	err = r.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
		kept, err := tx.UseJoinToken(registry.HashToken(strings.TrimSpace(string(content))))
		if kept.Alias.String() != "spiffe://example.org/node/a" || time.Until(kept.ExpiresAt) > time.Minute {
			t.Errorf("kept %+v", kept)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	var info tokenInfo
	if err := json.Unmarshal([]byte(r.ok("token", "create", "-o", "json")), &info); err != nil || info.Token == "" || info.ExpiresAt.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestAgentCommands(t *testing.T) {
	r := newRegistrar(t)
	id := "spiffe://example.org/spire/agent/join_token/abc"
	err := r.store.Update(t.Context(), func(tx *sqlstore.Tx) error {
		return tx.PutAgent(registry.Agent{ID: spiffeid.RequireFromString(id), AttestationType: "join_token", Serial: "7", ExpiresAt: time.Now().Add(time.Hour)})
	})
	if err != nil {
		t.Fatal(err)
	}
	if table := r.ok("agent", "list"); !strings.Contains(table, id+"  join_token") || !strings.Contains(table, "active") {
		t.Errorf("table:\n%s", table)
	}
	if _, out, _ := r.run("__complete", "agent", "ban", ""); !strings.Contains(out, id) {
		t.Errorf("completion: %s", out)
	}
	if out := r.ok("agent", "ban", id); out != "banned "+id+"\n" {
		t.Errorf("ban says %q", out)
	}
	var list struct{ Agents []agentInfo }
	if err := json.Unmarshal([]byte(r.ok("agent", "list", "-o", "json")), &list); err != nil || len(list.Agents) != 1 || !list.Agents[0].Banned {
		t.Errorf("%+v, %v", list, err)
	}
	if out := r.ok("agent", "evict", id, "-o", "json"); !strings.Contains(out, `"done": "evicted"`) {
		t.Errorf("evict says %q", out)
	}
	if out := r.ok("agent", "list", "-o", "json"); !strings.Contains(out, `"agents": []`) {
		t.Errorf("empty list is %q", out)
	}
}
