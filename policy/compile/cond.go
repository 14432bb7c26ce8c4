package compile

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/program"
)

// cond is one condition of a conjunction. While elem or token is not 0, it is
// about an element or a token that other conditions may be about as well;
// closing makes one atom of them.
type cond struct {
	f    *field // nil for a closed token
	not  bool
	pred []program.Pred
	// token holds the atoms of a closed token.
	tokenAtoms []program.Atom
	elem       int
	token      int
	key        string // without not
}

// conj is a conjunction.
type conj []*cond

// conds is a conjunction that grows, shared by what branches off it.
type conds struct {
	prev *conds
	c    *cond
}

func (l *conds) and(c *cond) *conds {
	if c == nil {
		return l
	}
	return &conds{l, c}
}

func (l *conds) all(more conj) *conds {
	for _, c := range more {
		l = l.and(c)
	}
	return l
}

func (l *conds) conj() conj {
	var out conj
	for ; l != nil; l = l.prev {
		out = append(out, l.c)
	}
	slices.Reverse(out)
	return out
}

func newCond(f *field, elem, token int, pred ...program.Pred) *cond {
	c := &cond{f: f, elem: elem, token: token, pred: pred}
	c.setKey()
	return c
}

func presence(f *field, elem, token int) *cond { return newCond(f, elem, token) }

func equalsAny(f *field, elem, token int, texts ...string) *cond {
	return textOp(program.Equal, text{f, elem, token}, texts)
}

func textOp(op program.Op, t text, texts []string) *cond {
	if op == program.Equal {
		t, texts = untrimmed(t, texts)
	}
	if len(texts) > 1 {
		texts = slices.Clone(texts)
		slices.Sort(texts)
		texts = slices.Compact(texts)
	}
	return newCond(t.f, t.elem, t.token, program.Pred{Op: op, Texts: texts})
}

// untrimmed says of a text what is said of it without a prefix or suffix, so
// that it can be looked up.
func untrimmed(t text, texts []string) (text, []string) {
	for len(t.f.Via) > 0 {
		step := t.f.Via[len(t.f.Via)-1]
		has, with := strings.HasPrefix, func(s string) string { return step.Text + s }
		switch step.Kind {
		case program.TrimPrefix:
		case program.TrimSuffix:
			has, with = strings.HasSuffix, func(s string) string { return s + step.Text }
		default:
			return t, texts
		}
		var before []string
		for _, s := range texts {
			before = append(before, with(s))
			if !has(s, step.Text) {
				before = append(before, s) // There was nothing to trim.
			}
		}
		f := t.f.Field
		f.Via = f.Via[:len(f.Via)-1]
		t, texts = text{newField(f), t.elem, t.token}, before
	}
	return t, texts
}

func inRange(f *field, low, high int64) *cond {
	return newCond(f, 0, 0, program.Pred{Op: program.Range, Low: low, High: high})
}

func (c *cond) setKey() {
	var b strings.Builder
	if c.f != nil {
		b.WriteString(c.f.key)
	}
	if c.elem != 0 || c.token != 0 {
		b.WriteByte('#')
		b.WriteString(strconv.Itoa(c.elem))
		b.WriteByte('#')
		b.WriteString(strconv.Itoa(c.token))
	}
	for _, p := range c.pred {
		writePred(&b, p)
	}
	for _, a := range c.tokenAtoms {
		b.WriteByte('{')
		b.WriteString(atomKey(a))
		b.WriteByte('}')
	}
	c.key = b.String()
}

func writePred(b *strings.Builder, p program.Pred) {
	b.WriteByte('|')
	b.WriteString(strconv.Itoa(int(p.Op)))
	if p.Not {
		b.WriteByte('!')
	}
	for _, t := range p.Texts {
		b.WriteByte(',')
		b.WriteString(strconv.Quote(t))
	}
	if p.Op == program.Range {
		b.WriteString(strconv.FormatInt(p.Low, 10))
		b.WriteByte('_')
		b.WriteString(strconv.FormatInt(p.High, 10))
	}
	if p.Other != nil {
		b.WriteString(newField(*p.Other).key)
	}
}

func atomKey(a program.Atom) string {
	var b strings.Builder
	if a.Not {
		b.WriteByte('!')
	}
	b.WriteString(newField(a.Field).key)
	for _, p := range a.Preds {
		writePred(&b, p)
	}
	return b.String()
}

