package program

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/writ-dev/writ/policy"
)

// Limits of a Program. They are far above what a policy has, and there so that
// one that is made to harm ends in an error.
const (
	maxEncoded     = 64 << 20
	maxUnits       = 1 << 14
	maxRules       = 1 << 18
	maxClauses     = 1 << 19 // in all
	maxAtoms       = 1 << 21 // in all
	maxClauseAtoms = 64
	maxPreds       = 16
	maxVia         = 8
	maxIndex       = 1 << 16
	maxTexts       = 1 << 20 // operands in all
	maxTextSize    = 64 << 10
	maxPattern     = 4 << 10 // bytes of one glob, regular expression or path pattern
)

// Validate says what is wrong with p, naming unit, tier and clause. Nothing
// else in this package may be called on a Program that is not valid, but for
// New, which validates.
func (p *Program) Validate() error {
	_, err := p.check()
	return err
}

// checker walks a Program once. Patterns are compiled once for each text,
// because many clauses share them.
type checker struct {
	patterns              *patterns
	clauses, atoms, texts int
}

func (p *Program) check() (*patterns, error) {
	c := &checker{patterns: newPatterns()}
	if len(p.Units) > maxUnits || len(p.Rules) > maxRules {
		return nil, fmt.Errorf("compiled policy: %d units and %d rules, more than %d and %d", len(p.Units), len(p.Rules), maxUnits, maxRules)
	}
	if err := checkText("compiler", p.Compiler); err != nil {
		return nil, err
	}
	for _, name := range slices.Concat(p.Reads.Headers, p.Reads.Query) {
		if err := checkText("reads", name); err != nil {
			return nil, err
		}
	}
	for i, r := range p.Rules {
		if err := errors.Join(checkText("id", r.ID), checkText("file", r.File)); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		if r.Line < 0 || r.Line > math.MaxInt32 {
			return nil, fmt.Errorf("rule %d, %q: line %d", i, r.ID, r.Line)
		}
	}
	for i := range p.Units {
		u := &p.Units[i]
		if i > 0 && p.Units[i-1].Service >= u.Service {
			return nil, fmt.Errorf("unit %q: not after %q", u.Service, p.Units[i-1].Service)
		}
		if err := c.unit(p, u); err != nil {
			return nil, fmt.Errorf("unit %q: %w", u.Service, err)
		}
	}
	return c.patterns, nil
}

func (c *checker) unit(p *Program, u *Unit) error {
	if err := checkText("service", u.Service); err != nil {
		return err
	}
	if len(u.Clauses[0]) > 0 {
		return errors.New("clauses without a tier")
	}
	for i := range u.Ask {
		a := &u.Ask[i]
		if a.Rule != 0 || a.Ask || a.Expires != 0 {
			return fmt.Errorf("ask, clause %d: it has conditions and nothing else", i)
		}
		if err := c.clause(a); err != nil {
			return fmt.Errorf("ask, clause %d: %w", i, err)
		}
	}
	for tier := policy.Guardrail; tier <= policy.ServiceAllow; tier++ {
		ids := map[string]uint32{}
		for i := range u.Clauses[tier] {
			clause := &u.Clauses[tier][i]
			err := c.clause(clause)
			switch {
			case err != nil:
			case int(clause.Rule) >= len(p.Rules):
				err = fmt.Errorf("rule %d of %d", clause.Rule, len(p.Rules))
			case tier != policy.BreakGlass && tier != policy.ServiceAllow && clause.Expires != 0, clause.Expires < 0:
				err = errors.New("only what allows expires")
			case tier == policy.BreakGlass && clause.Expires <= 0:
				err = errors.New("break-glass without an expiry")
			default:
				id := p.Rules[clause.Rule].ID
				if rule, seen := ids[id]; seen && rule != clause.Rule {
					err = fmt.Errorf("rules %d and %d have one id, %q", rule, clause.Rule, id)
				}
				ids[id] = clause.Rule
			}
			if err != nil {
				return fmt.Errorf("%s, clause %d: %w", tier, i, err)
			}
		}
	}
	return nil
}

func (c *checker) clause(cl *Clause) error {
	if c.clauses++; c.clauses > maxClauses {
		return fmt.Errorf("more than %d clauses", maxClauses)
	}
	if len(cl.Atoms) > maxClauseAtoms {
		return fmt.Errorf("%d atoms, more than %d", len(cl.Atoms), maxClauseAtoms)
	}
	for i := range cl.Atoms {
		if err := c.atom(&cl.Atoms[i], false); err != nil {
			return fmt.Errorf("atom %d: %w", i, err)
		}
	}
	return nil
}

