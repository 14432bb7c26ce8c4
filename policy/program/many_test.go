package program

import (
	"fmt"
	"strings"
	"testing"
)

// TestManyConditions: each of a clause counts, however many it has.
func TestManyConditions(t *testing.T) {
	for _, n := range []int{1, 255, 256, 257, 264, 300, 511, 512, maxClauseAtoms * maxPreds} {
		in := full()
		in.Request.Segments = nil
		var atoms []Atom
		for i := range n {
			if i%maxPreds == 0 {
				atoms = append(atoms, Atom{Field: Field{Base: Segment, Index: int32(len(atoms))}})
				in.Request.Segments = append(in.Request.Segments, "")
			}
			a, text := len(atoms)-1, fmt.Sprintf("<%d>", i)
			atoms[a].Preds = append(atoms[a].Preds, Pred{Op: Contains, Texts: []string{text}})
			in.Request.Segments[a] += text
		}
		if !holds(t, in, atoms...) {
			t.Errorf("%d conditions that are met do not hold", n)
		}
		for _, i := range []int{0, n / 2, n - 1} {
			segment := &in.Request.Segments[i/maxPreds]
			before := *segment
			*segment = strings.Replace(before, fmt.Sprintf("<%d>", i), "", 1)
			if holds(t, in, atoms...) {
				t.Errorf("%d conditions hold, of which number %d is not met", n, i)
			}
			*segment = before
		}
	}
}
