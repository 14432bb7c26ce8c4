package nearmiss_test

import (
	"strings"
	"testing"

	"github.com/writ-dev/writ/internal/nearmiss"
)

func TestHint(t *testing.T) {
	many := strings.Fields(strings.Repeat("aaaa ", 22))
	for _, tt := range []struct {
		got   string
		known []string
		want  string
	}{
		{"nmae", []string{"port", "name"}, `: did you mean "name"?`},
		{"NAME", []string{"port", "name"}, `: did you mean "name"?`},
		{"zzzzzzzz", []string{"port", "name"}, "; known here: name, port"},
		{"zzzzzzzz", nil, "; none is known here"},
		{"zzzzzzzz", many, "; known here: " + strings.Join(many[:20], ", ") + " and 2 more"},
		{strings.Repeat("z", 1<<20), []string{"name"}, "; known here: name"},
	} {
		if got := nearmiss.Hint(tt.got, tt.known); got != tt.want {
			t.Errorf("%.20q: got %q, want %q", tt.got, got, tt.want)
		}
	}
}
