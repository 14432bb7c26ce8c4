package program

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/writ-dev/writ/policy"
)

// source makes programs and inputs of few and similar texts, so that
// conditions often hold, nest and share their parts.
type source struct{ *rand.Rand }

func of[T any](s source, list ...T) T { return list[s.IntN(len(list))] }

var words = []string{"", "a", "b", "ab", "aba", "abab", "/", "/a", "/a/", "/a/b", "/ab", "A", "aB", "é", "\uFFFD", "a\uFFFD", "GET", "POST", ".a", "b.a", "x.b.a"}

func (s source) word() string { return words[s.IntN(len(words))] }

func (s source) text() string {
	switch s.IntN(12) {
	case 0:
		return s.word() + s.word()
	case 1:
		return " " + s.word() + ","
	case 2:
		return s.word() + "," + s.word() + "," + s.word()
	}
	return s.word()
}

func (s source) texts(one func() string) []string {
	n := 1
	if s.IntN(3) == 0 {
		n = 1 + s.IntN(8)
	}
	texts := make([]string, n)
	for i := range texts {
		texts[i] = one()
	}
	return texts
}

func (s source) segment() string {
	return of(s, "a", "b", "ab", "aba", "", "x", "a/b", "\x00a")
}

func (s source) pathPattern() string {
	if s.IntN(8) == 0 {
		return of(s, "/", "/*", "/{**}", "/{**}/*", "/*/", "//")
	}
	pattern, open := "", false
	for range 1 + s.IntN(3) {
		part := of(s, "a", "b", "ab", "a*", "*b", "*", "a*a", "{*}", "{**}", "")
		if part == "{**}" {
			if open {
				part = "*"
			}
			open = true
		}
		pattern += "/" + part
	}
	return pattern
}

func (s source) index() int32 { return of[int32](s, Any, Any, 0, 1, 2) }

func (s source) steps() []Step {
	var via []Step
	for range of(s, 0, 0, 0, 0, 1, 1, 2, 3) {
		step := Step{Kind: StepKind(1 + s.IntN(int(endStep)-1))}
		if step.Kind.hasText() {
			step.Text = of(s, "a", "/", ",", "ab", ".")
		}
		if step.Kind == SplitElement {
			step.Index = of[int32](s, Any, 0, 0, 1)
		}
		via = append(via, step)
	}
	return via
}

func (s source) field(token bool) Field {
	for {
		f := Field{Base: Base(1 + s.IntN(int(endBase)-1))}
		if ofToken(f.Base) != token {
			continue
		}
		if !token && s.IntN(2) == 0 {
			f.Base = of(s, SourceID, Method, Path, Header, Segments)
		}
		if named(f.Base) {
			f.Name = of(s, "a", "b")
			if token {
				f.Name = of(s, "a", "b", "a\x00b")
			}
		}
		if indexed(f.Base) {
			f.Index = s.index()
		}
		if atOffset(f.Base) {
			f.Index = OffsetUTC + of[int32](s, 0, 60, -690, 840)
		}
		if shapeOf(f.Base) == shapeText {
			f.Via = s.steps()
		}
		return f
	}
}

func (s source) pred(of1 shape, token bool) Pred {
	p := Pred{Not: s.IntN(6) == 0}
	switch of1 {
	case shapeNumber:
		p.Op = Range
		p.Low = of[int64](s, math.MinInt64, -1, 0, 1, 2, 80)
		p.High = max(p.Low, of[int64](s, 0, 1, 2, 443, math.MaxInt64))
		return p
	case shapeList:
		p.Op, p.Texts = PathMatch, s.texts(s.pathPattern)
		return p
	}
	p.Op = of(s, Equal, Equal, Equal, Prefix, Prefix, Suffix, Contains, Glob, Regex, CIDR, Address, EqualField)
	switch p.Op {
	case Glob:
		p.Texts = s.texts(func() string {
			return of(s, "", ".", "/") + "\x00" + of(s, "*", "a*", "*.a", "/a/*", "**b", "{a,b}*", "ab", "[ab]a", "/a/?")
		})
	case Regex:
		p.Texts = s.texts(func() string { return of(s, "^a", "a$", "^/a/", "b", "^(a|b)+$", "(?i)^a", "^ab*") })
	case CIDR:
		p.Texts = s.texts(func() string { return of(s, "10.0.0.0/8", "10.1.2.3/32", "::/0", "::ffff:10.0.0.0/104", "fe80::/10") })
	case EqualField:
		for {
			f := s.field(token && s.IntN(2) == 0)
			if shapeOf(f.Base) == shapeText && !f.many() {
				p.Other = &f
				return p
			}
		}
	case Address:
	default:
		p.Texts = s.texts(s.word)
	}
	return p
}

