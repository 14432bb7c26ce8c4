package compile

import (
	"slices"
	"strconv"
	"strings"

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
