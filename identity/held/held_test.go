package held_test

import (
	"testing"

	"github.com/writ-dev/writ/identity/held"
)

// Lists that differ in anything have different digests, also where their bytes,
// one after the other, are the same.
func TestDigest(t *testing.T) {
	type entry struct{ id, tag string }
	lists := [][]entry{
		{},
		{{"", ""}},
		{{"a", ""}},
		{{"", "a"}},
		{{"a", "b"}},
		{{"ab", ""}},
		{{"a", ""}, {"b", ""}},
		{{"b", ""}, {"a", ""}},
		{{"a", "1"}, {"b", "2"}},
		{{"a", "1b"}, {"", "2"}},
	}
	seen := map[[32]byte]int{}
	for n, list := range lists {
		sum := held.NewSum()
		for _, e := range list {
			sum.Add(e.id, []byte(e.tag))
		}
		digest := sum.Digest()
		if other, ok := seen[digest]; ok {
			t.Errorf("lists %d and %d have one digest", other, n)
		}
		seen[digest] = n
	}
}
