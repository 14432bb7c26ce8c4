package opa_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

// TestExamples holds the how-tos in rego/examples to what they say: they check,
// their tests pass, their page shows the sources as they are and the decision
// about in.json as it comes out, and the index names them.
func TestExamples(t *testing.T) {
	pages, err := filepath.Glob("../../rego/examples/*/README.md")
	if err != nil || len(pages) < 10 {
		t.Fatal(pages, err)
	}
	index := read(t, "../../rego/examples/README.md")
	for _, file := range pages {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			content, err := bundle.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			program, problems := opa.Check(content)
			for _, p := range problems {
				t.Error(p)
			}
			if program == nil {
				return
			}
			report, err := program.Test(t.Context(), opa.TestOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range report.Problems() {
				t.Error(p)
			}
			if report.Passed == 0 {
				t.Error("no test")
			}
			page := read(t, file)
			quoted(t, page, content)
			if want := decideExample(t, program, filepath.Join(dir, "in.json")); !strings.Contains(page, want) {
				t.Errorf("README.md does not show %q", want)
			}
			if !strings.Contains(index, "("+filepath.Base(dir)+"/README.md)") {
				t.Error("the index does not name it")
			}
		})
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// quoted: each block of Rego or YAML in a page is part of a source.
func quoted(t *testing.T, page string, content bundle.Content) {
	t.Helper()
	blocks := 0
	for i, part := range strings.Split(page, "```") {
		language, block, _ := strings.Cut(part, "\n")
		if i%2 == 0 || language != "rego" && language != "yaml" {
			continue
		}
		blocks++
		found := false
		for _, f := range content {
			found = found || strings.Contains(string(f.Content), block)
		}
		if !found {
			t.Errorf("no file holds this of README.md:\n%s", block)
		}
	}
	if blocks == 0 {
		t.Error("README.md shows no policy")
	}
}

// decideExample is the first line of what policy eval prints.
func decideExample(t *testing.T, program *opa.Program, file string) string {
	t.Helper()
	in, err := policy.DecodeInput([]byte(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := program.Snapshot(opa.SnapshotConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var d policy.Decision
	snapshot.Decider.Decide(t.Context(), in, &d)
	return d.Verdict.String() + " by " + d.Tier.String()
}