// atom is the closed condition as the program has it.
func (c *cond) atom() program.Atom {
	if c.f == nil {
		return program.Atom{Not: c.not, Token: c.tokenAtoms}
	}
	return program.Atom{Field: c.f.Field, Not: c.not, Preds: c.pred}
}

func (c *cond) open() bool { return c.elem != 0 || c.token != 0 }

// single reports whether the field, of one token perhaps, has one value at
// most.
func (c *cond) single() bool { return c.f != nil && c.elem == 0 && !c.f.many() }

// about is what the condition is about.
func (c *cond) about() string {
	if c.token == 0 {
		return c.f.key
	}
	return c.f.key + "#" + strconv.Itoa(c.token)
}

// negated is the opposite; ok is false when it cannot be said.
func (c *cond) negated() (out *cond, holds, ok bool) {
	n := *c
	if c.elem == 0 {
		n.not = !c.not
		return &n, true, true
	}
	// The element is there: turn around what is said of it.
	if c.f.mayMiss() {
		return nil, false, false
	}
	switch len(c.pred) {
	case 0:
		return nil, false, true
	case 1:
		n.pred = []program.Pred{c.pred[0]}
		n.pred[0].Not = !n.pred[0].Not
		n.setKey()
		return &n, true, true
	}
	return nil, false, false
}

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
	slices.SortFunc(out.tokenAtoms, func(a, b program.Atom) int { return strings.Compare(atomKey(a), atomKey(b)) })
	out.tokenAtoms = slices.CompactFunc(out.tokenAtoms, func(a, b program.Atom) bool { return atomKey(a) == atomKey(b) })
	out.setKey()
	return &out, true
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

// simplified drops what follows from the rest, and reports whether the
// conjunction can hold as far as is easily seen.
func (c conj) simplified() (conj, bool) {
	var out conj
	var fields map[string]*cond // positive conditions of fields with one value
	seen := make(map[string]bool, len(c))
	for _, x := range c {
		if x.not || !x.single() {
			continue
		}
		if fields == nil {
			fields = make(map[string]*cond, len(c))
		}
		merged := fields[x.about()]
		if merged == nil {
			merged = &cond{f: x.f, token: x.token, pred: slices.Clone(x.pred)}
			fields[x.about()] = merged
		} else {
			merged.pred = append(merged.pred, x.pred...)
		}
	}
	for _, x := range c {
		if !x.single() {
			if !seen[x.sign()] {
				seen[x.sign()] = true
				out = append(out, x)
			}
			continue
		}
		if !x.not {
			if merged := fields[x.about()]; merged != nil && !seen[x.about()] {
				seen[x.about()] = true
				if !merged.tighten(c) {
					return nil, false
				}
				merged.setKey()
				out = append(out, merged)
			}
			continue
		}
		if len(x.pred) == 0 && x.f.always() {
			return nil, false // It is never absent.
		}
		if merged := fields[x.about()]; merged != nil {
			if len(x.pred) == 0 {
				return nil, false
			}
			if texts := merged.equal(); texts != nil && len(x.pred) == 1 && decidable(x.pred[0].Op) {
				continue // tighten has taken them out.
			}
		}
		if !seen[x.sign()] {
			seen[x.sign()] = true
			out = append(out, x)
		}
	}
	if slices.ContainsFunc(out, func(x *cond) bool { return x.not && seen[x.key+"+"] }) {
		return nil, false
	}
	return out.pruned(), true
}

func (c *cond) sign() string {
	if c.not {
		return c.key + "-"
	}
	return c.key + "+"
}