func (s source) atom(token bool) Atom {
	a := Atom{Not: s.IntN(5) == 0}
	if !token && s.IntN(8) == 0 {
		for range 1 + s.IntN(3) {
			one := s.atom(true)
			if s.IntN(2) == 0 && (one.Field.Base == TokenClaim || one.Field.Base == TokenClaimItem) {
				a.Token = append(a.Token, Atom{
					Field: Field{Base: TokenClaimKind, Name: one.Field.Name}, Preds: equal(of(s, "string", "strings", "true")), Not: s.IntN(8) == 0,
				})
			}
			a.Token = append(a.Token, one)
		}
		return a
	}
	a.Field = s.field(token)
	for range of(s, 0, 1, 1, 1, 1, 1, 2, 3) {
		a.Preds = append(a.Preds, s.pred(shapeOf(a.Field.Base), token))
	}
	return a
}

// lookedUp is a condition that an index can look up.
func (s source) lookedUp() Atom {
	preds := func() []Pred {
		preds := []Pred{{Op: of(s, Equal, Prefix, Suffix, Contains), Texts: s.texts(s.word)}}
		if s.IntN(3) == 0 {
			preds = append(preds, Pred{Op: of(s, Equal, Prefix), Texts: s.texts(s.word), Not: s.IntN(3) > 0})
		}
		return preds
	}
	switch s.IntN(4) {
	case 0:
		return Atom{Field: Field{Base: of(s, Header, Query), Name: of(s, "a", "b"), Index: Any}, Preds: preds()}
	case 1:
		return Atom{Field: Field{Base: of(s, SourceID, Host)}, Preds: preds()}
	case 2:
		return Atom{Field: Field{Base: Segments}, Preds: []Pred{{Op: PathMatch, Texts: s.texts(s.pathPattern)}}}
	}
	a := Atom{Token: []Atom{{Field: Field{Base: TokenAudience, Index: Any}, Preds: preds()}}}
	if s.IntN(2) == 0 {
		a.Token = append(a.Token, Atom{Field: Field{Base: of(s, TokenSubject, TokenIssuer)}, Preds: preds(), Not: s.IntN(3) == 0})
	}
	return a
}

// clauses share their atoms.
func (s source) clauses(tier policy.Tier, atoms []Atom, n, rules int) []Clause {
	clauses := make([]Clause, n)
	for i := range clauses {
		c := &clauses[i]
		if tier != 0 {
			c.Rule = uint32(s.IntN(rules))
			c.Ask = s.IntN(40) == 0
		}
		if tier == policy.BreakGlass || tier == policy.ServiceAllow && s.IntN(3) == 0 {
			c.Expires = 1 + s.Int64N(100)
		}
		for range s.IntN(5) {
			c.Atoms = append(c.Atoms, of(s, atoms...))
		}
		if len(c.Atoms) == 0 && s.IntN(20) > 0 {
			c.Atoms = append(c.Atoms, of(s, atoms...))
		}
	}
	return clauses
}

func (s source) program() *Program {
	p := &Program{Compiler: "test"}
	for i := range 1 + s.IntN(30) {
		p.Rules = append(p.Rules, policy.Rule{ID: string(rune('z'-i%26)) + string(rune('a'+i/26)), File: "f.rego", Line: i})
	}
	var atoms []Atom
	most := 60
	if s.IntN(3) > 0 {
		for range 3 + s.IntN(40) {
			atoms = append(atoms, s.atom(false))
		}
	} else {
		// Many clauses that differ in a few fields: an index of some depth.
		most = 250
		for range 60 {
			atoms = append(atoms, s.lookedUp())
		}
	}
	for _, service := range []string{"one", "two"} {
		u := Unit{Service: service, HasPolicy: s.IntN(2) == 0}
		if s.IntN(4) == 0 {
			u.Ask = s.clauses(0, atoms, 1+s.IntN(2), 0)
		}
		for tier := policy.Guardrail; tier <= policy.ServiceAllow; tier++ {
			if s.IntN(3) == 0 {
				u.Clauses[tier] = s.clauses(tier, atoms, of(s, 1, 2, 5, 20, most), len(p.Rules))
			}
		}
		p.Units = append(p.Units, u)
	}
	return p
}

