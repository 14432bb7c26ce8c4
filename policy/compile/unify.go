package compile

import (
	"math"
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/program"
)

// unify goes on where a = b, and binds variables that have no value yet.
func (x *evaluation) unify(s state, a, b *ast.Term, k func(state)) {
	switch {
	case x.unbound(s, a):
		if x.unbound(s, b) {
			if name, ok := b.Value.(ast.Var); ok && !x.isFree(s, a) {
				x.term(s, a, func(s state, v value) { k(s.bind(name, v)) })
				return
			}
			x.ask(s, "%s = %s with no value on either side", a, b)
			return
		}
		x.term(s, b, func(s state, v value) { x.match(s, a, v, k) })
	default:
		x.term(s, a, func(s state, v value) { x.match(s, b, v, k) })
	}
}

// isFree reports whether the term is a variable without a value.
func (x *evaluation) isFree(s state, t *ast.Term) bool {
	name, ok := t.Value.(ast.Var)
	if !ok {
		return false
	}
	_, bound := s.lookup(name)
	return !bound
}

// unbound reports whether the term is, or has in it as a pattern, a variable
// without a value.
func (x *evaluation) unbound(s state, t *ast.Term) bool {
	switch v := t.Value.(type) {
	case ast.Var:
		return x.isFree(s, t)
	case *ast.Array:
		return v.Until(func(t *ast.Term) bool { return x.unbound(s, t) })
	case ast.Object:
		return v.Until(func(_, t *ast.Term) bool { return x.unbound(s, t) })
	}
	return false
}

// match goes on where the pattern equals v.
func (x *evaluation) match(s state, pattern *ast.Term, v value, k func(state)) {
	if !x.unbound(s, pattern) {
		x.term(s, pattern, func(s state, p value) { x.equal(s, p, v, k) })
		return
	}
	switch p := pattern.Value.(type) {
	case ast.Var:
		k(s.bind(p, v))
	case *ast.Array:
		x.matchArray(s, p, v, k)
	case ast.Object:
		x.matchObject(s, p, v, k)
	default:
		x.ask(s, "%s is not followed", pattern)
	}
}

func (x *evaluation) matchArray(s state, p *ast.Array, v value, k func(state)) {
	n := p.Len()
	var item func(i int) value
	switch v := v.(type) {
	case constant:
		c, ok := v.v.(*ast.Array)
		if !ok || c.Len() != n {
			return
		}
		item = func(i int) value { return constant{c.Elem(i).Value} }
	case array:
		if len(v.items) != n {
			return
		}
		item = func(i int) value { return v.items[i] }
	case list:
		if v.token != 0 {
			x.ask(s, "a list of a token as a whole")
			return
		}
		s = s.and(inRange(v.counter(), int64(n), int64(n)))
		item = func(i int) value { return v.at(int32(i)) }
	case text, number, node, object, set, ruleSet:
		return
	default:
		x.ask(s, "an array pattern of %s", describe(v))
		return
	}
	var next func(s state, i int)
	next = func(s state, i int) {
		if i == n {
			k(s)
			return
		}
		x.match(s, p.Elem(i), item(i), func(s state) { next(s, i+1) })
	}
	next(s, 0)
}

func (x *evaluation) matchObject(s state, p ast.Object, v value, k func(state)) {
	keys, items, ok := elements(v)
	switch v := v.(type) {
	case constant:
		if _, isObject := v.v.(ast.Object); !isObject {
			return
		}
	case object:
	default:
		ok = false
	}
	if !ok {
		x.ask(s, "an object pattern of %s", describe(v))
		return
	}
	if len(keys) != p.Len() {
		return
	}
	pattern := p.Keys()
	var next func(s state, i int)
	next = func(s state, i int) {
		if i == len(pattern) {
			k(s)
			return
		}
		if !isPlain(pattern[i]) {
			x.ask(s, "an object pattern with a key that is computed")
			return
		}
		at := slices.IndexFunc(keys, func(v value) bool { return v.(constant).v.Compare(pattern[i].Value) == 0 })
		if at >= 0 {
			x.match(s, p.Get(pattern[i]), items[at], func(s state) { next(s, i+1) })
		}
	}
	next(s, 0)
}