// pruned drops conditions that say only that a field is there, where that
// follows.
func (c conj) pruned() conj {
	ofRequest, through := false, map[string]bool{}
	for _, x := range c {
		if x.f == nil || x.not {
			continue
		}
		if len(x.pred) > 0 || !unconditional(x.f) {
			ofRequest = ofRequest || x.f.ofRequest()
		}
		if len(x.f.Via) > 0 {
			through[baseKey(x.f)] = true
		}
	}
	layer := false // Some condition is left that only a request meets.
	out := make(conj, 0, len(c))
	for _, x := range c {
		bare := x.f != nil && !x.not && !x.open() && len(x.pred) == 0
		switch {
		case bare && x.f.always():
		case bare && len(x.f.Via) == 0 && through[x.f.key]:
		case bare && unconditional(x.f) && ofRequest:
		case bare && unconditional(x.f) && layer:
		case x.f != nil && !x.not && x.f.key == layerField.key && len(x.pred) == 1 && x.pred[0].Op == program.Equal &&
			slices.Equal(x.pred[0].Texts, []string{policy.LayerRequest}) && !x.pred[0].Not && ofRequest:
		default:
			if bare && unconditional(x.f) {
				layer = true
			}
			out = append(out, x)
		}
	}
	return out
}

// unconditional reports whether every request has the field.
func unconditional(f *field) bool {
	if len(f.Via) > 0 {
		return false
	}
	switch f.Base {
	case program.Protocol, program.Method, program.Host, program.Path, program.SegmentCount, program.ContentLength:
		return true
	}
	return false
}

func baseKey(f *field) string {
	base := f.Field
	base.Via = nil
	return newField(base).key
}

// equal is the texts that the field is one of, nil when not known.
func (c *cond) equal() []string {
	if len(c.pred) > 0 && c.pred[0].Op == program.Equal && !c.pred[0].Not {
		return c.pred[0].Texts
	}
	return nil
}

// tighten makes one of the texts and ranges of a field, with the help of all
// conditions, and reports whether any value is left.
func (c *cond) tighten(all conj) bool {
	var rest []program.Pred
	var texts []string
	low, high, bounded := int64(-1<<63), int64(1<<63-1), false
	for _, p := range c.pred {
		switch {
		case p.Op == program.Equal && !p.Not:
			if texts == nil {
				texts = slices.Clone(p.Texts)
			} else {
				texts = slices.DeleteFunc(texts, func(t string) bool { return !slices.Contains(p.Texts, t) })
			}
			if len(texts) == 0 {
				return false
			}
		case p.Op == program.Range && !p.Not:
			low, high, bounded = max(low, p.Low), min(high, p.High), true
		default:
			rest = append(rest, p)
		}
	}
	if low > high {
		return false
	}
	if texts != nil {
		for _, x := range all {
			if x.single() && x.not && x.about() == c.about() && len(x.pred) == 1 && decidable(x.pred[0].Op) {
				p := x.pred[0]
				texts = slices.DeleteFunc(texts, func(t string) bool { return decides(p, t) })
			}
		}
		rest = slices.DeleteFunc(rest, func(p program.Pred) bool {
			if !decidable(p.Op) {
				return false
			}
			texts = slices.DeleteFunc(texts, func(t string) bool { return !decides(p, t) })
			return true
		})
		if len(texts) == 0 {
			return false
		}
		rest = append(rest, program.Pred{Op: program.Equal, Texts: texts})
	}
	if bounded {
		rest = append(rest, program.Pred{Op: program.Range, Low: low, High: high})
	}
	c.pred = sortedPreds(rest)
	return true
}

// decidable operators are plain enough to be applied to a text here.
func decidable(op program.Op) bool {
	return op == program.Equal || op == program.Prefix || op == program.Suffix || op == program.Contains
}

func decides(p program.Pred, t string) bool {
	test := map[program.Op]func(s, t string) bool{
		program.Equal:    func(s, t string) bool { return s == t },
		program.Prefix:   strings.HasPrefix,
		program.Suffix:   strings.HasSuffix,
		program.Contains: strings.Contains,
	}[p.Op]
	return slices.ContainsFunc(p.Texts, func(operand string) bool { return test(t, operand) }) != p.Not
}

// maxConjs bounds what one negation may become.
const maxConjs = 256

// complement is when none of the conjunctions holds, about what was made after
// floor. ok is false when it cannot be said, or is too long.
func complement(conjs []conj, floor int) (out []conj, ok bool) {
	closed := make([]conj, 0, len(conjs))
	for _, c := range conjs {
		if c, ok = c.closed(floor); !ok {
			return nil, false
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
				n, holds, ok := x.negated()
				if !ok {
					return nil, false
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
			return nil, false
		}
	}
	return out, true
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
	for _, fieldKey := range mergeable(unique) {
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
