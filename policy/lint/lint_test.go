package lint_test

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/lint"
	"github.com/writ-dev/writ/policy/opa"
)

var update = flag.Bool("update", false, "rewrite the golden findings")

const catalogue = `{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`

// check lints the files of an archive below a directory.
func check(t *testing.T, files []txtar.File, dir string) []lint.Finding {
	t.Helper()
	content := bundle.Content{{Path: "data.json", Content: []byte(catalogue)}}
	for _, f := range files {
		if name, ok := strings.CutPrefix(f.Name, dir+"/"); ok {
			content = append(content, bundle.File{Path: name, Content: f.Data})
		}
	}
	content, err := bundle.NewContent(content)
	if err != nil {
		t.Fatal(err)
	}
	program, problems := opa.Check(content)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	findings, err := lint.Lint(program)
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

// TestRules holds each rule to what it finds in a bad example, and to finding
// nothing in a good one.
func TestRules(t *testing.T) {
	for _, rule := range lint.Rules() {
		t.Run(rule.ID, func(t *testing.T) {
			path := filepath.Join("testdata", rule.ID+".txtar")
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := &archive.Files[len(archive.Files)-1]
			if want.Name != "want" {
				t.Fatal("no want at the end")
			}
			var got strings.Builder
			for _, f := range check(t, archive.Files, "bad") {
				if f.Rule == rule.ID {
					got.WriteString(f.String() + "\n")
				}
				if f.Rule == rule.ID && f.Severity != rule.Severity {
					t.Errorf("severity %s, want %s", f.Severity, rule.Severity)
				}
			}
			for _, f := range check(t, archive.Files, "good") {
				if f.Rule == rule.ID {
					t.Errorf("in the good example: %s", f)
				}
			}
			if *update {
				want.Data = []byte(got.String())
				if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.Len() == 0 {
				t.Error("nothing found in the bad example")
			}
			if diff := cmp.Diff(string(want.Data), got.String()); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestExampleIsClean lints the example that the quickstart runs.
func TestExampleIsClean(t *testing.T) {
	dir := "../../deploy/examples/shop/policy"
	content, err := bundle.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	services := `{"writ": {"services": {`
	for i, name := range []string{"catalog", "orders", "payments", "reports", "web", "support"} {
		if i > 0 {
			services += ","
		}
		services += `"` + name + `": {"spiffe_ids": ["spiffe://shop.example/svc/` + name + `"]}`
	}
	content, err = bundle.NewContent(append(content, bundle.File{Path: "data.json", Content: []byte(services + "}}}")}))
	if err != nil {
		t.Fatal(err)
	}
	program, problems := opa.Check(content)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	findings, err := lint.Lint(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
}

// TestPage holds the page to the rules: a section for each, and none besides.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/lint.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for line := range strings.Lines(string(page)) {
		if id, ok := strings.CutPrefix(line, "## "); ok {
			got = append(got, strings.TrimSpace(id))
		}
	}
	for _, rule := range lint.Rules() {
		want = append(want, rule.ID)
		if line := "*" + string(rule.Severity) + "*: " + rule.Title + "."; !strings.Contains(string(page), "## "+rule.ID+"\n\n"+line) {
			t.Errorf("the section %s does not begin with %q", rule.ID, line)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sections of the page (-rules +page):\n%s", diff)
	}
}
