package opa

import (
	"encoding/json"
	"math/big"
	"regexp"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/writ-dev/writ/rego"
)

// patternOf is where builtins take a regular expression.
var patternOf = map[string]int{
	ast.RegexMatch.Name: 0, ast.RegexMatchDeprecated.Name: 0, ast.RegexSplit.Name: 0, ast.RegexFind.Name: 0,
	ast.RegexFindAllStringSubmatch.Name: 0, ast.RegexReplace.Name: 1,
}

// pattern reports a literal pattern that does not compile: at run time it is an
// error of every decision.
func (c *fieldChecker) pattern(name string, args []*ast.Term) {
	if at, ok := patternOf[name]; ok && at < len(args) {
		if p, ok := args[at].Value.(ast.String); ok {
			if _, err := regexp.Compile(string(p)); err != nil {
				c.say(args[at].Location, "%q is no regular expression: %v", string(p), err)
			}
		}
	}
	if name != ast.GlobMatch.Name || len(args) < 3 {
		return
	}
	p, ok := args[0].Value.(ast.String)
	if !ok || !args[1].IsGround() || !isConstant(args[1].Value) {
		return
	}
	match := topdown.GetBuiltin(name)
	operands := []*ast.Term{args[0], args[1], ast.StringTerm("")}
	if err := match(topdown.BuiltinContext{}, operands, func(*ast.Term) error { return nil }); err != nil {
		c.say(args[0].Location, "%q is no glob: %v", string(p), strings.TrimPrefix(err.Error(), topdown.BuiltinErr+": "+name+": "))
	}
}

// subset follows the names in the second argument of object.subset.
func (c *fieldChecker) subset(t types.Type, sub *ast.Term) {
	object, ok := sub.Value.(ast.Object)
	if !ok || t == nil {
		return
	}
	object.Foreach(func(key, value *ast.Term) {
		if _, literal := key.Value.(ast.String); literal {
			c.subset(c.walk(t, []*ast.Term{key}, key.Location), value)
		}
	})
}

// paths follows what json.filter and json.remove name: a/b, or a list of names.
func (c *fieldChecker) paths(t types.Type, paths *ast.Term) {
	each := func(path *ast.Term) {
		var names []*ast.Term
		switch p := path.Value.(type) {
		case ast.String:
			for name := range strings.SplitSeq(strings.TrimLeft(string(p), "/"), "/") {
				names = append(names, ast.StringTerm(strings.NewReplacer("~1", "/", "~0", "~").Replace(name)))
			}
		case *ast.Array:
			p.Foreach(func(name *ast.Term) { names = append(names, name) })
		}
		at := t
		for _, name := range names {
			if list, ok := at.(*types.Array); ok {
				at = valuesOf(list) // The name is an index, as a text.
				continue
			}
			at = c.walk(at, []*ast.Term{name}, path.Location)
		}
	}
	switch v := paths.Value.(type) {
	case ast.Set:
		v.Foreach(each)
	case *ast.Array:
		v.Foreach(each)
	}
}

// ordered are the comparisons, and each with its sides changed.
var ordered = map[string]string{
	ast.LessThan.Name: ast.GreaterThan.Name, ast.LessThanEq.Name: ast.GreaterThanEq.Name,
	ast.GreaterThan.Name: ast.LessThan.Name, ast.GreaterThanEq.Name: ast.LessThanEq.Name,
	ast.Equality.Name: ast.Equality.Name, ast.Equal.Name: ast.Equal.Name,
}

// comparison reports one whose outcome is known: a text beside a number, of
// which the text is the greater by its kind, and a number that a field, or a
// count, never has.
func (c *fieldChecker) comparison(name string, args []*ast.Term) {
	turned, ok := ordered[name]
	if !ok || len(args) < 2 {
		return
	}
	a, b := c.typeOf(args[0]), c.typeOf(args[1])
	if name != turned && a != nil && b != nil &&
		(types.Compare(a, types.S) == 0 && types.Compare(b, types.N) == 0 || types.Compare(a, types.N) == 0 && types.Compare(b, types.S) == 0) {
		c.say(nil, "a text is compared with a number: that is always the same, since any text is greater")
		return
	}
	if !c.impossible(name, args[0], args[1]) {
		c.impossible(turned, args[1], args[0])
	}
}

// impossible reports `field name number` where it never holds.
func (c *fieldChecker) impossible(name string, field, number *ast.Term) bool {
	n, ok := number.Value.(ast.Number)
	if !ok {
		return false
	}
	low, high := c.bounds(field)
	if low == nil {
		return false
	}
	value, ok := new(big.Rat).SetString(string(n))
	if !ok {
		return false
	}
	below, above := value.Cmp(low), -1
	if high != nil {
		above = value.Cmp(high)
	}
	never := false
	switch name {
	case ast.Equality.Name, ast.Equal.Name:
		never = below < 0 || above > 0
	case ast.LessThan.Name:
		never = below <= 0
	case ast.LessThanEq.Name:
		never = below < 0
	case ast.GreaterThan.Name:
		never = high != nil && above >= 0
	case ast.GreaterThanEq.Name:
		never = high != nil && above > 0
	}
	if never && high != nil {
		c.say(nil, "this never holds: it is a number from %s to %s", low.RatString(), high.RatString())
	} else if never {
		c.say(nil, "this never holds: it is never less than %s", low.RatString())
	}
	return never
}

// bounds are the least and the greatest number that a term can be, each nil
// where there is none.
func (c *fieldChecker) bounds(t *ast.Term) (low, high *big.Rat) {
	value := t.Value
	if v, ok := value.(ast.Var); ok {
		value = c.numbers[v]
	}
	switch v := value.(type) {
	case ast.Call:
		if v[0].String() == ast.Count.Name {
			return new(big.Rat), nil
		}
	case ast.Ref:
		if v[0].Equal(ast.InputRootDocument) {
			return schemaBounds(v[1:])
		}
	}
	return nil, nil
}

// schemaBounds are minimum and maximum in the schema of input.
func schemaBounds(names []*ast.Term) (low, high *big.Rat) {
	type node struct {
		Properties map[string]json.RawMessage `json:"properties"`
		Minimum    json.Number                `json:"minimum"`
		Maximum    json.Number                `json:"maximum"`
	}
	var at node
	text := json.RawMessage(rego.InputSchema())
	for i := 0; ; i++ {
		at = node{}
		if json.Unmarshal(text, &at) != nil {
			return nil, nil
		}
		if i == len(names) {
			break
		}
		name, ok := names[i].Value.(ast.String)
		if !ok || at.Properties[string(name)] == nil {
			return nil, nil
		}
		text = at.Properties[string(name)]
	}
	if r, ok := new(big.Rat).SetString(string(at.Minimum)); ok {
		low = r
	}
	if r, ok := new(big.Rat).SetString(string(at.Maximum)); ok && low != nil {
		high = r
	}
	return low, high
}
