package compile

import (
	"github.com/open-policy-agent/opa/v1/ast"
)

// depends reports whether the node (a rule, a term) looks at the input or at
// the clock, itself or through rules.
func (x *evaluation) depends(node any) bool {
	found := false
	ast.NewGenericVisitor(func(n any) bool {
		switch n := n.(type) {
		case ast.Var:
			found = found || n.Equal(ast.InputRootDocument.Value)
		case ast.Ref:
			if b, ok := ast.BuiltinMap[n.String()]; ok && b.Nondeterministic {
				found = true
			}
			if n[0].Equal(ast.DefaultRootDocument) {
				for _, rule := range x.p.Compiler().GetRulesDynamicWithOpts(n, ast.RulesOptions{}) {
					found = found || x.ruleDepends(rule)
				}
			}
		}
		return found
	}).Walk(node)
	return found
}

func (x *evaluation) ruleDepends(rule *ast.Rule) bool {
	if known, ok := x.independent[rule]; ok {
		return !known
	}
	depends := x.depends(rule)
	x.independent[rule] = !depends
	return depends
}

func (x *evaluation) treeDepends(tree *ast.TreeNode) bool {
	found := false
	tree.DepthFirst(func(n *ast.TreeNode) bool {
		for _, rule := range n.Values {
			found = found || x.ruleDepends(rule)
		}
		return found
	})
	return found
}

// virtual follows a path into what rules make.
func (x *evaluation) virtual(s state, d doc, path []*ast.Term, k func(state, value)) {
	rules := d.tree.Values
	for _, rule := range rules {
		if len(rule.Head.Args) > 0 {
			x.ask(s, "%s without arguments", d.ref)
			return
		}
	}
	if !x.treeDepends(d.tree) {
		x.constantDocument(s, d.ref, path, k)
		return
	}
	for _, rule := range rules {
		if !rule.Head.Ref().IsGround() || len(d.tree.Children) > 0 {
			x.ask(s, "%s is an object that rules make", d.ref)
			return
		}
	}
	if rules[0].Head.RuleKind() == ast.MultiValue {
		x.walk(s, ruleSet{rules}, nil, path, k)
		return
	}
	out, ok := x.outcomes[rules[0]]
	if !ok {
		before := x.serviceRead
		x.serviceRead = false
		out = x.evaluate(state{}, rules, nil)
		out.serviceRead = x.serviceRead
		x.serviceRead = before
		if x.stopped != "" {
			return
		}
		x.outcomes[rules[0]] = out
	}
	x.serviceRead = x.serviceRead || out.serviceRead
	x.follow(s, out, func(s state, v value) { x.walk(s, v, nil, path, k) })
}

// follow goes on with each outcome.
func (x *evaluation) follow(s state, out *outcomes, k func(state, value)) {
	x.askAll(s, out.asks)
	for _, o := range out.all {
		k(state{s.env, s.conds.all(o.conds)}, o.v)
	}
}

// members goes on with each member of what rules or a comprehension make.
func (x *evaluation) members(s state, of value, k func(state, value)) {
	each := func(inner state, m value) { k(state{s.env, inner.conds}, m) }
	switch of := of.(type) {
	case ruleSet:
		for _, rule := range of.rules {
			x.ruleMembers(s, rule, each)
		}
	case comprehension:
		x.body(state{of.env, s.conds}, of.body, func(s state) { x.term(s, of.head, each) })
	}
}

// empty goes on where there is no member.
func (x *evaluation) empty(s state, of value, k func(state)) {
	x.opposite(s, "a set that is empty", func(s state, k func(state)) {
		x.members(s, of, func(s state, _ value) { k(s) })
	}, k)
}

// compareSize is compare for what only is empty or not.
func (x *evaluation) compareSize(s state, op string, of size, i int64, k func(state)) {
	switch {
	case op == "gt" && i == 0, op == "gte" && i == 1:
		x.members(s, of.of, func(s state, _ value) { k(s) })
	case op == "lt" && i == 1, op == "lte" && i == 0:
		x.empty(s, of.of, k)
	default:
		x.ask(s, "how many there are of %s", describe(of.of))
	}
}

func (x *evaluation) ruleMembers(s state, rule *ast.Rule, k func(state, value)) {
	x.body(state{nil, s.conds}, rule.Body, func(s state) { x.term(s, rule.Head.Key, k) })
}

// outcomes are the values that a complete rule or function can have.
type outcomes struct {
	all  []outcome
	asks []asked
	// serviceRead is whether they depend on the service.
	serviceRead bool
}

type outcome struct {
	conds conj
	v     value
	rule  *ast.Rule
	// of is the definition, of which one link of its else chain applies.
	of   int
	link int
}

