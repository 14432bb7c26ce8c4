package program

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/writ-dev/writ/policy"
)

// builder turns clauses into an index.
type builder struct {
	e        *engine
	patterns *patterns
	key      []byte
	fields   map[string]uint32
	// inexact fields, by their encoding, are not only compared byte by byte.
	inexact map[string]bool
	known   map[string]uint32 // conditions by their encoding
	conds   []condition
	// roots of the tiers that are there, by what they are made of: guardrails
	// are the same for every unit.
	roots map[string]uint32
	// spare is how many more refs than clauses the index may have.
	spare int
}

// condition is an Atom of one or more clauses: each once, and with one
// predicate where that means the same.
type condition struct {
	atom    Atom
	cost    int
	options []option
	refs    int
	// at is its place in engine.atoms plus one, 0 before it has one.
	at uint32
}

// dimension is a way to look clauses up: by one field, in one manner.
type dimension struct {
	kind  nodeKind
	field uint32
}

// option is a dimension in which a condition can be looked up, and where it is
// found: it can hold only for values under one of its keys.
type option struct {
	dim       dimension
	keys      []string
	low, high int64
	// exact says that the condition holds for all that is found there.
	exact bool
}

// item is a clause on its way into the index.
type item struct {
	ref  ref
	left []residue
}

// residue is a condition that the index has not settled so far.
type residue struct {
	cond uint32
	used bool // It led here, and yet has to be tested.
}

func newBuilder(p *patterns) *builder {
	b := &builder{e: &engine{}, patterns: p, fields: map[string]uint32{}, inexact: map[string]bool{}, known: map[string]uint32{}, roots: map[string]uint32{}}
	b.e.nodes = make([]node, 1)
	b.e.expiry = make([]int64, 1)
	return b
}

func (b *builder) unit(u *Unit, ranks []uint32) {
	built := unit{reason: noRule(u)}
	built.ask = b.tier(u.Ask, func(*Clause) ref { return ref{ask: true} })
	for tier := policy.Guardrail; tier <= policy.ServiceAllow; tier++ {
		node := b.tier(u.Clauses[tier], func(c *Clause) ref {
			x := ref{rank: ranks[c.Rule], ask: c.Ask}
			if c.Expires != 0 {
				x.expires = uint32(len(b.e.expiry))
				b.e.expiry = append(b.e.expiry, c.Expires)
			}
			return x
		})
		if node != 0 {
			built.tiers = append(built.tiers, root{tier, node})
		}
	}
	b.e.names = append(b.e.names, u.Service)
	b.e.units = append(b.e.units, built)
}

// tier builds the index of clauses and returns its root, 0 when there are none.
func (b *builder) tier(clauses []Clause, refOf func(*Clause) ref) uint32 {
	if len(clauses) == 0 {
		return 0
	}
	items := make([]item, len(clauses))
	b.spare = 4096 + 8*len(clauses)
	var made []byte
	for i := range clauses {
		items[i] = item{ref: refOf(&clauses[i]), left: b.conditions(clauses[i].Atoms)}
		made = items[i].append(made, clauses[i].Expires)
		for _, left := range items[i].left {
			for _, o := range b.conds[left.cond].options {
				b.spare += len(o.keys)
			}
		}
	}
	root, ok := b.roots[string(made)]
	if !ok {
		root = b.index(items, 0)
		b.roots[string(made)] = root
	}
	return root
}

// append writes what the item is made of.
func (it *item) append(made []byte, expires int64) []byte {
	made = append(made, flag(it.ref.ask, 1))
	made = binary.AppendUvarint(made, uint64(it.ref.rank))
	made = binary.AppendVarint(made, expires)
	made = binary.AppendUvarint(made, uint64(len(it.left)))
	for _, left := range it.left {
		made = binary.AppendUvarint(made, uint64(left.cond))
	}
	return made
}

// conditions are the atoms taken apart as far as that means the same: where a
// field has one value at most, all predicates are about that one.
func (b *builder) conditions(atoms []Atom) []residue {
	left := make([]residue, 0, len(atoms))
	add := func(a Atom) {
		x := residue{cond: b.condition(a)}
		if !slices.Contains(left, x) {
			left = append(left, x)
		}
	}
	for _, a := range atoms {
		if a.Not || len(a.Preds) < 2 || a.Field.many() {
			add(a)
			continue
		}
		for i := range a.Preds {
			add(Atom{Field: a.Field, Preds: a.Preds[i : i+1]})
		}
	}
	return left
}

func (b *builder) condition(a Atom) uint32 {
	b.key = (&encoder{}).atom(b.key[:0], &a, inlineText)
	if n, ok := b.known[string(b.key)]; ok {
		return n
	}
	n := uint32(len(b.conds))
	b.known[string(b.key)] = n
	b.note(&a)
	c := condition{atom: a, cost: atomCost(&a)}
	c.options = b.options(&a)
	b.conds = append(b.conds, c)
	return n
}

// note marks the fields of which a asks more than field.exact allows.
func (b *builder) note(a *Atom) {
	for i := range a.Token {
		b.note(&a.Token[i])
	}
	exact := len(a.Field.Via) == 0
	for i := range a.Preds {
		p := &a.Preds[i]
		exact = exact && p.bytewise()
		if p.Other != nil {
			b.inexact[b.fieldKey(p.Other)] = true
		}
	}
	if !exact {
		b.inexact[b.fieldKey(&a.Field)] = true
	}
}

