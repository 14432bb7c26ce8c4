package compile_test

import (
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy/bundle"
)

const catalogue = `-- writ/services/data.json --
{"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}
`

// content reads files in txtar form.
func content(archive string) bundle.Content {
	var c bundle.Content
	for line := range strings.Lines(archive) {
		if name, ok := strings.CutPrefix(strings.TrimSuffix(line, " --\n"), "-- "); ok && strings.HasSuffix(line, " --\n") {
			c = append(c, bundle.File{Path: name})
			continue
		}
		c[len(c)-1].Content = append(c[len(c)-1].Content, line...)
	}
	slices.SortFunc(c, func(a, b bundle.File) int { return strings.Compare(a.Path, b.Path) })
	return c
}