// evaluate follows all definitions of a complete rule, or of a function with
// its arguments. Two that hold together and differ are an error in topdown.
func (x *evaluation) evaluate(s state, rules []*ast.Rule, args []value) *outcomes {
	floor := x.lastID
	out := &outcomes{}
	out.asks = x.apart(func() {
		var fallback *ast.Rule
		for i, rule := range rules {
			if rule.Default {
				fallback = rule
				continue
			}
			x.chain(rule, i, args, floor, out)
		}
		x.conflicts(out)
		if fallback != nil {
			var ways []conj
			for _, o := range out.all {
				ways = append(ways, o.conds)
			}
			x.unless(state{}, ways, floor, "the default applies where the opposite of its rules is not simple", func(s state) {
				x.term(s, fallback.Head.Value, func(s state, v value) {
					out.all = append(out.all, outcome{s.conds.conj(), v, fallback, -1, 0})
				})
			})
		}
	})
	return out
}

// chain follows one definition and its else.
func (x *evaluation) chain(rule *ast.Rule, of int, args []value, floor int, out *outcomes) {
	var before []conj // ways of the links before
	for link := 0; rule != nil; rule, link = rule.Else, link+1 {
		var ways []conj
		x.unless(state{}, before, floor, "an else where the opposite of what is before is not simple", func(s state) {
			x.arguments(s, rule.Head.Args, args, func(s state) {
				x.body(s, rule.Body, func(s state) {
					x.term(s, rule.Head.Value, func(s state, v value) {
						if mentions(v, floor) {
							x.ask(s, "%s may have several values", rule.Head.Name)
							return
						}
						conds, ok := s.conds.conj().closed(floor)
						if !ok {
							x.ask(s, "conditions on an element of a list that are not simple")
							return
						}
						conds, ok = conds.simplified()
						if !ok {
							return
						}
						ways = append(ways, conds)
						out.all = append(out.all, outcome{conds, v, rule, of, link})
					})
				})
			})
		})
		before = append(before, ways...)
	}
}

func (x *evaluation) arguments(s state, params ast.Args, args []value, k func(state)) {
	if len(params) == 0 {
		k(s)
		return
	}
	x.match(s, params[0], args[0], func(s state) { x.arguments(s, params[1:], args[1:], k) })
}

// mentions reports whether the value is about an element or a token that was
// made after floor.
func mentions(v value, floor int) bool {
	some := func(items []value) bool {
		for _, v := range items {
			if mentions(v, floor) {
				return true
			}
		}
		return false
	}
	switch v := v.(type) {
	case unknown: // An index, of whichever element.
		return true
	case text:
		return v.elem > floor || v.token > floor
	case list:
		return v.token > floor
	case token:
		return v.id > floor
	case claim:
		return v.token > floor
	case split:
		return mentions(v.of, floor)
	case comprehension:
		for b := v.env; b != nil; b = b.prev {
			if mentions(b.v, floor) {
				return true
			}
		}
	case size:
		return mentions(v.of, floor)
	case array:
		return some(v.items)
	case object:
		return some(v.items)
	case set:
		return some(v.items)
	}
	return false
}

// maxPairs bounds the outcomes that are compared with one another.
const maxPairs = 1 << 16

// conflicts asks where two outcomes could hold together and differ.
func (x *evaluation) conflicts(out *outcomes) {
	if sameValue(out.all) {
		return
	}
	pairs := 0
	for _, group := range mayMeet(out.all) {
		for i, a := range group {
			for _, b := range group[:i] {
				if a.of == b.of && a.link != b.link || equalValues(a.v, b.v) {
					continue
				}
				if pairs++; pairs > maxPairs {
					x.ask(state{}, "too many values that could differ")
					return
				}
				both, ok := append(append(conj(nil), b.conds...), a.conds...).simplified()
				if ok {
					var l *conds
					x.ask(state{nil, l.all(both)}, "two values of %s could differ", a.rule.Head.Name)
				}
			}
		}
	}
}

func sameValue(all []outcome) bool {
	for i := range all {
		if !equalValues(all[0].v, all[i].v) {
			return false
		}
	}
	return true
}

// mayMeet groups outcomes so that those in different groups cannot hold
// together: all want one field to be different texts.
func mayMeet(all []outcome) [][]outcome {
	if len(all) == 0 {
		return nil
	}
	for _, c := range all[0].conds {
		if !c.mergeable() {
			continue
		}
		groups := map[string][]outcome{}
		var order []string
		ok := true
		for _, o := range all {
			i := o.conds.mergeable(c.f.key)
			if ok = i >= 0 && len(o.conds[i].pred[0].Texts) == 1; !ok {
				break
			}
			t := o.conds[i].pred[0].Texts[0]
			if groups[t] == nil {
				order = append(order, t)
			}
			groups[t] = append(groups[t], o)
		}
		if ok {
			out := make([][]outcome, len(order))
			for i, t := range order {
				out[i] = groups[t]
			}
			return out
		}
	}
	return [][]outcome{all}
}

func equalValues(a, b value) bool {
	switch a := a.(type) {
	case constant:
		b, ok := b.(constant)
		return ok && a.v.Compare(b.v) == 0
	case text:
		b, ok := b.(text)
		return ok && a.f.key == b.f.key && a.elem == b.elem && a.token == b.token
	case number:
		b, ok := b.(number)
		return ok && a.f.key == b.f.key
	}
	return false
}