func describe(v value) string {
	switch v := v.(type) {
	case unknown:
		return v.what
	case claim:
		return "a claim"
	case ruleSet:
		return "a set that rules make"
	case comprehension:
		return "a comprehension over the input"
	case size:
		return "count of " + describe(v.of)
	case split:
		return "the parts of a text"
	case clockText:
		return "input.time as a text"
	case tokens, token:
		return "tokens"
	case doc:
		return v.ref.String()
	case node:
		return v.path
	}
	return "such a value"
}

// equal goes on where a and b are equal.
func (x *evaluation) equal(s state, a, b value, k func(state)) {
	if _, ok := a.(constant); ok {
		a, b = b, a // The constant second.
	}
	c, isConstant := b.(constant)
	switch a := a.(type) {
	case constant:
		if a.v.Compare(c.v) == 0 {
			k(s)
		}
		return
	case text:
		switch b := b.(type) {
		case claim:
			x.equal(s, b, a, k)
			return
		case constant:
			if t, ok := b.v.(ast.String); ok {
				k(s.and(equalsAny(a.f, a.elem, a.token, string(t))))
			}
			return
		case text:
			x.equalTexts(s, a, b, k)
			return
		case number, node, list, array, object, set, split, ruleSet, tokens, token:
			return
		}
	case number:
		if isConstant {
			n, ok := c.v.(ast.Number)
			if !ok {
				return
			}
			if i, ok := whole(n); ok {
				k(s.and(inRange(a.f, i, i)))
				return
			}
		}
		switch b.(type) {
		case text, node, list, array, object, set, split, ruleSet, tokens, token:
			return
		}
	case size:
		if isConstant && c.v.Compare(ast.Number("0")) == 0 {
			x.empty(s, a.of, k)
			return
		}
	case claim:
		if c, ok := c.v.(ast.Boolean); ok && isConstant && a.path != "" {
			k(s.and(a.is(c.String())))
			return
		}
		if t, ok := c.v.(ast.String); ok && isConstant && a.path != "" {
			x.claimIn(s, a, []string{string(t)}, k)
			return
		}
		x.asText(s, a, func(s state, t text) { x.equal(s, t, b, k) })
		return
	case array, list:
		if x.equalLists(s, a, b, k) {
			return
		}
	case node, object:
		if isConstant {
			if _, isObject := c.v.(ast.Object); !isObject {
				return
			}
		}
	}
	x.ask(s, "%s is compared with %s", describe(a), describe(b))
}

// whole is the number as an int64 that is exactly it.
func whole(n ast.Number) (int64, bool) {
	i, ok := n.Int64()
	return i, ok && n.Compare(ast.Number(strconv.FormatInt(i, 10))) == 0
}

func (x *evaluation) equalTexts(s state, a, b text, k func(state)) {
	if a.f.key == b.f.key && a.elem == b.elem && a.token == b.token {
		k(s)
		return
	}
	if b.elem != 0 || b.token != 0 {
		a, b = b, a
	}
	if b.elem != 0 || b.token != 0 || a.token != 0 {
		x.ask(s, "elements of two lists are compared")
		return
	}
	k(s.and(newCond(a.f, a.elem, a.token, program.Pred{Op: program.EqualField, Other: &b.f.Field})))
}

// equalLists reports whether it could be followed.
func (x *evaluation) equalLists(s state, a, b value, k func(state)) bool {
	if _, ok := a.(list); !ok {
		a, b = b, a
	}
	if l, ok := a.(list); ok && l.token == 0 {
		_, items, ok := elements(b)
		if c, isConstant := b.(constant); isConstant {
			if _, isArray := c.v.(*ast.Array); !isArray {
				return true // Never equal.
			}
		}
		if !ok {
			return false
		}
		s = s.and(inRange(l.counter(), int64(len(items)), int64(len(items))))
		own := make([]value, len(items))
		for i := range own {
			own[i] = l.at(int32(i))
		}
		x.equalAll(s, own, items, k)
		return true
	}
	_, aa, ok := elements(a)
	_, bb, ok2 := elements(b)
	if !ok || !ok2 || !isArray(a) || !isArray(b) {
		return false
	}
	if len(aa) == len(bb) {
		x.equalAll(s, aa, bb, k)
	}
	return true
}