// bytewise reports whether p compares bytes, none of a replacement character.
func (p *Pred) bytewise() bool {
	switch p.Op {
	case Equal, Prefix, Suffix, Contains:
		return !slices.ContainsFunc(p.Texts, func(s string) bool { return strings.ContainsRune(s, utf8.RuneError) })
	}
	return p.Op == Range
}

func (b *builder) fieldKey(f *Field) string {
	b.key = (&encoder{}).field(b.key[:0], f, inlineText)
	return string(b.key)
}

// field is the place of f in engine.fields.
func (b *builder) field(f *Field, overTokens, lenient bool) uint32 {
	key := b.fieldKey(f) + string(rune(flag(overTokens, 1)|flag(lenient, 2)))
	if n, ok := b.fields[key]; ok {
		return n
	}
	n := uint32(len(b.e.fields))
	b.fields[key] = n
	x := field{Field: *f, shape: shapeOf(f.Base), many: f.many() || overTokens, token: ofToken(f.Base), overTokens: overTokens, lenient: lenient}
	if named(f.Base) && x.token {
		x.claim = strings.Split(f.Name, "\x00")
	}
	b.e.fields = append(b.e.fields, x)
	return n
}

// write puts a clause into a leaf.
func (b *builder) write(it *item) ref {
	slices.SortStableFunc(it.left, func(x, y residue) int {
		return cmp.Compare(b.conds[x.cond].cost, b.conds[y.cond].cost)
	})
	x := it.ref
	x.from, x.n = uint32(len(b.e.conds)), conditions(len(it.left))
	for _, left := range it.left {
		c := &b.conds[left.cond]
		if c.at == 0 {
			b.e.atoms = append(b.e.atoms, b.atom(&c.atom))
			c.at = uint32(len(b.e.atoms))
		}
		at := &b.e.atoms[c.at-1]
		if c.refs++; c.refs == 2 && c.cost >= memoCost {
			at.memo = int32(b.e.memos)
			b.e.memos++
		}
		b.e.conds = append(b.e.conds, c.at-1)
	}
	return x
}

func (b *builder) atom(a *Atom) atom {
	x := atom{kind: atomOne, not: a.Not, memo: -1}
	if len(a.Token) > 0 {
		x.kind = atomTokens
		for i := range a.Token {
			x.token = append(x.token, b.atom(&a.Token[i]))
		}
		return x
	}
	x.field = b.field(&a.Field, false, false)
	switch shapeOf(a.Field.Base) {
	case shapeNumber:
		x.kind = atomNumber
	case shapeList:
		x.kind = atomList
	default:
		if a.Field.many() {
			x.kind = atomMany
		}
	}
	for i := range a.Preds {
		x.preds = append(x.preds, b.pred(&a.Preds[i]))
	}
	if x.kind == atomOne && len(x.preds) == 1 && !ofToken(a.Field.Base) {
		x.simplify(x.preds[0])
	}
	return x
}

// simplify gives the conditions that most policies are made of a kind of their
// own.
func (a *atom) simplify(p pred) {
	if p.not || p.set != nil {
		return
	}
	switch p.op {
	case Equal:
		a.kind, a.texts, a.preds = atomIs, p.texts, nil
	case Prefix:
		a.kind, a.texts, a.preds = atomBegins, p.texts, nil
	}
}

func (b *builder) pred(p *Pred) pred {
	x := pred{op: p.Op, not: p.Not, low: p.Low, high: p.High}
	if p.Other != nil {
		x.other = b.field(p.Other, false, false)
	}
	for _, s := range p.Texts {
		switch p.Op {
		case Glob:
			x.globs = append(x.globs, b.patterns.globs[s])
		case Regex:
			x.regex = append(x.regex, b.patterns.regexes[s])
		case CIDR:
			x.cidrs = append(x.cidrs, b.patterns.cidrs[s])
		case PathMatch:
			x.paths = append(x.paths, b.patterns.paths[s])
		default:
			x.texts = append(x.texts, s)
		}
	}
	if p.Op == Equal && len(p.Texts) > fewTexts {
		x.set = make(map[string]struct{}, len(x.texts))
		for _, s := range x.texts {
			x.set[s] = struct{}{}
		}
		x.texts = nil
	}
	return x
}

func (b *builder) finish() *engine {
	e := b.e
	for i := range e.fields {
		f := &e.fields[i]
		f.exact = !f.token && !b.inexact[b.fieldKey(&f.Field)]
		if base := &bases[f.Base]; f.exact && base.plain != nil && len(f.Via) == 0 {
			f.direct, f.at = atRequest, plainAt(base.plain)
			if !base.ofRequest {
				f.direct |= atConnection
			}
		}
	}
	e.fields, e.atoms, e.nodes = slices.Clip(e.fields), slices.Clip(e.atoms), slices.Clip(e.nodes)
	e.refs, e.conds, e.trie, e.first = slices.Clip(e.refs), slices.Clip(e.conds), slices.Clip(e.trie), slices.Clip(e.first)
	if len(e.names) > fewTexts {
		e.byName = make(map[string]*unit, len(e.names))
		for i, name := range e.names {
			e.byName[name] = &e.units[i]
		}
	}
	e.pool.New = func() any {
		return &memory{slots: make([]slot, len(e.fields)), memo: make([]uint32, e.memos)}
	}
	return e
}