func (c *checker) atom(a *Atom, token bool) error {
	if c.atoms++; c.atoms > maxAtoms {
		return fmt.Errorf("more than %d atoms", maxAtoms)
	}
	if len(a.Token) > 0 {
		if token {
			return errors.New("a token within a token")
		}
		if len(a.Token) > maxClauseAtoms || len(a.Preds) > 0 || !a.Field.isZero() {
			return fmt.Errorf("conditions on a token stand alone, and are at most %d", maxClauseAtoms)
		}
		for i := range a.Token {
			if err := c.atom(&a.Token[i], true); err != nil {
				return fmt.Errorf("token, atom %d: %w", i, err)
			}
		}
		return nil
	}
	if err := checkField(&a.Field); err != nil {
		return err
	}
	if ofToken(a.Field.Base) != token {
		return fmt.Errorf("%v: fields of a token stand in Token, and no others do", a.Field.Base)
	}
	if len(a.Preds) > maxPreds {
		return fmt.Errorf("%v: %d predicates, more than %d", a.Field.Base, len(a.Preds), maxPreds)
	}
	for i := range a.Preds {
		if err := c.pred(a.Field.Base, &a.Preds[i], token); err != nil {
			return fmt.Errorf("%v: %v: %w", a.Field.Base, a.Preds[i].Op, err)
		}
	}
	return nil
}

func (f *Field) isZero() bool {
	return f.Base == 0 && f.Name == "" && f.Index == 0 && len(f.Via) == 0
}

func checkField(f *Field) error {
	switch {
	case shapeOf(f.Base) == shapeNone:
		return fmt.Errorf("unknown %v", f.Base)
	case named(f.Base) != (f.Name != "" || f.Base == Query):
		return fmt.Errorf("%v: name %q", f.Base, f.Name)
	case !indexed(f.Base) && f.Index != 0, f.Index < Any, f.Index > maxIndex:
		return fmt.Errorf("%v: index %d", f.Base, f.Index)
	case atOffset(f.Base) && (f.Index < 0 || f.Index > 2*OffsetUTC):
		return fmt.Errorf("%v: an offset of %d minutes from UTC", f.Base, int64(f.Index)-OffsetUTC)
	case len(f.Via) > maxVia:
		return fmt.Errorf("%v: %d steps, more than %d", f.Base, len(f.Via), maxVia)
	case len(f.Via) > 0 && shapeOf(f.Base) != shapeText:
		return fmt.Errorf("%v: steps derive from a text", f.Base)
	}
	if err := checkText("name", f.Name); err != nil {
		return fmt.Errorf("%v: %w", f.Base, err)
	}
	// A name of the request that is not UTF-8 would be seen by OPA under a
	// name with a replacement character, and cannot be looked up here.
	if strings.ContainsRune(f.Name, unicode.ReplacementChar) {
		return fmt.Errorf("%v: name %q", f.Base, f.Name)
	}
	if (f.Base == Header || f.Base == HeaderCount) && f.Name != strings.ToLower(f.Name) {
		return fmt.Errorf("%v: name %q is not lower case", f.Base, f.Name)
	}
	for i, s := range f.Via {
		switch {
		case s.Kind == 0 || s.Kind >= endStep:
			return fmt.Errorf("%v: step %d: unknown kind %d", f.Base, i, s.Kind)
		case !s.Kind.hasText() && s.Text != "", s.Kind == SplitElement && s.Text == "":
			return fmt.Errorf("%v: step %d: text %q", f.Base, i, s.Text)
		case s.Kind != SplitElement && s.Index != 0, s.Index < Any, s.Index > maxIndex:
			return fmt.Errorf("%v: step %d: index %d", f.Base, i, s.Index)
		}
		if err := checkText("text", s.Text); err != nil {
			return fmt.Errorf("%v: step %d: %w", f.Base, i, err)
		}
	}
	return nil
}

func (c *checker) pred(b Base, p *Pred, token bool) error {
	switch {
	case p.Op.operand() == shapeNone:
		return errors.New("unknown")
	case p.Op.operand() != shapeOf(b):
		return errors.New("not for this field")
	case p.Op.hasTexts() != (len(p.Texts) > 0):
		return fmt.Errorf("%d operands", len(p.Texts))
	case p.Op != Range && (p.Low != 0 || p.High != 0), p.Low > p.High:
		return fmt.Errorf("bounds %d and %d", p.Low, p.High)
	case (p.Op == EqualField) != (p.Other != nil):
		return errors.New("it is equal field that has another field")
	}
	if p.Other != nil {
		if err := checkField(p.Other); err != nil {
			return err
		}
		if shapeOf(p.Other.Base) != shapeText || p.Other.many() || ofToken(p.Other.Base) && !token {
			return fmt.Errorf("%v is not one text that can be read here", p.Other.Base)
		}
	}
	if c.texts += len(p.Texts); c.texts > maxTexts {
		return fmt.Errorf("more than %d operands in all", maxTexts)
	}
	for _, s := range p.Texts {
		if err := checkText("operand", s); err != nil {
			return err
		}
		if err := c.patterns.add(p.Op, s); err != nil {
			return err
		}
	}
	return nil
}

// many reports whether the field may have several values.
func (f *Field) many() bool {
	for _, s := range f.Via {
		if s.Index == Any {
			return true
		}
	}
	return f.Index == Any
}

func checkText(what, s string) error {
	if len(s) > maxTextSize {
		return fmt.Errorf("%s of %d bytes, more than %d", what, len(s), maxTextSize)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s %q is not valid UTF-8", what, s)
	}
	return nil
}
