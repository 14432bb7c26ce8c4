package program

import (
	"net/netip"
	"strings"

	"github.com/gobwas/glob"

	"github.com/writ-dev/writ/policy"
)

// atom is an Atom as an Evaluator tests it.
type atom struct {
	kind atomKind
	not  bool
	// memo is the place of a shared condition's outcome in memory.memo, -1 for
	// one that a single clause has.
	memo  int32
	field uint32
	texts []string // of atomIs and atomBegins
	preds []pred
	token []atom
}

type atomKind uint8

const (
	atomIs     atomKind = iota // a field of the request is one of few texts
	atomBegins                 // a field of the request begins with one of few
	atomOne                    // a field with at most one text
	atomMany                   // a field with any number of texts
	atomNumber                 // a number
	atomList                   // the segments
	atomTokens                 // one token meets all
)

type pred struct {
	op        Op
	not       bool
	low, high int64
	texts     []string
	// set stands for the texts of an Equal that has many.
	set   map[string]struct{}
	globs []*glob.Pattern
	regex []matcher
	cidrs []netip.Prefix
	paths []*path
	other uint32
}

// remembered is test with a memory, for the length of a decision.
func (e *engine) remembered(r *run, a *atom) bool {
	m := r.memory()
	known := &m.memo[a.memo]
	if *known>>1 != m.gen {
		*known = m.gen << 1
		if e.test(r, a) {
			*known |= 1
		}
	}
	return *known&1 == 1
}

// test reports whether the condition is met.
func (e *engine) test(r *run, a *atom) bool {
	met := false
	switch a.kind {
	case atomIs, atomBegins:
		f := &e.fields[a.field]
		s, ok := r.plain(f)
		if !ok {
			s, ok = r.recall(f, a.field)
		}
		if a.kind == atomIs {
			met = ok && isOneOf(s, a.texts)
		} else {
			met = ok && beginsWithOneOf(s, a.texts)
		}
	case atomOne:
		s, ok := r.oneOf(&e.fields[a.field], a.field)
		met = ok && e.meets(r, a.preds, s)
	case atomMany:
		f := &e.fields[a.field]
		values := r.all(f, a.field)
		for _, s := range values {
			if e.meets(r, a.preds, s) {
				met = true
				break
			}
		}
		if f.token {
			r.drop(values)
		}
	case atomNumber:
		n, ok := r.number(&e.fields[a.field])
		met = ok
		for i := range a.preds {
			p := &a.preds[i]
			met = met && (p.low <= n && n <= p.high) != p.not
		}
	case atomList:
		met = r.request() && r.segments()
		for i := range a.preds {
			p := &a.preds[i]
			met = met && matchAny(p.paths, r.in.Request.Segments) != p.not
		}
	case atomTokens:
		met = e.someToken(r, a.token)
	}
	return met != a.not
}

func (e *engine) someToken(r *run, atoms []atom) bool {
	for i := range r.in.Tokens {
		r.token = &r.in.Tokens[i]
		met := true
		for j := range atoms {
			if !e.test(r, &atoms[j]) {
				met = false
				break
			}
		}
		if met {
			r.token = nil
			return true
		}
	}
	r.token = nil
	return false
}

// meets reports whether s meets all predicates.
func (e *engine) meets(r *run, preds []pred, s string) bool {
	for i := range preds {
		if p := &preds[i]; e.meet(r, p, s) == p.not {
			return false
		}
	}
	return true
}

func (e *engine) meet(r *run, p *pred, s string) bool {
	switch p.op {
	case Equal:
		if p.set != nil {
			_, ok := p.set[s]
			return ok
		}
		return isOneOf(s, p.texts)
	case Prefix:
		return beginsWithOneOf(s, p.texts)
	case Suffix:
		for _, t := range p.texts {
			if strings.HasSuffix(s, t) {
				return true
			}
		}
	case Contains:
		for _, t := range p.texts {
			if strings.Contains(s, t) {
				return true
			}
		}
	case Glob:
		for _, g := range p.globs {
			if g.Match(s) {
				return true
			}
		}
	case Regex:
		for _, x := range p.regex {
			if x.MatchString(s) {
				return true
			}
		}
	case CIDR:
		addr, ok := r.address(s)
		if !ok {
			return false
		}
		for _, n := range p.cidrs {
			if n.Contains(addr) {
				return true
			}
		}
	case Address:
		_, ok := r.address(s)
		return ok
	case EqualField:
		t, ok := r.oneOf(&e.fields[p.other], p.other)
		return ok && s == t
	}
	return false
}

func isOneOf(s string, texts []string) bool {
	for _, t := range texts {
		if s == t {
			return true
		}
	}
	return false
}

func beginsWithOneOf(s string, texts []string) bool {
	for _, t := range texts {
		if strings.HasPrefix(s, t) {
			return true
		}
	}
	return false
}

func matchAny(paths []*path, segments []string) bool {
	for _, p := range paths {
		if p.match(segments) {
			return true
		}
	}
	return false
}

// tierVerdict is what a tier says when it speaks.
func tierVerdict(t policy.Tier) policy.Verdict {
	if t == policy.BreakGlass || t == policy.ServiceAllow {
		return policy.Allow
	}
	return policy.Deny
}
