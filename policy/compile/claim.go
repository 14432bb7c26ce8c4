package compile

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/program"
)

// What a claim is, as program.TokenClaimKind has it.
const (
	kindString  = "string"
	kindStrings = "strings"
	kindArray   = "array"
	kindObject  = "object"
)

func (c claim) field(b program.Base) *field { return newField(program.Field{Base: b, Name: c.path}) }

// present is that the claim is there, whatever it is.
func (c claim) present() *cond {
	if c.path == "" {
		return nil
	}
	return presence(c.field(program.TokenClaimKind), 0, c.token)
}

// is one of these kinds.
func (c claim) is(kinds ...string) *cond {
	return equalsAny(c.field(program.TokenClaimKind), 0, c.token, kinds...)
}

// isNot is there and none of these kinds.
func (c claim) isNot(kinds ...string) *cond {
	out := c.is(kinds...)
	out.pred[0].Not = true
	out.setKey()
	return out
}

// walkClaim follows a path below the claims of a token.
func (x *evaluation) walkClaim(s state, c claim, name ast.String, isName bool, path []*ast.Term, k func(state, value)) {
	switch {
	case isName && (name == "" || strings.Contains(string(name), "\x00")):
		x.ask(s, "the name %q of a claim", string(name)) // A path could not tell it.
	case isName:
		below := claim{c.token, string(name)}
		if c.path != "" {
			below.path = c.path + "\x00" + string(name)
		}
		x.walk(s, below, below.present(), path[1:], k)
	case x.isFree(s, path[0]) && c.path != "":
		s = s.bind(path[0].Value.(ast.Var), unknown{"an index"})
		x.items(s, c, func(s state, item text) { x.walk(s, item, nil, path[1:], k) })
	default:
		x.ask(s, "what is below a claim")
	}
}

// items goes on with some element of a claim that is a list of texts. Other
// lists and objects are asked about; below anything else there is nothing.
func (x *evaluation) items(s state, c claim, k func(state, text)) {
	x.ask(s.and(c.is(kindArray, kindObject)), "a claim that is no list of texts")
	item := c.field(program.TokenClaimItem).Field
	item.Index = -1
	t := text{newField(item), x.newID(), c.token}
	k(s.and(c.is(kindStrings)).and(presence(t.f, t.elem, t.token)), t)
}

// asText goes on with a claim that is a text. One of another
// kind is asked about.
func (x *evaluation) asText(s state, c claim, k func(state, text)) {
	if c.path == "" {
		x.ask(s, "all claims of a token")
		return
	}
	x.ask(s.and(c.isNot(kindString)), "a claim that is no text")
	k(s.and(c.is(kindString)), text{c.field(program.TokenClaim), 0, c.token})
}

// claimIn goes on where the claim is one of the texts. Of another kind, it is
// not.
func (x *evaluation) claimIn(s state, c claim, texts []string, k func(state)) {
	if len(texts) > 0 {
		k(s.and(c.is(kindString)).and(equalsAny(c.field(program.TokenClaim), 0, c.token, texts...)))
	}
}

// texts goes on with each claim among the values as a text.
func (x *evaluation) texts(s state, values, done []value, k func(state, []value)) {
	if len(values) == 0 {
		k(s, done)
		return
	}
	if c, ok := values[0].(claim); ok {
		x.asText(s, c, func(s state, t text) { x.texts(s, values[1:], append(done[:len(done):len(done)], t), k) })
		return
	}
	x.texts(s, values[1:], append(done[:len(done):len(done)], values[0]), k)
}
