package opa_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/rego"
)

var update = flag.Bool("update", false, "rewrite the golden problems")

// TestProblems holds each refusal to its golden text: where, and what.
func TestProblems(t *testing.T) {
	files, err := filepath.Glob("testdata/problems/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources, want, ok := strings.Cut(string(archive), "-- want --\n")
			if !ok {
				t.Fatal("no want at the end")
			}
			program, problems := opa.Check(content(sources))
			var got strings.Builder
			for _, p := range problems {
				got.WriteString(p.String() + "\n")
			}
			if (program == nil) != (len(problems) > 0) {
				t.Errorf("program %v with %d problems", program, len(problems))
			}
			if *update {
				if err := os.WriteFile(file, []byte(sources+"-- want --\n"+got.String()), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got.String()); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRootRule runs the tests that stand beside the root rule.
func TestRootRule(t *testing.T) {
	report, err := opa.RunOwnTests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems() {
		t.Error(p)
	}
	if len(rego.Tests()) == 0 || report.Passed < 10 {
		t.Errorf("%d tests passed", report.Passed)
	}
}
