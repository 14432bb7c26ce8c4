package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckPublishers: --check finds what publishers cannot have, with its place
// in the file.
func TestCheckPublishers(t *testing.T) {
	for _, tt := range []struct{ name, more, want string }{
		{"several", "  - {name: b, keys: [k], packages: [guardrails]}\n", "configuration ok"},
		{"overlap", "  - {name: b, keys: [k], packages: [services.orders]}\n", `:5:36: publishers[1].packages: services.orders overlaps with services.orders of publisher "a"`},
		{"unknown key", "  - {name: b, keys: [k], package: [x]}\n", `did you mean "packages"?`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "writd.yaml")
			text := "trust_domain: example.org\ndata_dir: /x\npublishers:\n  - {name: a, keys: [k], packages: [services.orders]}\n" + tt.more
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			spec().Execute(t.Context(), []string{"--config", file, "--check"}, nil, &out, &out)
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}
