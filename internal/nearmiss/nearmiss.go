// Package nearmiss guesses which word was meant.
package nearmiss

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Hint ends a message about an unknown word: it names the known word that is
// nearly the same, or the first of those there are.
func Hint(got string, known []string) string {
	best, distance := "", len(got)/3+2
	sorted := slices.Sorted(slices.Values(known))
	// The distance is quadratic in the length, and the word may be hostile.
	if len(got) <= 64 {
		for _, w := range sorted {
			if n := levenshtein.ComputeDistance(strings.ToLower(got), strings.ToLower(w)); n < distance {
				best, distance = w, n
			}
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf(": did you mean %q?", best)
	case len(sorted) == 0:
		return "; none is known here"
	case len(sorted) > 20:
		return fmt.Sprintf("; known here: %s and %d more", strings.Join(sorted[:20], ", "), len(sorted)-20)
	}
	return "; known here: " + strings.Join(sorted, ", ")
}
