package program

import (
	"encoding/binary"
	"slices"

	"github.com/writ-dev/writ/policy"
)

// magic begins every encoded Program.
const magic = "writ program\n"

// Encode writes p. The same Program gives the same bytes, and Decode accepts
// no other bytes for it. p must be valid.
//
// Layout, numbers as (u)varints: magic, version; the texts, sorted, each once,
// which everything after names by index; compiler, digest, reads; the rules;
// the atoms, each once, in the order in which the clauses first name them; the
// units with their clauses.
func (p *Program) Encode() []byte {
	e := encoder{texts: map[string]uint64{}, atoms: map[string]uint64{}}
	e.program(p, collectText) // Only to see the texts.
	sorted := make([]string, 0, len(e.texts))
	for s := range e.texts {
		sorted = append(sorted, s)
	}
	slices.Sort(sorted)
	b := append([]byte(magic), binary.AppendUvarint(nil, Version)...)
	b = binary.AppendUvarint(b, uint64(len(sorted)))
	for i, s := range sorted {
		e.texts[s] = uint64(i)
		b = appendInline(b, s)
	}
	return append(b, e.program(p, referText)...)
}

type encoder struct {
	texts map[string]uint64
	atoms map[string]uint64 // by their own encoding
}

// textWriter writes s, or what stands for it.
type textWriter func(e *encoder, b []byte, s string) []byte

func collectText(e *encoder, b []byte, s string) []byte {
	e.texts[s] = 0
	return b
}

func referText(e *encoder, b []byte, s string) []byte {
	return binary.AppendUvarint(b, e.texts[s])
}

func inlineText(_ *encoder, b []byte, s string) []byte { return appendInline(b, s) }

func appendInline(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func (e *encoder) program(p *Program, text textWriter) []byte {
	b := text(e, nil, p.Compiler)
	b = append(b, p.Digest[:]...)
	b = e.list(b, p.Reads.Headers, text)
	b = e.list(b, p.Reads.Query, text)
	b = append(b, flag(p.Reads.AllHeaders, 1)|flag(p.Reads.AllQuery, 2))
	b = binary.AppendUvarint(b, uint64(len(p.Rules)))
	for _, r := range p.Rules {
		b = text(e, b, r.ID)
		b = text(e, b, r.File)
		b = binary.AppendUvarint(b, uint64(r.Line))
	}
	clear(e.atoms)
	var atoms, units []byte
	units = binary.AppendUvarint(units, uint64(len(p.Units)))
	for i := range p.Units {
		u := &p.Units[i]
		units = text(e, units, u.Service)
		units = append(units, flag(u.HasPolicy, 1))
		units, atoms = e.clauses(units, atoms, u.Ask, text)
		for tier := policy.Guardrail; tier <= policy.ServiceAllow; tier++ {
			units, atoms = e.clauses(units, atoms, u.Clauses[tier], text)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(e.atoms)))
	return append(append(b, atoms...), units...)
}

const (
	clauseAsk = 1 << iota
	clauseExpires
)

func (e *encoder) clauses(b, atoms []byte, clauses []Clause, text textWriter) ([]byte, []byte) {
	b = binary.AppendUvarint(b, uint64(len(clauses)))
	var key []byte
	for i := range clauses {
		c := &clauses[i]
		b = append(b, flag(c.Ask, clauseAsk)|flag(c.Expires != 0, clauseExpires))
		b = binary.AppendUvarint(b, uint64(c.Rule))
		if c.Expires != 0 {
			b = binary.AppendVarint(b, c.Expires)
		}
		b = binary.AppendUvarint(b, uint64(len(c.Atoms)))
		for j := range c.Atoms {
			key = e.atom(key[:0], &c.Atoms[j], inlineText)
			n, seen := e.atoms[string(key)]
			if !seen {
				n = uint64(len(e.atoms))
				e.atoms[string(key)] = n
				atoms = e.atom(atoms, &c.Atoms[j], text)
			}
			b = binary.AppendUvarint(b, n)
		}
	}
	return b, atoms
}

const (
	atomNot = 1 << iota
	atomToken
)

func (e *encoder) atom(b []byte, a *Atom, text textWriter) []byte {
	b = append(b, flag(a.Not, atomNot)|flag(len(a.Token) > 0, atomToken))
	if len(a.Token) > 0 {
		b = binary.AppendUvarint(b, uint64(len(a.Token)))
		for i := range a.Token {
			b = e.atom(b, &a.Token[i], text)
		}
		return b
	}
	b = e.field(b, &a.Field, text)
	b = binary.AppendUvarint(b, uint64(len(a.Preds)))
	for i := range a.Preds {
		p := &a.Preds[i]
		b = append(b, byte(p.Op), flag(p.Not, 1))
		switch p.Op {
		case Range:
			b = binary.AppendVarint(binary.AppendVarint(b, p.Low), p.High)
		case EqualField:
			if p.Other != nil {
				b = e.field(b, p.Other, text)
			}
		case Address:
		default:
			b = e.list(b, p.Texts, text)
		}
	}
	return b
}

func (e *encoder) field(b []byte, f *Field, text textWriter) []byte {
	b = append(b, byte(f.Base))
	if named(f.Base) {
		b = text(e, b, f.Name)
	}
	if indexed(f.Base) {
		b = binary.AppendVarint(b, int64(f.Index))
	}
	b = binary.AppendUvarint(b, uint64(len(f.Via)))
	for _, s := range f.Via {
		b = append(b, byte(s.Kind))
		if s.Kind.hasText() {
			b = text(e, b, s.Text)
		}
		if s.Kind == SplitElement {
			b = binary.AppendVarint(b, int64(s.Index))
		}
	}
	return b
}

func (e *encoder) list(b []byte, texts []string, text textWriter) []byte {
	b = binary.AppendUvarint(b, uint64(len(texts)))
	for _, s := range texts {
		b = text(e, b, s)
	}
	return b
}

func flag(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}
