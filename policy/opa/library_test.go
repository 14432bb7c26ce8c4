package opa_test

import (
	"encoding/json"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/format"

	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
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

// TestPathMatchAgrees: the library's path_match and the compiled form's
// MatchPath say the same of all short patterns and paths.
func TestPathMatchAgrees(t *testing.T) {
	patterns := []string{"", "a", "/{x}", "/a{", "/a{*}", "/{**}{**}", "/a.b", "/ä*"}
	for parts := range sequences([]string{"", "a", "*", "a*b", "{*}", "{**}"}, 3) {
		patterns = append(patterns, "/"+strings.Join(parts, "/"))
	}
	var paths [][]string
	for segments := range sequences([]string{"", "a", "ab", "a/b", "äx"}, 3) {
		paths = append(paths, segments)
	}
	matches, err := opa.PathMatches(t.Context(), patterns, paths)
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range patterns {
		for _, segments := range paths {
			key, err := json.Marshal([]any{pattern, segments})
			if err != nil {
				t.Fatal(err)
			}
			if want := program.MatchPath(pattern, segments); matches[string(key)] != want {
				t.Errorf("%s: path_match %v, MatchPath %v", key, matches[string(key)], want)
			}
		}
	}
	if len(matches) < 1000 {
		t.Errorf("%d matches only", len(matches))
	}
}

// sequences are all lists of the words that have at most n elements, the empty
// one among them.
func sequences(words []string, n int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		var extend func(list []string) bool
		extend = func(list []string) bool {
			if !yield(slices.Clone(list)) {
				return false
			}
			for _, w := range words {
				if len(list) < n && !extend(append(list, w)) {
					return false
				}
			}
			return true
		}
		extend([]string{})
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