func isArray(v value) bool {
	if c, ok := v.(constant); ok {
		_, ok := c.v.(*ast.Array)
		return ok
	}
	_, ok := v.(array)
	return ok
}

func (x *evaluation) equalAll(s state, a, b []value, k func(state)) {
	if len(a) == 0 {
		k(s)
		return
	}
	x.equal(s, a[0], b[0], func(s state) { x.equalAll(s, a[1:], b[1:], k) })
}

// compare goes on where a op b, for the operators of order.
func (x *evaluation) compare(s state, op string, a, b value, k func(state)) {
	flipped := map[string]string{"lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte"}
	if _, ok := a.(constant); ok {
		a, b, op = b, a, flipped[op]
	}
	if of, ok := a.(size); ok {
		if c, ok := b.(constant); ok {
			if limit, ok := c.v.(ast.Number); ok {
				if i, ok := whole(limit); ok {
					x.compareSize(s, op, of, i, k)
					return
				}
			}
		}
	}
	n, isNumber := a.(number)
	c, isConstant := b.(constant)
	if isNumber && isConstant {
		if limit, ok := c.v.(ast.Number); ok {
			if i, ok := whole(limit); ok {
				x.compareWhole(s, op, n, i, k)
				return
			}
		}
	}
	x.ask(s, "the order of %s and %s", describe(a), describe(b))
}

func (x *evaluation) compareWhole(s state, op string, n number, i int64, k func(state)) {
	low, high := int64(math.MinInt64), int64(math.MaxInt64)
	switch op {
	case "lt":
		if i == low {
			return
		}
		high = i - 1
	case "lte":
		high = i
	case "gt":
		if i == high {
			return
		}
		low = i + 1
	case "gte":
		low = i
	}
	k(s.and(inRange(n.f, low, high)))
}

// member goes on where v is a value of the collection.
func (x *evaluation) member(s state, v, collection value, k func(state)) {
	switch c := collection.(type) {
	case text, number:
		return // Nothing is in a scalar.
	case list:
		elem := x.any(c)
		x.equal(s.and(presence(elem.f, elem.elem, elem.token)), elem, v, k)
		return
	case split:
		if part, ok := x.anyPart(c); ok {
			x.equal(s.and(presence(part.f, part.elem, part.token)), part, v, k)
			return
		}
	case claim:
		if c.path != "" {
			x.items(s, c, func(s state, item text) { x.equal(s, item, v, k) })
			return
		}
	case ruleSet, comprehension:
		x.members(s, c, func(s state, m value) { x.equal(s, m, v, k) })
		return
	case set:
		for _, m := range c.items {
			x.equal(s, m, v, k)
		}
		return
	case array, object, constant:
		_, items, ok := elements(c)
		if !ok {
			return
		}
		if t, isText := v.(text); isText && x.oneOf(s, t, items, k) {
			return
		}
		if c, isClaim := v.(claim); isClaim && c.path != "" {
			if texts, ok := allTexts(items); ok {
				x.claimIn(s, c, texts, k)
				return
			}
		}
		for _, m := range items {
			x.equal(s, m, v, k)
		}
		return
	}
	x.ask(s, "in %s", describe(collection))
}

func allTexts(items []value) ([]string, bool) {
	texts := make([]string, len(items))
	for i, m := range items {
		t, ok := constantText(m)
		if !ok {
			return nil, false
		}
		texts[i] = t
	}
	return texts, true
}

// oneOf makes one condition where all that t can equal is constant. What is
// no text, t never equals.
func (x *evaluation) oneOf(s state, t text, items []value, k func(state)) bool {
	var texts []string
	for _, m := range items {
		c, ok := m.(constant)
		if !ok {
			return false
		}
		if text, ok := c.v.(ast.String); ok {
			texts = append(texts, string(text))
		}
	}
	if len(texts) > 0 {
		k(s.and(equalsAny(t.f, t.elem, t.token, texts...)))
	}
	return true
}
