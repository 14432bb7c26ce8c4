package program

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

func TestGapsAreThere(t *testing.T) {
	for _, tt := range []struct {
		expression string
		want       bool
	}{
		{`^(?s:spiffe://example\.org/ns/[^/]+/sa/caller-7)$`, true},
		{`^(?s:spiffe://example\.org/[^/]*x/[^/]+/.+)$`, true},
		{`^(?s:prod-.*-eu)$`, true},
		{`^a$`, true},
		{`^[^/]*a$`, true},
		{`^[^/]*a[^/]*$`, false}, // Where the first gap ends is not plain.
		{`^(?s:a.*b.*c)$`, false},
		{`^a.*b$`, false}, // Not a newline.
		{`^(?i:a[^/]*)$`, false},
		{`^a[^/]*`, false},
		{`a[^/]*$`, false},
		{`(?m)^a[^/]*$`, false},
		{`^a[^/b]*$`, false},
		{`^a[^/]?$`, false},
		{`^(a|b)[^/]*$`, false},
		{`^a[/]*$`, false},
		{`^a[^\x00]*$`, false},
		{`^a[^é]*$`, false},
		{`^$`, false},
	} {
		if got := newGaps(tt.expression) != nil; got != tt.want {
			t.Errorf("%s: %v, want %v", tt.expression, got, tt.want)
		}
	}
}

// TestGaps compares with package regexp.
func TestGaps(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(from ...string) string {
		var b strings.Builder
		for range r.IntN(5) {
			b.WriteString(from[r.IntN(len(from))])
		}
		return b.String()
	}
	kinds, hits := 0, 0
	for range 20000 {
		expression := "^(?s:" + pick("a", "/", "/", "a/", "é", `\.`, "[^/]*", "[^/]+", ".*", ".+", "[^a]*", "/[^/]+/") + ")$"
		g := newGaps(expression)
		if g == nil {
			continue
		}
		kinds++
		re := regexp.MustCompile(expression)
		for range 20 {
			s := pick("a", "/", "a/", "é", ".", "\n", "\xff", "\xc3", "a/a")
			got, want := g.MatchString(s), re.MatchString(s)
			if got != want {
				t.Fatalf("seed %d: %s of %q: %v, want %v", seed, expression, s, got, want)
			}
			if want {
				hits++
			}
		}
	}
	if kinds < 2000 || hits < 2000 {
		t.Errorf("%d expressions and %d matches are too few", kinds, hits)
	}
}
