package compile

import (
	"cmp"
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy/program"
)

// closed makes one condition of all that are about the same element or token,
// for those that were made after floor. ok is false when that cannot be said.
func (c conj) closed(floor int) (conj, bool) {
	if !slices.ContainsFunc(c, func(c *cond) bool { return c.elem > floor || c.token > floor }) {
		return c, true
	}
	c, ok := c.closedBy(floor, func(c *cond) int { return c.elem }, closeElement)
	if !ok {
		return nil, false
	}
	return c.closedBy(floor, func(c *cond) int { return c.token }, closeToken)
}

func (c conj) closedBy(floor int, id func(*cond) int, closeGroup func([]*cond) (*cond, bool)) (conj, bool) {
	var out conj
	groups := map[int][]*cond{}
	var order []int
	for _, c := range c {
		n := id(c)
		if n <= floor {
			out = append(out, c)
			continue
		}
		if groups[n] == nil {
			order = append(order, n)
		}
		groups[n] = append(groups[n], c)
	}
	for _, n := range order {
		one, ok := closeGroup(groups[n])
		if !ok {
			return nil, false
		}
		out = append(out, one)
	}
	return out, true
}

// closeElement: some element meets all of these. They must look at it through
// the same steps; that it is there goes without saying where more is said.
func closeElement(group []*cond) (*cond, bool) {
	out := cond{f: group[0].f, token: group[0].token}
	said := false
	for _, c := range group {
		if c.not {
			return nil, false
		}
		if len(c.pred) == 0 && !c.f.mayMiss() {
			continue
		}
		if said && c.f.key != out.f.key {
			return nil, false
		}
		said = true
		out.f = c.f
		out.pred = append(out.pred, c.pred...)
	}
	out.pred = sortedPreds(out.pred)
	out.setKey()
	return &out, true
}

// closeToken: some token meets all of these.
func closeToken(group []*cond) (*cond, bool) {
	out := cond{}
	for _, c := range group {
		if c.elem != 0 {
			return nil, false
		}
		if len(c.pred) == 0 && !c.not && saidElsewhere(c, group) {
			continue
		}
		out.tokenAtoms = append(out.tokenAtoms, program.Atom{Field: c.f.Field, Not: c.not, Preds: c.pred})
	}
	if len(out.tokenAtoms) == 0 {
		out.tokenAtoms = append(out.tokenAtoms, program.Atom{Field: group[0].f.Field})
	}
	slices.SortFunc(out.tokenAtoms, func(a, b program.Atom) int {
		return cmp.Or(readFirst(a)-readFirst(b), strings.Compare(atomKey(a), atomKey(b)))
	})
	out.tokenAtoms = slices.CompactFunc(out.tokenAtoms, func(a, b program.Atom) bool { return atomKey(a) == atomKey(b) })
	out.setKey()
	return &out, true
}

// readFirst puts what a claim is before what it says: the program asks when it
// reads a claim of another kind.
func readFirst(a program.Atom) int {
	switch a.Field.Base {
	case program.TokenClaimKind:
		return 1
	case program.TokenClaim, program.TokenClaimItem:
		return 2
	}
	return 0
}

// saidElsewhere reports whether the rest of the group implies that the field
// of c is there.
func saidElsewhere(c *cond, group []*cond) bool {
	for _, other := range group {
		if other == c || other.not {
			continue
		}
		switch c.f.Base {
		case program.TokenIssuer, program.TokenSubject, program.TokenActor:
			return len(c.f.Via) == 0
		case program.TokenClaimKind:
			if other.f.Name == c.f.Name && (other.f.Base != program.TokenClaimKind || len(other.pred) > 0) {
				return true
			}
		}
	}
	return false
}

func predKey(p program.Pred) string {
	var b strings.Builder
	writePred(&b, p)
	return b.String()
}

func sortedPreds(preds []program.Pred) []program.Pred {
	slices.SortFunc(preds, func(a, b program.Pred) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), strings.Compare(predKey(a), predKey(b)))
	})
	return slices.CompactFunc(preds, func(a, b program.Pred) bool { return predKey(a) == predKey(b) })
}
