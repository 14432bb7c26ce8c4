package bundle_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// TestSealedSlicesOpen: what fits as sources fits as a slice, or is refused
// before anybody is sent one.
func TestSealedSlicesOpen(t *testing.T) {
	key, keys := newKey(t)
	big := func(n int) []byte { return []byte(`{"x": "` + strings.Repeat("x", n) + `"}`) }
	deep := func(n int) []byte { return []byte(strings.Repeat(`{"x":`, n) + "1" + strings.Repeat("}", n)) }
	many := bundle.Content{}
	for i := range bundle.MaxFiles {
		many = append(many, bundle.File{Path: fmt.Sprintf("f%04d.rego", i), Content: fmt.Appendf(nil, "package f%d", i)})
	}
	tests := []struct {
		name    string
		content bundle.Content
		want    string
	}{
		{"good", sources(), ""},
		{"three files of 2 MB", bundle.Content{{Path: "a/data.json", Content: big(2 << 20)}, {Path: "b/data.json", Content: big(2 << 20)}, {Path: "c/data.json", Content: big(2 << 20)}}, "a slice is one document"},
		{"nearly as much", bundle.Content{{Path: "a/data.json", Content: big(2 << 20)}, {Path: "b/data.json", Content: big(2<<20 - 100)}}, ""},
		{"escapes", bundle.Content{{Path: "data.yaml", Content: []byte("x: '" + strings.Repeat("<", 1<<20) + "'\n")}}, "a slice is one document"},
		{"as deep as can be", bundle.Content{{Path: "a/b/data.json", Content: deep(bundle.MaxDataDepth - 2)}}, ""},
		{"too deep with directories", bundle.Content{{Path: "a/b/data.json", Content: deep(bundle.MaxDataDepth - 1)}}, "nested deeper"},
		{"as many files as can be", many[:bundle.MaxFiles-3], ""},
		{"too many files", many, "files and"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := bundle.ReadArchive(archive(t, tt.content, nil)); err != nil {
				t.Fatalf("not even good sources: %v", err)
			}
			cutter, err := bundle.NewCutter(tt.content)
			if tt.want != "" {
				var refused policy.Refused
				if !errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got error %.200v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := cutter.Cut(bundle.SliceConfig{Revision: policy.Revision{Epoch: 1, Number: 1}, SPIFFEID: orders})
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := s.Seal(key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bundle.OpenSlice(sealed, keys, orders); err != nil {
				t.Error(err)
			}
		})
	}
	foreign := cut(t, orders)
	foreign.Services = nil
	if _, err := foreign.Seal(key); err == nil {
		t.Error("a slice that nobody opens was sealed")
	}
}

// TestSliceCarriesProgram: the compiled form travels under the slice's
// signature, and a publisher cannot send one.
func TestSliceCarriesProgram(t *testing.T) {
	key, keys := newKey(t)
	cutter, err := bundle.NewCutter(sources())
	if err != nil {
		t.Fatal(err)
	}
	s, err := cutter.Cut(bundle.SliceConfig{Revision: policy.Revision{Epoch: 1, Number: 1}, SPIFFEID: orders})
	if err != nil {
		t.Fatal(err)
	}
	s.Program = []byte("\x00compiled\xff")
	sealed, err := s.Seal(key)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := bundle.OpenSlice(sealed, keys, orders)
	if err != nil {
		t.Fatal(err)
	}
	if string(opened.Program) != string(s.Program) {
		t.Errorf("program: got %q, want %q", opened.Program, s.Program)
	}
	if _, there := opened.Content.File(".program"); there {
		t.Error("the program is among the sources")
	}
	var refused policy.Refused
	if _, err := bundle.ReadArchive(sealed); !errors.As(err, &refused) || refused[0].File != ".program" {
		t.Errorf("a bundle of sources with a program: got %v, want it refused", err)
	}
}
