package compile

import (
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy/program"
)

const (
	// maxConjs bounds what one negation may become.
	maxConjs = 256
	// maxCompared bounds the conditions that one negation looks at on the way.
	maxCompared = 1 << 17
	// maxMerging bounds the conjunctions that are looked at, field by field, to
	// merge them.
	maxMerging = 1 << 22
)

// complement is the package's complement, counted as work and within the time.
func (x *evaluation) complement(ways []conj, floor int) ([]conj, bool) {
	if !x.step() {
		return nil, false
	}
	out, compared, ok := complement(ways, floor)
	x.spend(compared)
	if x.ctx.Err() != nil && x.stopped == "" {
		x.stopped = "not compiled in time"
	}
	return out, ok
}

// complement is when none of the conjunctions holds, about what was made after
// floor. ok is false when it cannot be said, or is too long.
func complement(conjs []conj, floor int) (out []conj, compared int, ok bool) {
	closed := make([]conj, 0, len(conjs))
	for _, c := range conjs {
		if c, ok = c.closed(floor); !ok {
			return nil, compared, false
		}
		if c, ok = c.simplified(); ok {
			closed = append(closed, c)
		}
	}
	out = []conj{nil}
	for _, c := range merged(closed) {
		var next []conj
		for _, done := range out {
			for _, x := range c {
				if compared += 1 + len(done); compared > maxCompared {
					return nil, compared, false
				}
				n, holds, ok := x.negated()
				if !ok {
					return nil, compared, false
				}
				if !holds {
					continue
				}
				if both, ok := append(slices.Clone(done), n).simplified(); ok {
					next = append(next, both)
				}
			}
		}
		if out = next; len(out) > maxConjs {
			return nil, compared, false
		}
	}
	return out, compared, true
}

// merged makes one of conjunctions that differ in the texts of one Equal
// only, and drops repeated ones. The order is that of the first of each.
func merged(all []conj) []conj {
	unique := make([]conj, 0, len(all))
	seen := make(map[string]bool, len(all))
	for _, c := range all {
		c = slices.Clone(c)
		slices.SortFunc(c, func(a, b *cond) int { return strings.Compare(a.sign(), b.sign()) })
		c = slices.CompactFunc(c, func(a, b *cond) bool { return a.sign() == b.sign() })
		if k := c.key(-1); !seen[k] {
			seen[k] = true
			unique = append(unique, c)
		}
	}
	if len(unique) < 2 {
		return unique
	}
	for i, fieldKey := range mergeable(unique) {
		if i*len(unique) > maxMerging {
			break
		}
		unique = mergedBy(unique, fieldKey)
	}
	return unique
}

func mergedBy(all []conj, fieldKey string) []conj {
	first := map[string]int{}
	texts := map[int][]string{} // of those in out that take in others
	var out []conj
	for _, c := range all {
		i := c.mergeable(fieldKey)
		if i < 0 {
			out = append(out, c)
			continue
		}
		k := c.key(i)
		at, ok := first[k]
		if !ok {
			first[k] = len(out)
			out = append(out, c)
			continue
		}
		if texts[at] == nil {
			texts[at] = slices.Clone(out[at][out[at].mergeable(fieldKey)].pred[0].Texts)
		}
		texts[at] = append(texts[at], c[i].pred[0].Texts...)
	}
	for at, all := range texts {
		i := out[at].mergeable(fieldKey)
		both := slices.Clone(out[at])
		both[i] = equalsAny(both[i].f, 0, 0, all...)
		out[at] = both
	}
	return out
}

func (c conj) mergeable(fieldKey string) int {
	return slices.IndexFunc(c, func(x *cond) bool { return x.mergeable() && x.f.key == fieldKey })
}

// mergeable are the fields that some conjunctions have an Equal of.
func mergeable(all []conj) []string {
	n := map[string]int{}
	for _, c := range all {
		for _, x := range c {
			if x.mergeable() {
				n[x.f.key]++
			}
		}
	}
	var keys []string
	for k, n := range n {
		if n > 1 {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (c *cond) mergeable() bool {
	return c.f != nil && !c.not && !c.open() && len(c.pred) == 1 && c.pred[0].Op == program.Equal && !c.pred[0].Not
}

// key of all conditions, sorted, but the one with index but.
func (c conj) key(but int) string {
	n := 0
	for _, x := range c {
		n += len(x.key) + 2
	}
	b := make([]byte, 0, n)
	for i, x := range c {
		if i != but {
			b = append(append(b, x.sign()...), 0)
		}
	}
	return string(b)
}
