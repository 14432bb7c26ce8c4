package main

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLibraryPage: the page in docs/ is made of the sources as they are.
func TestLibraryPage(t *testing.T) {
	want, err := libraryPage()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/reference/rego-library.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("run make generate (-made +is):\n%s", diff)
	}
}
