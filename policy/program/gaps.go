package program

import (
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode"
	"unicode/utf8"
)

// matcher is a regular expression: as the library has it, or as gaps.
type matcher interface {
	MatchString(s string) bool
}

func compileRegex(s string) (matcher, error) {
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, err
	}
	if g := newGaps(s); g != nil {
		return g, nil
	}
	return re, nil
}

// gaps is an expression that is texts with gaps between them, from begin to end
// of what it matches, as patterns with stars become: ^a/[^/]+/b[^/]*c$. It is
// one for which a single way through a value decides: the text after a gap that
// is not the last has the character that the gap cannot hold.
type gaps struct {
	texts []string // one more than gaps
	gaps  []gap
}

// gap is any run of characters but one, or of all when not is 0.
type gap struct {
	not byte
	min int // characters, 0 or 1
	// before is how much of the next text stands before its first not.
	before int
}

// newGaps is the expression as gaps, nil when it is not of this kind.
func newGaps(s string) *gaps {
	re, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil
	}
	parts := flat(nil, re.Simplify())
	if len(parts) < 3 || parts[0].Op != syntax.OpBeginText || parts[len(parts)-1].Op != syntax.OpEndText {
		return nil
	}
	g := &gaps{texts: []string{""}}
	for _, part := range parts[1 : len(parts)-1] {
		last := len(g.texts) - 1
		switch part.Op {
		case syntax.OpLiteral:
			if part.Flags&syntax.FoldCase != 0 {
				return nil
			}
			g.texts[last] += string(part.Rune)
		case syntax.OpStar, syntax.OpPlus:
			not, ok := allBut(part.Sub[0])
			if !ok {
				return nil
			}
			g.gaps = append(g.gaps, gap{not: not, min: int(flag(part.Op == syntax.OpPlus, 1))})
			g.texts = append(g.texts, "")
		default:
			return nil
		}
	}
	for i := range len(g.gaps) - 1 {
		x := &g.gaps[i]
		if x.before = strings.IndexByte(g.texts[i+1], x.not); x.not == 0 || x.before < 0 {
			return nil
		}
	}
	for _, text := range g.texts {
		if !utf8.ValidString(text) {
			return nil
		}
	}
	return g
}

// flat is what re is a sequence of.
func flat(parts []*syntax.Regexp, re *syntax.Regexp) []*syntax.Regexp {
	if re.Op != syntax.OpConcat {
		return append(parts, re)
	}
	for _, sub := range re.Sub {
		parts = flat(parts, sub)
	}
	return parts
}

// allBut is the one ASCII character that re, a single character, is not; 0 when
// it is any.
func allBut(re *syntax.Regexp) (byte, bool) {
	switch re.Op {
	case syntax.OpAnyChar:
		return 0, true
	case syntax.OpCharClass:
		if r := re.Rune; len(r) == 4 && r[0] == 0 && r[3] == unicode.MaxRune && r[2]-r[1] == 2 && r[1]+1 < utf8.RuneSelf && r[1]+1 > 0 {
			return byte(r[1] + 1), true
		}
	}
	return 0, false
}

// MatchString reports whether s is matched. What is not UTF-8 is, as in package
// regexp, a character of one byte.
func (g *gaps) MatchString(s string) bool {
	if len(g.gaps) == 0 {
		return s == g.texts[0]
	}
	s, ok := strings.CutPrefix(s, g.texts[0])
	if !ok {
		return false
	}
	last := len(g.gaps) - 1
	for i, x := range g.gaps[:last] {
		at := strings.IndexByte(s, x.not)
		if at < x.min+x.before {
			return false
		}
		if s, ok = strings.CutPrefix(s[at-x.before:], g.texts[i+1]); !ok {
			return false
		}
	}
	s, ok = strings.CutSuffix(s, g.texts[last+1])
	x := g.gaps[last]
	return ok && len(s) >= x.min && (x.not == 0 || strings.IndexByte(s, x.not) < 0)
}
