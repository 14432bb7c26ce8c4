package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// authorities is the list as JSON: ID and state by kind.
func (r *registrar) authorities(kind string) (ids, states []string) {
	r.t.Helper()
	var list struct{ Authorities []authorityInfo }
	if err := json.Unmarshal([]byte(r.ok("authority", "list", kind, "--output", "json")), &list); err != nil {
		r.t.Fatal(err)
	}
	for _, g := range list.Authorities {
		if g.Kind != kind || g.ExpiresAt == nil {
			r.t.Errorf("%+v", g)
		}
		ids, states = append(ids, g.ID), append(states, g.State)
	}
	return ids, states
}

func TestAuthority(t *testing.T) {
	for _, kind := range []string{"x509", "jwt"} {
		t.Run(kind, func(t *testing.T) {
			r := newRegistrar(t)
			ids, _ := r.authorities(kind)
			old := ids[0]
			var next authorityInfo
			if err := json.Unmarshal([]byte(r.ok("authority", "prepare", kind, "-o", "json")), &next); err != nil {
				t.Fatal(err)
			}
			check := func(wantIDs, wantStates []string) {
				t.Helper()
				ids, states := r.authorities(kind)
				if diff := cmp.Diff(wantIDs, ids) + cmp.Diff(wantStates, states); diff != "" {
					t.Error(diff)
				}
			}
			check([]string{old, next.ID}, []string{"active", "prepared"})
			if out := r.ok("authority", "activate", kind, next.ID); out != "activated "+kind+" authority "+next.ID+"\n" {
				t.Errorf("said %q", out)
			}
			check([]string{next.ID, old}, []string{"active", "old"})
			if code, _, stderr := r.run("authority", "revoke", kind, old); code != 1 || !strings.Contains(stderr, "taint it first") {
				t.Errorf("revoke without a taint: %d, %s", code, stderr)
			}
			r.ok("authority", "taint", kind, old)
			check([]string{next.ID, old}, []string{"active", "tainted"})
			// A second old one: the tainted one is still in the list.
			var third authorityInfo
			if err := json.Unmarshal([]byte(r.ok("authority", "prepare", kind, "-o", "json")), &third); err != nil {
				t.Fatal(err)
			}
			r.ok("authority", "activate", kind, third.ID)
			check([]string{third.ID, next.ID, old}, []string{"active", "old", "tainted"})
			r.ok("authority", "revoke", kind, old)
			check([]string{third.ID, next.ID}, []string{"active", "old"})
		})
	}
}

func TestAuthorityRefuses(t *testing.T) {
	r := newRegistrar(t)
	active, _ := r.authorities("x509")
	for args, want := range map[string]string{
		"list x.509":                   `"x.509" is not a kind of authority: want x509 or jwt`,
		"prepare":                      "accepts 1 arg",
		"activate x509":                "accepts 2 arg",
		"activate x509 ab":             "ab is not one of the X.509 authorities",
		"taint x509 " + active[0]:      "activate another first",
		"taint x509 --upstream ab":     "no upstream authority",
		"taint jwt --upstream ab":      "taint and revoke its JWT authorities there",
		"revoke jwt x":                 "x is not one of the JWT authorities",
		"revoke other x":               "want x509 or jwt",
		"revoke x509 --upstream abcde": "no upstream authority",
		"remove x509":                  "unknown command",
	} {
		code, stdout, stderr := r.run(append([]string{"authority"}, strings.Fields(args)...)...)
		if code == 0 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d, %q, %q", args, code, stdout, stderr)
		}
	}
	list := r.ok("authority", "list")
	if !strings.HasPrefix(list, "KIND") || !strings.Contains(list, active[0]) || strings.Count(list, "\n") != 3 {
		t.Errorf("list:\n%s", list)
	}
}
