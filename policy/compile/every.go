package compile

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// every holds when the body does for each element.
func (x *evaluation) every(s state, e *ast.Expr, every *ast.Every, k func(state)) {
	x.term(s, every.Domain, func(s state, domain value) {
		keys, items, ok := elements(domain)
		if ok {
			x.everyOf(s, every, keys, items, k)
			return
		}
		l, ok := domain.(list)
		if !ok || l.token != 0 {
			x.ask(s, "line %d: every over %s", line(e), every.Domain)
			return
		}
		// For all of them is for none of them not.
		floor := x.lastID
		one := x.any(l)
		why := fmt.Sprintf("line %d: every over a list of the input is not simple", line(e))
		there := presence(one.f, one.elem, one.token)
		ways := x.solutions(s.and(there), func(in state, k func(state)) {
			x.body(bindEvery(in, every, unknown{"an index"}, one), every.Body, k)
		})
		fails, ok := x.complement(ways, floor+1)
		if !ok {
			x.ask(s, "%s", why)
			return
		}
		for i := range fails {
			fails[i] = append(fails[i], there)
		}
		x.unless(s, fails, floor, why, k)
	})
}

func bindEvery(s state, every *ast.Every, key, v value) state {
	if every.Key != nil {
		if name, ok := every.Key.Value.(ast.Var); ok {
			s = s.bind(name, key)
		}
	}
	if name, ok := every.Value.Value.(ast.Var); ok {
		s = s.bind(name, v)
	}
	return s
}

func (x *evaluation) everyOf(s state, every *ast.Every, keys, items []value, k func(state)) {
	if !x.step() {
		return
	}
	if len(items) == 0 {
		k(s)
		return
	}
	inner := bindEvery(s, every, keys[0], items[0])
	floor := x.lastID
	ways := x.solutions(inner, func(in state, k func(state)) { x.body(in, every.Body, k) })
	for i := range ways {
		closed, ok := ways[i].closed(floor)
		if !ok {
			x.ask(s, "every with conditions that are not simple")
			return
		}
		ways[i] = closed
	}
	for _, way := range merged(ways) {
		x.below(func() { x.everyOf(state{s.env, s.conds.all(way)}, every, keys[1:], items[1:], k) })
	}
}

// elements are the keys and values of a collection that is known.
func elements(v value) (keys, items []value, ok bool) {
	switch v := v.(type) {
	case constant:
		switch c := v.v.(type) {
		case *ast.Array:
			for i := range c.Len() {
				keys = append(keys, constant{ast.InternedTerm(i).Value})
				items = append(items, constant{c.Elem(i).Value})
			}
			return keys, items, true
		case ast.Object:
			for _, key := range c.Keys() {
				keys = append(keys, constant{key.Value})
				items = append(items, constant{c.Get(key).Value})
			}
			return keys, items, true
		case ast.Set:
			for _, t := range c.Slice() {
				keys = append(keys, constant{t.Value})
				items = append(items, constant{t.Value})
			}
			return keys, items, true
		}
	case array:
		for i := range v.items {
			keys = append(keys, constant{ast.InternedTerm(i).Value})
		}
		return keys, v.items, true
	case object:
		for _, key := range v.keys {
			keys = append(keys, constant{key})
		}
		return keys, v.items, true
	}
	return nil, nil, false
}
