package opa_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/format"

	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/rego"
)

// TestLibraryExamples asks the examples in the library's comments about the
// input that its tests use.
func TestLibraryExamples(t *testing.T) {
	library, err := opa.Library()
	if err != nil {
		t.Fatal(err)
	}
	if len(library) != 6 {
		t.Errorf("%d packages, want 6", len(library))
	}
	for _, pkg := range library {
		if pkg.Title == "" || pkg.Description == "" || len(pkg.Entries) == 0 {
			t.Errorf("%s: no title, description or entries", pkg.Name)
		}
		for _, entry := range pkg.Entries {
			name, _, _ := strings.Cut(entry.Signature, "(")
			t.Run(pkg.Name+"."+name, func(t *testing.T) {
				if !strings.Contains(entry.Example, pkg.Name+"."+name) {
					t.Errorf("the example does not use it: %s", entry.Example)
				}
				holds, err := opa.HoldsInTests(t.Context(), "import data.writ."+pkg.Name, entry.Example)
				if err != nil || !holds {
					t.Errorf("%s: holds %v, %v", entry.Example, holds, err)
				}
			})
		}
	}
}

// TestLibraryReads: what a function of the library reads of headers, query and
// tokens is what its caller is said to read.
func TestLibraryReads(t *testing.T) {
	got, said, err := opa.LibraryReads()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, said); diff != "" {
		t.Errorf("what the library reads and what is said of it (-reads +said):\n%s", diff)
	}
}

// TestFormatted holds our own Rego to the format of opa fmt.
func TestFormatted(t *testing.T) {
	files := rego.Modules()
	maps.Copy(files, rego.Tests())
	examples, err := filepath.Glob("../../rego/examples/*/*.rego")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range examples {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		files[file] = string(text)
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		got, err := format.Source(file, []byte(files[file]))
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(files[file], string(got)); diff != "" {
			t.Errorf("%s: run opa fmt (-is +want):\n%s", file, diff)
		}
	}
}
