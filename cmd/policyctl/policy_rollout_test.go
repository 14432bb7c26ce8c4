package main

import (
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy/policyv1"
)

// TestEvaluatedRevision is named in the list, and told why after a command.
func TestEvaluatedRevision(t *testing.T) {
	for _, tt := range []struct{ engine, reason, column, said string }{
		{"topdown", "diverged: decision 1\x1b[2J", "topdown (diverged)", "it is evaluated, not compiled: diverged: decision 1"},
		{"topdown", "not compiled: x", "topdown", "it is evaluated, not compiled: not compiled: x"},
		{"mixed", "1 of 2 rules are not compiled as a whole", "mixed", ""},
		{"compiled", "", "compiled", ""},
		{"", "", "-", ""},
	} {
		var list, said strings.Builder
		info := revisionInfoFrom(&policyv1.RevisionInfo{Engine: tt.engine, EngineReason: tt.reason})
		if err := writeRevisions(&list, []revisionInfo{info}); err != nil {
			t.Fatal(err)
		}
		if err := info.write(&said); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(list.String(), "  "+tt.column+"  ") && !strings.HasSuffix(strings.TrimSpace(list.String()), tt.column) {
			t.Errorf("%+v: %s", tt, list.String())
		}
		if !strings.HasPrefix(said.String(), tt.said) || (tt.said == "") != (said.String() == "") || strings.Contains(said.String(), "\x1b") {
			t.Errorf("%+v: said %q", tt, said.String())
		}
	}
}
