package compile

import (
	"strings"
	"unicode"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/program"
)

// maxIndex bounds the elements of the input that can be named.
const maxIndex = 1 << 16

// ref goes on with each value that the reference can have.
func (x *evaluation) ref(s state, ref ast.Ref, k func(state, value)) {
	head := ref[0]
	switch {
	case head.Equal(ast.InputRootDocument):
		x.walk(s, node{"input"}, nil, ref[1:], k)
	case head.Equal(ast.DefaultRootDocument):
		root := x.p.Compiler().RuleTree.Child(ast.DefaultRootDocument.Value)
		x.walk(s, doc{root, x.p.Data(), ref[:1]}, nil, ref[1:], k)
	default:
		if _, ok := head.Value.(ast.Call); ok {
			x.ask(s, "%s is not followed", ref)
			return
		}
		x.term(s, head, func(s state, v value) { x.walk(s, v, nil, ref[1:], k) })
	}
}

// walk follows the path from v. present is the condition under which v is
// there; a step further implies it.
func (x *evaluation) walk(s state, v value, present *cond, path []*ast.Term, k func(state, value)) {
	if !x.step() {
		return
	}
	if d, ok := v.(doc); ok {
		x.document(s, d, path, k)
		return
	}
	if len(path) == 0 {
		k(s.and(present), v)
		return
	}
	key := path[0]
	switch v := v.(type) {
	case text, number:
		return // Nothing is below a scalar.
	case node, tokens, token, list, claim:
		x.walkInput(s, v, present, path, k)
	case constant:
		x.walkConstant(s, v, path, k)
	case array, object:
		keys, items, _ := elements(v)
		for i := range keys {
			x.match(s, key, keys[i], func(s state) { x.walk(s, items[i], nil, path[1:], k) })
		}
	case set:
		for _, item := range v.items {
			x.match(s, key, item, func(s state) { x.walk(s, item, nil, path[1:], k) })
		}
	case comprehension:
		// The elements of an array are known by their place; any of them is any
		// member.
		if !x.isFree(s, key) {
			x.ask(s, "%s by %s", describe(v), key)
			return
		}
		s = s.bind(key.Value.(ast.Var), unknown{"an index"})
		x.members(s, v, func(s state, m value) { x.walk(s, m, nil, path[1:], k) })
	case ruleSet:
		x.members(s, v, func(s state, m value) {
			x.match(s, key, m, func(s state) { x.walk(s, m, nil, path[1:], k) })
		})
	case split:
		if x.isFree(s, key) {
			if part, ok := x.anyPart(v); ok {
				s = s.and(presence(part.f, part.elem, part.token)).bind(key.Value.(ast.Var), unknown{"an index"})
				x.walk(s, part, nil, path[1:], k)
				return
			}
		}
		i, ok := x.index(s, key)
		if !ok || v.separator == "" {
			x.ask(s, "the parts of a text, by anything but a literal number")
			return
		}
		part := v.of.via(program.Step{Kind: program.SplitElement, Text: v.separator, Index: i})
		x.walk(s, part, presence(part.f, part.elem, part.token), path[1:], k)
	default:
		x.ask(s, "%s[%s]", describe(v), key)
	}
}

// key is the constant that a term of a path stands for, nil if it has none.
func (x *evaluation) key(s state, t *ast.Term) ast.Value {
	switch v := t.Value.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String:
		return v
	case ast.Var:
		if bound, ok := s.lookup(v); ok {
			if c, ok := bound.(constant); ok {
				return c.v
			}
		}
	}
	return nil
}

// index is the key as the index of an element.
func (x *evaluation) index(s state, t *ast.Term) (int32, bool) {
	n, ok := x.key(s, t).(ast.Number)
	if !ok {
		return 0, false
	}
	i, ok := whole(n)
	return int32(i), ok && i >= 0 && i < maxIndex
}

func (x *evaluation) walkInput(s state, v value, present *cond, path []*ast.Term, k func(state, value)) {
	constantKey := x.key(s, path[0])
	name, isName := constantKey.(ast.String)
	switch v := v.(type) {
	case node:
		switch {
		case isName:
			if (v.path == "headers" || v.path == "query") && !plainName(v.path, string(name)) {
				x.ask(s, "the name %q", string(name))
			} else if v.path == "destination" && name == "service" {
				x.serviceRead = true
				x.walk(s, constant{ast.String(x.service)}, nil, path[1:], k)
			} else if m, present, ok := v.member(string(name)); ok {
				x.walk(s, m, present, path[1:], k)
			}
		case constantKey != nil: // No field has such a name.
		default:
			x.ask(s.and(present), "any field of %s", v.path)
		}
	case tokens:
		if !x.isFree(s, path[0]) {
			x.ask(s, "tokens by their place")
			return
		}
		s, t := x.newToken(s)
		s = s.bind(path[0].Value.(ast.Var), unknown{"an index"})
		x.walk(s, t, nil, path[1:], k)
	case token:
		x.walkToken(s, v, string(name), isName, path, k)
	case claim:
		x.walkClaim(s, v, name, isName, path, k)
	case list:
		x.walkList(s, v, path, k)
	}
}

// plainName reports whether a header or query parameter can be looked up by
// the name. Names of headers are lower case, and what is not UTF-8 in a request
// is written otherwise there.
func plainName(of, name string) bool {
	if of == "headers" && (name == "" || name != strings.ToLower(name)) {
		return false
	}
	return !strings.ContainsRune(name, unicode.ReplacementChar) && len(name) <= maxOperand
}

