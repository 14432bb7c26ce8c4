package opa_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy/opa"
)

// TestRulesPage holds the examples of docs/yaml-rules.md to what is accepted:
// as one policy, whose test passes.
func TestRulesPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/yaml-rules.md")
	if err != nil {
		t.Fatal(err)
	}
	archive, n := catalogue, 0
	for block := range strings.SplitSeq(string(page), "\n```") {
		for kind, name := range map[string]string{"yaml\n": "example%d.rules.yaml", "rego\n": "example%d_test.rego"} {
			if text, ok := strings.CutPrefix(block, kind); ok {
				n++
				archive += "-- " + fmt.Sprintf(name, n) + " --\n" + text + "\n"
			}
		}
	}
	if n < 4 {
		t.Fatalf("%d examples", n)
	}
	program, problems := opa.Check(content(archive))
	for _, p := range problems {
		t.Error(p)
	}
	if program == nil {
		t.FailNow()
	}
	report, err := program.Test(t.Context(), opa.TestOptions{})
	if err != nil || report.Passed != 1 || report.Failed != 0 {
		t.Errorf("tests: %+v, %v", report, err)
	}
}
