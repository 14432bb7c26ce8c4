package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTemplateCommands(t *testing.T) {
	r := newRegistrar(t)
	r.knows("b.org")
	create := []string{"entry", "template", "create", "--id", "users", "--spiffe-id", "spiffe://example.org/user/{unix:user}", "--parent-id", "spiffe://example.org/node/a",
		"--selector", "unix:uid:1000", "--selector", "unix:group:staff", "--x509-svid-ttl", "10m", "--dns", "{unix:user}.example.org", "--federates-with", "b.org", "--hint", "internal"}
	info := func(args ...string) (made entryInfo) {
		t.Helper()
		if err := json.Unmarshal([]byte(r.ok(append(args, "-o", "json")...)), &made); err != nil {
			t.Fatal(err)
		}
		return made
	}
	made := info(create...)
	want := entryInfo{
		ID: "users", SPIFFEID: "spiffe://example.org/user/{unix:user}", ParentID: "spiffe://example.org/node/a",
		Selectors: []string{"unix:group:staff", "unix:uid:1000"}, X509SVIDTTL: 600, DNSNames: []string{"{unix:user}.example.org"}, FederatesWith: []string{"b.org"}, Hint: "internal",
		CreatedAt: made.CreatedAt, Revision: made.Revision,
	}
	if diff := cmp.Diff(want, made); diff != "" || made.CreatedAt == nil {
		t.Error(diff)
	}
	if code, out, errs := r.run(create...); code != 1 || out != "" || !strings.Contains(errs, "entry template create: template users has the same") {
		t.Errorf("again: exit %d, %q, %q", code, out, errs)
	}
	if text := r.ok("entry", "template", "show", "users"); !strings.Contains(text, "x509-svid ttl   10m0s") || !strings.Contains(text, "spiffe id       spiffe://example.org/user/{unix:user}") {
		t.Errorf("show:\n%s", text)
	}
	if diff := cmp.Diff(made, info("entry", "template", "show", "users")); diff != "" {
		t.Error(diff)
	}

	// What is left out stays; an empty list is none.
	want.X509SVIDTTL, want.JWTSVIDTTL, want.Selectors, want.DNSNames, want.Hint = 600, 60, []string{"unix:gid:5"}, nil, ""
	changed := info("entry", "template", "update", "users", "--jwt-svid-ttl", "1m", "--selector", "unix:gid:5", "--dns", "", "--hint", "")
	if want.Revision = changed.Revision; changed.Revision <= made.Revision {
		t.Errorf("revision %d after %d", changed.Revision, made.Revision)
	}
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Error(diff)
	}
	code, _, errs := r.run("entry", "template", "create", "--spiffe-id", "spiffe://example.org/group/{unix:group}", "--parent-id", "spiffe://example.org/node/b")
	if code != 0 || !strings.HasPrefix(errs, "warning: variable {unix:group}: a process may have several") {
		t.Errorf("doubtful: exit %d, %q", code, errs)
	}
	var list struct{ Templates []entryInfo }
	if err := json.Unmarshal([]byte(r.ok("entry", "template", "list", "-o", "json")), &list); err != nil || len(list.Templates) != 2 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if table := r.ok("entry", "template", "list"); strings.Count(table, "\n") != 3 || !strings.HasPrefix(table, "TEMPLATE ") {
		t.Errorf("table:\n%s", table)
	}
	// They are no entries.
	if table := r.ok("entry", "list"); strings.Count(table, "\n") != 1 {
		t.Errorf("entries:\n%s", table)
	}
	if _, out, _ := r.run("__complete", "entry", "template", "show", ""); !strings.Contains(out, "users") {
		t.Errorf("completion: %s", out)
	}
	code, out, errs := r.run("entry", "template", "delete", "users", "no-such")
	if code != 1 || out != "deleted users\n" || !strings.Contains(errs, "no-such: template not found") {
		t.Errorf("delete: exit %d, %q, %q", code, out, errs)
	}
	if code, _, errs := r.run("entry", "template", "show", "users"); code != 1 || errs != "policyctl: entry template show users: template not found\n" {
		t.Errorf("show of nothing: exit %d, %q", code, errs)
	}
}

func TestTemplateCommandErrors(t *testing.T) {
	r := newRegistrar(t)
	create := func(more ...string) []string {
		return append([]string{"entry", "template", "create", "--parent-id", "spiffe://example.org/node/a", "--spiffe-id"}, more...)
	}
	for want, args := range map[string][]string{
		`required flag(s)`:                               {"entry", "template", "create"},
		`at least one of the flags`:                      {"entry", "template", "update", "x"},
		`template: spiffe_id: there is no variable`:      create("spiffe://example.org/user/root"),
		`template: spiffe_id: variable {unix}: want`:     create("spiffe://example.org/user/{unix}"),
		`template: selectors[1]: want TYPE:VALUE`:        create("spiffe://example.org/user/{unix:user}", "--selector", "unix:uid:1", "--selector", "uid"),
		`--selector is empty: want TYPE:VALUE`:           create("spiffe://example.org/user/{unix:user}", "--selector", "unix:uid:1", "--selector", ""),
		`--x509-svid-ttl 1.5s: want whole`:               create("spiffe://example.org/user/{unix:user}", "--x509-svid-ttl", "1500ms"),
		`entry template update x: template not found`:    {"entry", "template", "update", "x", "--hint", "y"},
		`template: dns_names[0]: "" is not a label of a`: create("spiffe://example.org/user/{unix:user}", "--dns", ".{unix:user}"),
	} {
		if code, out, errs := r.run(args...); code == 0 || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%v: exit %d, %q, %q; want %q", args, code, out, errs, want)
		}
	}
}
