package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Each flag changes its field and no other, and what is empty empties it.
func TestEntryUpdate(t *testing.T) {
	r := newRegistrar(t)
	r.knows("partner.org")
	read := func(out string) (e entryInfo) {
		t.Helper()
		if err := json.Unmarshal([]byte(out), &e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	now := read(r.ok("entry", "create", "-o", "json", "--spiffe-id", "spiffe://example.org/svc/web", "--parent-id", "spiffe://example.org/node/a",
		"--selector", "unix:uid:1000", "--selector", "unix:path:/usr/bin/web", "--x509-svid-ttl", "10m", "--jwt-svid-ttl", "1m", "--dns", "web", "--dns", "www",
		"--federates-with", "partner.org", "--hint", "internal", "--expires-in", "1h"))
	id := now.ID
	for _, step := range []struct {
		flags  []string
		change func(*entryInfo)
	}{
		{[]string{"--x509-svid-ttl", "20m"}, func(e *entryInfo) { e.X509SVIDTTL = 1200 }},
		{[]string{"--jwt-svid-ttl=0s", "--hint="}, func(e *entryInfo) { e.JWTSVIDTTL, e.Hint = 0, "" }},
		{[]string{"--selector", "unix:uid:7"}, func(e *entryInfo) { e.Selectors = []string{"unix:uid:7"} }},
		{[]string{"--dns", "one", "--federates-with", ""}, func(e *entryInfo) { e.DNSNames, e.FederatesWith = []string{"one"}, nil }},
		{[]string{"--dns", ""}, func(e *entryInfo) { e.DNSNames = nil }},
		{[]string{"--spiffe-id", "spiffe://example.org/svc/api", "--parent-id", "spiffe://example.org/node/b"}, func(e *entryInfo) {
			e.SPIFFEID, e.ParentID = "spiffe://example.org/svc/api", "spiffe://example.org/node/b"
		}},
		{[]string{"--admin", "--downstream", "--store-svid"}, func(e *entryInfo) { e.Admin, e.Downstream, e.StoreSVID = true, true, true }},
		{[]string{"--admin=false", "--downstream=false", "--store-svid=false"}, func(e *entryInfo) { e.Admin, e.Downstream, e.StoreSVID = false, false, false }},
		{[]string{"--expires-in=0s"}, func(e *entryInfo) { e.ExpiresAt = nil }},
	} {
		want := now
		step.change(&want)
		got := read(r.ok(append([]string{"entry", "update", id, "-o", "json"}, step.flags...)...))
		if got.Revision <= now.Revision {
			t.Errorf("%v: revision %d after %d", step.flags, got.Revision, now.Revision)
		}
		want.Revision, want.Digest = got.Revision, got.Digest
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: %s", step.flags, diff)
		}
		if shown := read(r.ok("entry", "show", id, "-o", "json")); cmp.Diff(got, shown) != "" {
			t.Errorf("%v: answered %v, kept %v", step.flags, got, shown)
		}
		now = got
	}
	later := read(r.ok("entry", "update", id, "--expires-in", "2h", "-o", "json"))
	if in := time.Until(*later.ExpiresAt); in < time.Hour || in > 2*time.Hour {
		t.Errorf("expires in %v", in)
	}
	if text := r.ok("entry", "update", id, "--hint", "x"); !strings.Contains(text, "hint") || !strings.Contains(text, id) {
		t.Errorf("in words:\n%s", text)
	}
}

func TestEntryUpdateRefuses(t *testing.T) {
	r := newRegistrar(t)
	var made entryInfo
	if err := json.Unmarshal([]byte(r.ok("entry", "create", "-o", "json", "--spiffe-id", "spiffe://example.org/svc/web", "--parent-id", "spiffe://example.org/node/a", "--selector", "unix:uid:1")), &made); err != nil {
		t.Fatal(err)
	}
	r.ok("entry", "create", "--spiffe-id", "spiffe://example.org/svc/api", "--parent-id", "spiffe://example.org/node/a", "--selector", "unix:uid:1")
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{made.ID}, "nothing to change"},
		{[]string{"gone", "--hint", "x"}, "entry not found"},
		{[]string{made.ID, "--spiffe-id", "web"}, `--spiffe-id "web" is not a SPIFFE ID`},
		{[]string{made.ID, "--spiffe-id", "spiffe://other.org/svc/web"}, "other.org"},
		{[]string{made.ID, "--spiffe-id", "spiffe://example.org/svc/api"}, "has the same"},
		{[]string{made.ID, "--selector", "uid"}, "want TYPE:VALUE"},
		{[]string{made.ID, "--x509-svid-ttl", "1s"}, "ttl"},
		{[]string{made.ID, "--expires-in", "-1h"}, "in the past"},
		{[]string{made.ID, "--id", "other"}, "unknown flag"},
	} {
		code, out, errs := r.run(append([]string{"entry", "update"}, tc.args...)...)
		if code == 0 || out != "" || !strings.Contains(errs, tc.says) {
			t.Errorf("%v: exit %d, %q, %q, want %q", tc.args, code, out, errs, tc.says)
		}
	}
	var now entryInfo
	if err := json.Unmarshal([]byte(r.ok("entry", "show", made.ID, "-o", "json")), &now); err != nil || cmp.Diff(made, now) != "" {
		t.Errorf("changed by what was refused: %v, %v", now, err)
	}
}
