package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/policy"
)

// TestExplainRecorded explains a decision by the record and by the policy that
// made it, also after another came into force.
func TestExplainRecorded(t *testing.T) {
	w := newSimulationWorld(t)
	w.push(w.policy(redReads, otherReads))
	w.record(nil, ordersRequest("GET", "blue", 1))
	w.record(func(d *policy.Decision) { d.Verdict, d.Tier = policy.Allow, policy.ServiceAllow }, ordersRequest("POST", "red", 2))
	w.push(w.policy(redWrites, otherReads))
	ids := audit.NewDecisionIDs(w.stream, 1)
	export := filepath.Join(t.TempDir(), "record.jsonl")
	if code, stdout, stderr := w.run("audit", "export", "--format", "jsonl", "-f", export); code != 0 {
		t.Fatal(stdout, stderr)
	}
	tests := []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"by the policy that decided", []string{"--decision", ids.At(1)}, 0, []string{
			"on record: deny by default-deny, revision 1.1@", "\ndeny by default-deny, revision 1.1@",
			`input.request.headers["x-team"][_] was "blue"`,
		}},
		{"by another", []string{"--decision", ids.At(1), w.policy(otherReads, redReads)}, 0, []string{
			"on record: deny", "orders.rego:3", `input.request.headers["x-other"] was undefined`,
		}},
		{"that is decided otherwise again", []string{"--decision", ids.At(2)}, 0, []string{
			"on record: allow by service-allow", "decided again, it is not the same:\ndeny by default-deny", `input.request.method was "POST"`,
		}},
		{"from an export", []string{"--decision", ids.At(1), "--record", export}, 0, []string{"on record: deny by default-deny"}},
		{"not there", []string{"--decision", ids.At(99)}, 1, []string{"no decision " + ids.At(99) + " on record"}},
		{"not in the export", []string{"--decision", ids.At(99), "--record", export}, 1, []string{"on record"}},
		{"by the policy in force", []string{"--input", "-"}, 0, []string{"deny by default-deny, revision 1.2@", "input.request.headers[\"x-team\"][_] was undefined"}},
		{"both", []string{"--input", "-", "--decision", "x"}, 1, []string{"input decision"}},
		{"neither", nil, 1, []string{"at least one of the flags"}},
		{"record of nothing", []string{"--input", "-", "--record", export}, 1, []string{"--record is where --decision is found"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := policyCommand(t, decideInput, append([]string{"policy", "explain", "--server", w.socket}, tt.args...)...)
			for _, want := range tt.want {
				if code != tt.code || !strings.Contains(stdout+stderr, want) {
					t.Errorf("code %d, want %d with %q in\n%s%s", code, tt.code, want, stdout, stderr)
				}
			}
		})
	}
}
