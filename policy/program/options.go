package program

import (
	"slices"
	"strings"
)

// options of a condition, the most selective first.
func (b *builder) options(a *Atom) []option {
	if a.Not {
		return nil
	}
	if len(a.Token) > 0 {
		// Some token has to have the value that one of its conditions wants.
		var all []option
		for i := range a.Token {
			t := &a.Token[i]
			if t.Not {
				continue
			}
			place := func() uint32 { return b.field(&t.Field, true, guarded(a.Token[:i], &t.Field)) }
			for _, o := range b.optionsOf(t.Preds, place) {
				o.exact = o.exact && len(a.Token) == 1
				all = append(all, o)
			}
		}
		return all
	}
	return b.optionsOf(a.Preds, func() uint32 { return b.field(&a.Field, false, false) })
}

// guarded reports whether one of the conditions before it keeps a claim from
// being read where it is of another kind.
func guarded(before []Atom, f *Field) bool {
	kind := map[Base]string{TokenClaim: "string", TokenClaimItem: "strings"}[f.Base]
	return slices.ContainsFunc(before, func(a Atom) bool {
		return !a.Not && a.Field.Base == TokenClaimKind && a.Field.Name == f.Name && len(a.Field.Via) == 0 &&
			slices.ContainsFunc(a.Preds, func(p Pred) bool {
				return !p.Not && p.Op == Equal && len(p.Texts) == 1 && p.Texts[0] == kind
			})
	})
}

// optionsOf some predicates on the field that place gives, which is not there
// before it is needed.
func (b *builder) optionsOf(preds []Pred, place func() uint32) []option {
	var all []option
	for i := range preds {
		p := &preds[i]
		if p.Not {
			continue
		}
		add := func(kind nodeKind, keys []string, exact bool) {
			if !slices.Contains(keys, "") || exact {
				dim := dimension{kind, place()}
				all = append(all, option{dim: dim, keys: keys, exact: exact && len(preds) == 1, low: p.Low, high: p.High})
			}
		}
		switch p.Op {
		case Equal:
			add(byText, p.Texts, true)
		case Prefix:
			add(byPrefix, p.Texts, true)
		case Suffix:
			add(bySuffix, p.Texts, true)
		case Contains:
			keys, whole := make([]string, len(p.Texts)), true
			for i, s := range p.Texts {
				keys[i] = s[:min(len(s), maxNeedle)]
				whole = whole && len(s) <= maxNeedle && s != ""
			}
			if !slices.Contains(keys, "") {
				add(byContent, keys, whole)
			}
		case Range:
			add(byNumber, nil, true)
		case Glob:
			prefixes, suffixes := make([]string, len(p.Texts)), make([]string, len(p.Texts))
			for i, s := range p.Texts {
				prefixes[i], suffixes[i] = globEnds(s)
			}
			add(byPrefix, prefixes, false)
			add(bySuffix, suffixes, false)
		case Regex:
			prefixes := make([]string, len(p.Texts))
			for i, s := range p.Texts {
				prefixes[i] = regexPrefix(s)
			}
			add(byPrefix, prefixes, false)
		case PathMatch:
			keys := make([]string, len(p.Texts))
			for i, s := range p.Texts {
				keys[i] = pathKey(b.patterns.paths[s].literals())
			}
			add(byPath, keys, false)
		}
	}
	return all
}

// pathKey is a list of segments as one text, so that the key of a list that
// begins with another begins with the other's key. A segment may hold any
// byte, so each is quoted: \x00 as \x00\x01, and \x00\x00 ends it.
func pathKey(segments []string) string {
	var key strings.Builder
	for _, s := range segments {
		key.WriteString(strings.ReplaceAll(s, "\x00", "\x00\x01"))
		key.WriteString("\x00\x00")
	}
	return key.String()
}

func pathOfKey(key string) []string {
	if key == "" {
		return nil
	}
	segments := strings.Split(strings.TrimSuffix(key, "\x00\x00"), "\x00\x00")
	for i, s := range segments {
		segments[i] = strings.ReplaceAll(s, "\x00\x01", "\x00")
	}
	return segments
}

// atomCost orders the conditions that are left to test, cheapest first.
func atomCost(a *Atom) int {
	if len(a.Token) > 0 {
		cost := 10
		for i := range a.Token {
			cost += atomCost(&a.Token[i])
		}
		return cost
	}
	cost := 1 + 4*len(a.Field.Via)
	if a.Field.many() {
		cost += 5
	}
	for i := range a.Preds {
		p := &a.Preds[i]
		n := len(p.Texts)
		switch p.Op {
		case Equal:
			n = min(n, fewTexts)
		case Contains, CIDR:
			n *= 4
		case Glob, PathMatch:
			n *= 8
		case Regex:
			n *= 30
		}
		cost += n
	}
	return cost
}

// memoCost is from when on remembering an outcome is cheaper than another test.
const memoCost = 4
