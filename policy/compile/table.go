package compile

import (
	"cmp"
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/program"
)

// Bounds of a clause, below those of package program.
const (
	maxAtoms = 48
	maxPreds = 12
	maxVia   = 8
	// Bytes of an operand.
	maxOperand = 4 << 10
)

// fits reports whether the program can hold the conjunction.
func (c conj) fits() bool {
	if len(c) > maxAtoms {
		return false
	}
	for _, x := range c {
		all := x.tokenAtoms
		if x.f != nil {
			all = []program.Atom{x.atom()}
		}
		if len(all) > maxAtoms {
			return false
		}
		for _, a := range all {
			if len(a.Preds) > maxPreds || len(a.Field.Via) > maxVia {
				return false
			}
			for _, p := range a.Preds {
				if slices.ContainsFunc(p.Texts, func(t string) bool { return len(t) > maxOperand }) || p.Other != nil && len(p.Other.Via) > maxVia {
					return false
				}
			}
		}
	}
	return true
}

// ruleTable gives rules their index. While it is built, the order is that of
// first use; sorted puts them into the order in which a decision names them.
type ruleTable struct {
	all   []policy.Rule
	known map[policy.Rule]uint32
}

func (t *ruleTable) index(r policy.Rule) uint32 {
	if t.known == nil {
		t.known = map[policy.Rule]uint32{}
	}
	i, ok := t.known[r]
	if !ok {
		i = uint32(len(t.all))
		t.known[r] = i
		t.all = append(t.all, r)
	}
	return i
}

func (t *ruleTable) sorted(units []program.Unit) []policy.Rule {
	order := make([]uint32, len(t.all))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int {
		x, y := t.all[a], t.all[b]
		return cmp.Or(strings.Compare(x.ID, y.ID), strings.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line))
	})
	out, moved := make([]policy.Rule, len(order)), make([]uint32, len(order))
	for to, from := range order {
		out[to], moved[from] = t.all[from], uint32(to)
	}
	for _, u := range units {
		for _, clauses := range u.Clauses {
			for i := range clauses {
				clauses[i].Rule = moved[clauses[i].Rule]
			}
		}
	}
	return out
}
