package program

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/policy"
)

// ErrVersion is an encoded form of another version. Its reader does without a
// program and asks OPA.
var ErrVersion = errors.New("compiled policy of another version")

// Decode reads what Encode wrote, and nothing else. The Program is valid.
func Decode(data []byte) (*Program, error) {
	if len(data) > maxEncoded {
		return nil, fmt.Errorf("compiled policy is of %d bytes, more than %d", len(data), maxEncoded)
	}
	rest, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok {
		return nil, errors.New("not a compiled policy")
	}
	d := &decoder{rest: rest}
	if v := d.number(); d.err == nil && v != Version {
		return nil, fmt.Errorf("%w: %d, not %d", ErrVersion, v, Version)
	}
	p := d.program()
	if d.err == nil && len(d.rest) > 0 {
		d.fail("%d bytes follow its end", len(d.rest))
	}
	if d.err != nil {
		return nil, fmt.Errorf("compiled policy, byte %d: %w", len(data)-len(d.rest), d.err)
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if !bytes.Equal(p.Encode(), data) {
		return nil, errors.New("compiled policy is not written as it would be written here")
	}
	return p, nil
}

// decoder reads until its first error; after that everything is zero.
type decoder struct {
	rest  []byte
	err   error
	texts []string
	atoms []Atom
	// left of the atoms that clauses may name in all.
	left int
	// lists of atoms by how they are written: the clauses of a guardrail stand
	// in every unit.
	lists map[string][]Atom
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

func (d *decoder) number() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.fail("a number is cut short or too long")
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) signed() int64 {
	n, size := binary.Varint(d.rest)
	if size <= 0 {
		d.fail("a number is cut short or too long")
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.fail("it is cut short")
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.rest)) {
		d.fail("it is cut short")
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

// count is a number of things of at least size bytes each, so that what is
// made for them stays in proportion to the bytes there are.
func (d *decoder) count(what string, size, limit int) int {
	n := d.number()
	if d.err == nil && (n > uint64(limit) || n*uint64(size) > uint64(len(d.rest))) {
		d.fail("%d %s, more than there can be", n, what)
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

func (d *decoder) text() string {
	n := d.number()
	if d.err == nil && n >= uint64(len(d.texts)) {
		d.fail("text %d of %d", n, len(d.texts))
	}
	if d.err != nil {
		return ""
	}
	return d.texts[n]
}

func (d *decoder) list(what string) []string {
	n := d.count(what, 1, maxTexts)
	if n == 0 {
		return nil
	}
	texts := make([]string, n)
	for i := range texts {
		texts[i] = d.text()
	}
	return texts
}

func (d *decoder) program() *Program {
	d.texts = make([]string, d.count("texts", 1, maxTexts))
	for i := range d.texts {
		d.texts[i] = string(d.take(d.number()))
	}
	p := &Program{Compiler: d.text()}
	copy(p.Digest[:], d.take(uint64(len(p.Digest))))
	p.Reads.Headers = d.list("headers")
	p.Reads.Query = d.list("query parameters")
	reads := d.byte()
	p.Reads.AllHeaders, p.Reads.AllQuery = reads&1 != 0, reads&2 != 0
	p.Rules = make([]policy.Rule, d.count("rules", 3, maxRules))
	for i := range p.Rules {
		p.Rules[i] = policy.Rule{ID: d.text(), File: d.text(), Line: int(min(d.number(), 1<<32))}
	}
	d.atoms = make([]Atom, d.count("atoms", 3, maxAtoms))
	for i := range d.atoms {
		if d.err == nil {
			d.atoms[i] = d.atom(0)
		}
	}
	d.left, d.lists = maxAtoms, map[string][]Atom{}
	p.Units = make([]Unit, d.count("units", 2+int(policy.ServiceAllow), maxUnits))
	for i := range p.Units {
		u := &p.Units[i]
		u.Service = d.text()
		u.HasPolicy = d.byte() != 0
		u.Ask = d.clauses()
		for tier := policy.Guardrail; tier <= policy.ServiceAllow && d.err == nil; tier++ {
			u.Clauses[tier] = d.clauses()
		}
	}
	return p
}

func (d *decoder) clauses() []Clause {
	n := d.count("clauses", 3, maxClauses)
	if n == 0 {
		return nil
	}
	clauses := make([]Clause, n)
	for i := range clauses {
		flags := d.byte()
		c := &clauses[i]
		c.Ask = flags&clauseAsk != 0
		c.Rule = uint32(min(d.number(), maxRules))
		if flags&clauseExpires != 0 {
			c.Expires = d.signed()
		}
		if c.Atoms = d.conjunction(); d.err != nil {
			return nil
		}
	}
	return clauses
}

func (d *decoder) conjunction() []Atom {
	var named [maxClauseAtoms]uint64
	n := d.count("atoms", 1, maxClauseAtoms)
	written := d.rest
	for i := range n {
		if named[i] = d.number(); named[i] >= uint64(len(d.atoms)) {
			d.fail("atom %d of %d", named[i], len(d.atoms))
		}
	}
	if n == 0 || d.err != nil {
		return nil
	}
	written = written[:len(written)-len(d.rest)]
	if atoms, ok := d.lists[string(written)]; ok {
		return atoms
	}
	if d.left -= n; d.left < 0 {
		d.fail("more than %d atoms", maxAtoms)
		return nil
	}
	atoms := make([]Atom, n)
	for i := range atoms {
		atoms[i] = d.atoms[named[i]]
	}
	d.lists[string(written)] = atoms
	return atoms
}

func (d *decoder) atom(depth int) Atom {
	flags := d.byte()
	a := Atom{Not: flags&atomNot != 0}
	if flags&atomToken != 0 {
		if depth > 0 {
			d.fail("a token within a token")
			return a
		}
		a.Token = make([]Atom, d.count("token atoms", 3, maxClauseAtoms))
		for i := range a.Token {
			a.Token[i] = d.atom(depth + 1)
		}
		return a
	}
	a.Field = d.field()
	if n := d.count("predicates", 2, maxPreds); n > 0 {
		a.Preds = make([]Pred, n)
	}
	for i := range a.Preds {
		p := &a.Preds[i]
		p.Op = Op(d.byte())
		p.Not = d.byte() != 0
		switch p.Op {
		case Range:
			p.Low, p.High = d.signed(), d.signed()
		case EqualField:
			other := d.field()
			p.Other = &other
		case Address:
		default:
			p.Texts = d.list("operands")
		}
	}
	return a
}

func (d *decoder) field() Field {
	f := Field{Base: Base(d.byte())}
	if named(f.Base) {
		f.Name = d.text()
	}
	if indexed(f.Base) {
		f.Index = d.index()
	}
	if n := d.count("steps", 1, maxVia); n > 0 {
		f.Via = make([]Step, n)
	}
	for i := range f.Via {
		s := &f.Via[i]
		s.Kind = StepKind(d.byte())
		if s.Kind.hasText() {
			s.Text = d.text()
		}
		if s.Kind == SplitElement {
			s.Index = d.index()
		}
	}
	return f
}

func (d *decoder) index() int32 {
	n := d.signed()
	if n < Any || n > maxIndex {
		d.fail("index %d", n)
		return 0
	}
	return int32(n)
}
