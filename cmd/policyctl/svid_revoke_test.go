package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestSVIDRevoke(t *testing.T) {
	r := newRegistrar(t)
	if out := r.ok("svid", "revoke", "--serial", "0x2a", "--reason", "lost"); !strings.Contains(out, "revoked serial number 42 (0x2a)") {
		t.Errorf("says %q", out)
	}
	if out := r.ok("svid", "revoke", "--spiffe-id", "spiffe://example.org/svc/web"); !strings.Contains(out, "spiffe://example.org/svc/web that was issued before ") {
		t.Errorf("says %q", out)
	}
	var list struct{ Revocations []revocationInfo }
	if err := json.Unmarshal([]byte(r.ok("svid", "revocations", "-o", "json")), &list); err != nil || len(list.Revocations) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if got := list.Revocations[0]; got.By != "serial" || got.Subject != "42" || got.SerialHex != "2a" || got.Reason != "lost" || got.IssuedBefore != nil || got.ExpiresAt == nil {
		t.Errorf("listed %+v", got)
	}
	if out := r.ok("svid", "revocations"); !strings.Contains(out, "spiffe-id") || !strings.Contains(out, "lost") {
		t.Errorf("list:\n%s", out)
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"svid", "revoke"}, "at least one of the flags"},
		{[]string{"svid", "revoke", "--serial", ""}, "is empty"},
		{[]string{"svid", "revoke", "--serial", "1", "--agent", "x"}, "none of the others can be"},
		{[]string{"svid", "revoke", "--serial", "yes"}, "revocation.serial"},
		{[]string{"svid", "revoke", "--agent", "spiffe://example.org/spire/agent/join_token/x"}, "is not known"},
	} {
		if code, out, errs := r.run(c.args...); code != 1 || out != "" || !strings.Contains(errs, c.says) {
			t.Errorf("%v: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
}
