package opa_test

import (
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
)

// TestWrittenAfterRego loads a policy without YAML rules first: the interpreter
// that it does without is there for the next.
func TestWrittenAfterRego(t *testing.T) {
	if _, problems := opa.Check(content(catalogue + serviceAllow)); len(problems) > 0 {
		t.Fatal(problems)
	}
	program, problems := opa.Check(content(catalogue + written("action: deny, from: any")))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	snapshot, err := program.Snapshot(opa.SnapshotConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if d := decide(t, snapshot, request()); d.Tier != policy.ServiceDeny {
		t.Errorf("decided in tier %v, want service-deny", d.Tier)
	}
}