func (s source) values() policy.Values {
	if s.IntN(5) == 0 {
		return nil
	}
	values := policy.MapValues{}
	for _, name := range []string{"a", "b"} {
		switch s.IntN(3) {
		case 0:
			values[name] = s.texts(s.text)
		case 1:
			values[name] = []string{}
		}
	}
	return values
}

func (s source) claim(depth int) any {
	switch s.IntN(10) {
	case 0:
		return of[any](s, nil, true, false, 1.5)
	case 1:
		return []any{s.word(), of[any](s, "a", 1.0)}
	case 2, 3:
		return []any{s.word(), s.word()}
	case 4, 5:
		if depth == 0 {
			return map[string]any{"a": s.claim(1), "b": s.claim(1)}
		}
	}
	return s.word()
}

// input is clean when it holds nothing that a Program may ask about beyond
// what it says: no bytes that are not UTF-8, no claims of odd kinds.
func (s source) input() (in *policy.Input, clean bool) {
	address := func() string {
		return of(s, "", "10.1.2.3", "::ffff:10.1.2.3", "fe80::1", "fe80::1%eth0", "192.0.2.1", "x")
	}
	in = &policy.Input{
		Direction: of(s, "inbound", "outbound"),
		Layer:     of(s, "request", "request", "request", "connection"),
		Source:    policy.Source{ID: s.text(), TrustDomain: s.text(), Path: s.text(), Authn: s.text()},
		Destination: policy.Destination{
			Service: of(s, "one", "two"), ID: s.text(), Port: of(s, 0, 80, 443, 8080),
		},
		TokenStatus: of(s, "", "absent", "valid"),
		Connection:  policy.Connection{PeerIP: address(), ClientIP: address(), TLSVersion: s.text(), SNI: s.text(), ALPN: s.text()},
		Time:        time.Unix(0, of[int64](s, 0, 1, 2, 1<<60)),
		Request: policy.Request{
			Protocol: of(s, "http", "grpc"), Method: s.text(), Host: s.text(), Path: s.text(),
			Query: s.values(), Headers: s.values(), GRPCService: s.text(), GRPCMethod: s.text(),
			ContentLength: of[int64](s, -1, 0, 1, 100),
		},
	}
	for range s.IntN(4) {
		in.Request.Segments = append(in.Request.Segments, s.segment())
	}
	clean = true
	for range of(s, 0, 0, 1, 2) {
		t := policy.Token{Issuer: s.text(), Subject: s.text(), Actor: s.text(), Audience: s.texts(s.text)}
		if s.IntN(3) > 0 {
			t.Claims = map[string]any{"a": s.claim(0)}
			clean = false
		}
		in.Tokens = append(in.Tokens, t)
	}
	if s.IntN(4) == 0 {
		clean = false
		broken := of(s, "a\xff", "\xff", "\xffa", "a\xc3", "\xc3é", "\xe2\x82a", "ab\xed\xa0\x80")
		switch s.IntN(8) {
		case 5:
			in.Source.TrustDomain, in.Source.Path, in.Source.Authn = broken, broken, broken
		case 6:
			in.Request.Method, in.Request.Host, in.Connection.SNI = broken, broken, s.word()+broken
		case 7:
			in.Request.Segments = []string{broken, "a"}
			in.Request.Headers = policy.MapValues{"a": {broken}, "b": {"b", broken}}
		case 0:
			in.Source.ID = "a\xff"
		case 1:
			in.Request.Path = "/a/\xc3"
		case 2:
			in.Request.Segments = []string{"a", "\xff"}
		case 3:
			in.Request.Headers = policy.MapValues{"a": {"a", "\xffa"}}
		case 4:
			in.Tokens = []policy.Token{{Subject: "\xff", Audience: []string{"a", "\xff"}}}
		}
	}
	return in, clean
}