func (x *evaluation) walkToken(s state, t token, name string, isName bool, path []*ast.Term, k func(state, value)) {
	if !isName {
		x.ask(s, "any field of a token")
		return
	}
	of := func(b program.Base) {
		x.walk(s, text{newField(program.Field{Base: b}), 0, t.id}, nil, path[1:], k)
	}
	switch name {
	case "issuer":
		of(program.TokenIssuer)
	case "subject":
		of(program.TokenSubject)
	case "actor":
		of(program.TokenActor)
	case "audience":
		x.walk(s, list{base: program.TokenAudience, token: t.id}, nil, path[1:], k)
	case "claims":
		x.walk(s, claim{token: t.id}, nil, path[1:], k)
	}
}

func (x *evaluation) walkList(s state, l list, path []*ast.Term, k func(state, value)) {
	if i, ok := x.index(s, path[0]); ok {
		at := l.at(i)
		x.walk(s, at, presence(at.f, 0, at.token), path[1:], k)
		return
	}
	if x.isFree(s, path[0]) {
		at := x.any(l)
		s = s.and(presence(at.f, at.elem, at.token)).bind(path[0].Value.(ast.Var), unknown{"an index"})
		x.walk(s, at, nil, path[1:], k)
		return
	}
	switch key := x.key(s, path[0]); key.(type) {
	case nil:
		x.ask(s, "an element of a list by %s", path[0])
	case ast.Number:
		x.ask(s, "an element of a list by %s", key)
	} // By anything else there is none.
}

func (x *evaluation) walkConstant(s state, v constant, path []*ast.Term, k func(state, value)) {
	key := x.key(s, path[0])
	switch c := v.v.(type) {
	case ast.Object:
		if key != nil {
			if t := c.Get(ast.NewTerm(key)); t != nil {
				x.walk(s, constant{t.Value}, nil, path[1:], k)
			}
			return
		}
	case ast.Set:
		if key != nil {
			if t := ast.NewTerm(key); c.Contains(t) {
				x.walk(s, constant{key}, nil, path[1:], k)
			}
			return
		}
	case *ast.Array:
		if key != nil {
			if t := c.Get(ast.NewTerm(key)); t != nil {
				x.walk(s, constant{t.Value}, nil, path[1:], k)
			}
			return
		}
	default:
		return
	}
	keys, items, _ := elements(v)
	if t, ok := path[0].Value.(ast.Var); ok && len(path) == 1 {
		// Only whether it is there matters of a text in a set of texts.
		if bound, _ := s.lookup(t); bound != nil {
			if of, isText := bound.(text); isText && isSet(v) && x.oneOf(s, of, items, func(s state) { k(s, of) }) {
				return
			}
		}
	}
	for i := range keys {
		x.match(s, path[0], keys[i], func(s state) { x.walk(s, items[i], nil, path[1:], k) })
	}
}

func isSet(v constant) bool {
	_, ok := v.v.(ast.Set)
	return ok
}

// document follows a path into data, rules and what lies beside them.
func (x *evaluation) document(s state, d doc, path []*ast.Term, k func(state, value)) {
	if d.tree == nil || !hasRules(d.tree) {
		if d.base != nil {
			x.walk(s, constant{d.base}, nil, path, k)
		}
		return
	}
	if len(d.tree.Values) > 0 {
		x.virtual(s, d, path, k)
		return
	}
	if len(path) == 0 {
		if x.treeDepends(d.tree) {
			x.ask(s, "%s as a whole", d.ref)
			return
		}
		x.constantDocument(s, d.ref, nil, k)
		return
	}
	key := x.key(s, path[0])
	if key == nil {
		if !x.treeDepends(d.tree) {
			x.constantDocument(s, d.ref, path, k)
			return
		}
		x.ask(s, "any of the rules in %s", d.ref)
		return
	}
	next := doc{tree: child(d.tree, key), ref: d.ref.Append(ast.NewTerm(key))}
	if base, ok := d.base.(ast.Object); ok {
		if t := base.Get(ast.NewTerm(key)); t != nil {
			next.base = t.Value
		}
	}
	x.walk(s, next, nil, path[1:], k)
}

func hasRules(tree *ast.TreeNode) bool {
	found := false
	tree.DepthFirst(func(n *ast.TreeNode) bool {
		found = found || len(n.Values) > 0
		return found
	})
	return found
}

// constantDoc is the value of a document that depends on no input.
type constantDoc struct {
	value ast.Value // nil when it is undefined
	why   string    // why it has none
}

// constantDocument goes on below a document that depends on no input.
func (x *evaluation) constantDocument(s state, ref ast.Ref, path []*ast.Term, k func(state, value)) {
	name := ref.String()
	d, ok := x.documents[name]
	if !ok {
		body := constantBody(nil).with(ast.Equality.Expr(ast.VarTerm(string(resultVar)), ast.NewTerm(ref)))
		asks := x.apart(func() {
			x.constant(state{}, body, func(_ state, v value) { d.value = v.(constant).v })
		})
		if len(asks) > 0 {
			d = constantDoc{why: asks[0].why}
		}
		x.documents[name] = d
	}
	switch {
	case d.why != "":
		x.ask(s, "%s", d.why)
	case d.value != nil:
		x.walk(s, constant{d.value}, nil, path, k)
	}
}
