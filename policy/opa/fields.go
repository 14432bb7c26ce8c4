package opa

import (
	"encoding/json"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/rego"
)

// checkFields finds names of fields that input never has, and lists taken for
// texts, where the compiler's type checker does not look: in the arguments of
// functions, in `every`, in object.get, object.subset, json.filter and
// json.remove, in the targets of `with`, and in the values of headers and query
// parameters. It also finds literal patterns that do not compile, and
// comparisons of which the outcome is known.
//
// A parameter of a function has the types of all that it is called with; a
// field is unknown when none of them has it. What a name stands for is not
// known of a computed name, nor after a builtin; there nothing is found.
func (l *loader) checkFields(compiler *ast.Compiler, report func(file string) bool) {
	c := &fieldChecker{loader: l, compiler: compiler, input: inputType(), params: map[string][]types.Type{}, report: report}
	// Callers come first, so that what a function is called with is known.
	sorted, _ := compiler.Graph.Sort()
	for i := len(sorted) - 1; i >= 0; i-- {
		for rule, _ := sorted[i].(*ast.Rule); rule != nil; rule = rule.Else {
			c.rule(rule)
		}
	}
}

type fieldChecker struct {
	*loader
	compiler *ast.Compiler
	input    types.Type
	// params are what functions are called with, by their path.
	params map[string][]types.Type
	// vars are the types of the variables of a rule, at the current of those.
	vars map[ast.Var]types.Type
	// numbers are the variables that stand for a field or a count.
	numbers map[ast.Var]ast.Value
	at      *ast.Location
	// report says whether a file is of interest.
	report func(file string) bool
}

// inputType is the type of the schema. The compiler's own takes an object with
// names that are not fixed, such as headers, for an object of anything.
func inputType() types.Type {
	var schema map[string]any
	if json.Unmarshal(rego.InputSchema(), &schema) != nil {
		return types.A // The compiler has refused it.
	}
	return schemaType(schema)
}

func schemaType(schema map[string]any) types.Type {
	nested := func(key string) types.Type {
		s, _ := schema[key].(map[string]any)
		if s == nil {
			return types.A
		}
		return schemaType(s)
	}
	switch schema["type"] {
	case "string":
		return types.S
	case "integer":
		return types.N
	case "array":
		return types.NewArray(nil, nested("items"))
	case "object":
		properties, _ := schema["properties"].(map[string]any)
		var static []*types.StaticProperty
		for name, s := range properties {
			property, _ := s.(map[string]any)
			static = append(static, types.NewStaticProperty(name, schemaType(property)))
		}
		if schema["additionalProperties"] == false {
			return types.NewObject(static, nil)
		}
		return types.NewObject(static, types.NewDynamicProperty(types.S, nested("additionalProperties")))
	}
	return types.A
}

func (c *fieldChecker) rule(rule *ast.Rule) {
	c.vars, c.numbers = map[ast.Var]types.Type{}, map[ast.Var]ast.Value{}
	c.at = rule.Location
	params := c.params[rule.Ref().String()]
	for i, arg := range rule.Head.Args {
		if v, ok := arg.Value.(ast.Var); ok && i < len(params) {
			c.vars[v] = params[i]
		}
	}
	c.body(rule.Body)
	ast.NewGenericVisitor(c.visit).Walk(rule.Head)
}

func (c *fieldChecker) body(body ast.Body) {
	for _, expr := range body {
		c.expr(expr)
	}
}

func (c *fieldChecker) expr(expr *ast.Expr) {
	c.at = expr.Location
	for _, w := range expr.With {
		if ref, ok := w.Target.Value.(ast.Ref); ok && ref[0].Equal(ast.InputRootDocument) {
			c.ref(ref, w.Target.Location)
		}
	}
	switch terms := expr.Terms.(type) {
	case *ast.Every:
		c.term(terms.Domain)
		if v, ok := terms.Value.Value.(ast.Var); ok {
			c.vars[v] = valuesOf(c.typeOf(terms.Domain))
		}
		c.body(terms.Body)
	case []*ast.Term:
		for _, arg := range terms[1:] {
			c.term(arg)
		}
		c.call(terms[0].Value, terms[1:])
	case *ast.Term:
		c.term(terms)
	}
}

func (c *fieldChecker) term(t *ast.Term) { ast.NewGenericVisitor(c.visit).Walk(t) }

// visit looks at what is inside of an expression.
func (c *fieldChecker) visit(x any) bool {
	switch x := x.(type) {
	case *ast.Term:
		switch v := x.Value.(type) {
		case ast.Ref:
			c.ref(v, x.Location)
			for _, t := range v[1:] {
				c.term(t)
			}
			return true
		case ast.Call:
			for _, arg := range v[1:] {
				c.term(arg)
			}
			c.call(v[0].Value, v[1:])
			return true
		}
	case ast.Body:
		c.body(x) // Before the head of a comprehension, which uses its variables.
		return true
	case *ast.ArrayComprehension:
		return c.comprehension(x.Body, x.Term)
	case *ast.SetComprehension:
		return c.comprehension(x.Body, x.Term)
	case *ast.ObjectComprehension:
		return c.comprehension(x.Body, x.Key, x.Value)
	}
	return false
}

func (c *fieldChecker) comprehension(body ast.Body, head ...*ast.Term) bool {
	c.body(body)
	for _, t := range head {
		c.term(t)
	}
	return true
}

func (c *fieldChecker) call(operator ast.Value, args []*ast.Term) {
	op, ok := operator.(ast.Ref)
	if !ok {
		return
	}
	name := op.String()
	c.pattern(name, args)
	c.comparison(name, args)
	switch {
	case op[0].Equal(ast.DefaultRootDocument):
		known := c.params[name]
		for i, arg := range args {
			if i == len(known) {
				known = append(known, nil)
			}
			known[i] = either(known[i], c.typeOf(arg))
		}
		c.params[name] = known
	case name == ast.Equality.Name || name == ast.Equal.Name || name == ast.NotEqual.Name || name == ast.Assign.Name:
		c.equation(args)
	case name == ast.ObjectGet.Name && len(args) >= 2:
		c.objectGet(args[0], args[1])
	case name == ast.ObjectSubset.Name && len(args) >= 2:
		c.subset(c.typeOf(args[0]), args[1])
	case (name == ast.JSONFilter.Name || name == ast.JSONRemove.Name) && len(args) >= 2:
		c.paths(c.typeOf(args[0]), args[1])
	case name == ast.Count.Name && len(args) == 2:
		c.counted(args[1])
	case name == ast.Member.Name:
		c.texts(args[0], valuesOf(c.typeOf(args[1])))
	default:
		if b := ast.BuiltinMap[name]; b != nil {
			for i, want := range b.Decl.FuncArgs().Args {
				if i < len(args) {
					c.texts(args[i], want)
				}
			}
		}
	}
}

// counted notes the variable that a count goes into.
func (c *fieldChecker) counted(t *ast.Term) {
	if v, ok := t.Value.(ast.Var); ok {
		c.numbers[v] = ast.Call{ast.NewTerm(ast.Count.Ref())}
	}
}

// either is the type of a parameter that is called with one more argument,
// whose type may not be known; known is nil before the first.
func either(known, t types.Type) types.Type {
	switch {
	case t == nil || known != nil && types.Compare(known, types.A) == 0:
		return types.A
	case known == nil:
		return t
	}
	return types.Or(known, t)
}

// equation learns the type of a variable, or compares the two sides.
func (c *fieldChecker) equation(args []*ast.Term) {
	if len(args) != 2 {
		return
	}
	for i := range 2 {
		if v, ok := args[i].Value.(ast.Var); ok && c.vars[v] == nil {
			c.vars[v] = c.typeOf(args[1-i])
			if ref, ok := args[1-i].Value.(ast.Ref); ok && ref[0].Equal(ast.InputRootDocument) {
				c.numbers[v] = ref
			}
			return
		}
	}
	c.texts(args[0], c.typeOf(args[1]))
	c.texts(args[1], c.typeOf(args[0]))
}

// texts reports a list of values where a text is wanted.
func (c *fieldChecker) texts(t *ast.Term, want types.Type) {
	list, ok := c.typeOf(t).(*types.Array)
	if ok && want != nil && types.Compare(want, types.S) == 0 && types.Compare(list, types.NewArray(nil, types.S)) == 0 {
		c.say(t.Location, "this is a list of texts and not one of them: write `some value in …`, or `… == [\"text\"]`")
	}
}

func (c *fieldChecker) objectGet(object, key *ast.Term) {
	t := c.typeOf(object)
	names := []*ast.Term{key}
	if list, ok := key.Value.(*ast.Array); ok {
		names = nil
		list.Foreach(func(t *ast.Term) { names = append(names, t) })
	}
	c.walk(t, names, key.Location)
}

func (c *fieldChecker) ref(ref ast.Ref, at *ast.Location) {
	switch head := ref[0].Value.(type) {
	case ast.Var:
		if ref[0].Equal(ast.InputRootDocument) {
			c.walk(c.input, ref[1:], at)
		} else if t := c.vars[head]; t != nil {
			c.walk(t, ref[1:], at)
		}
	}
}

// walk follows names into a type and gives the type that is there; nil and a
// problem when nothing can be there.
func (c *fieldChecker) walk(t types.Type, names []*ast.Term, at *ast.Location) types.Type {
	for _, name := range names {
		if t == nil || types.Compare(t, types.A) == 0 {
			return nil
		}
		next := step(t, name)
		text, literal := name.Value.(ast.String)
		if next == nil && literal {
			c.say(at, "no field %q%s", string(text), nearmiss.Hint(string(text), fieldsOf(t)))
			return nil
		}
		t = next
	}
	return t
}

// step is the type of an element; nil when there is none, or when it is not
// known which one is meant.
func step(t types.Type, name *ast.Term) types.Type {
	switch v := name.Value.(type) {
	case ast.String:
		return types.Select(t, string(v))
	case ast.Number:
		return types.Select(t, json.Number(v))
	}
	return valuesOf(t)
}

func valuesOf(t types.Type) types.Type {
	if t == nil {
		return nil
	}
	return types.Values(t)
}

// fieldsOf are the names that some value of the type has.
func fieldsOf(t types.Type) []string {
	var names []string
	switch t := t.(type) {
	case *types.Object:
		for _, p := range t.StaticProperties() {
			if name, ok := p.Key.(string); ok {
				names = append(names, name)
			}
		}
	case types.Any:
		for _, alternative := range t {
			names = append(names, fieldsOf(alternative)...)
		}
	}
	return names
}

// typeOf is the type of a term as far as it follows from input; nil when it is
// not known.
func (c *fieldChecker) typeOf(t *ast.Term) types.Type {
	switch v := t.Value.(type) {
	case ast.String:
		return types.S
	case ast.Number:
		return types.N
	case ast.Var:
		if t.Equal(ast.InputRootDocument) {
			return c.input
		}
		return c.vars[v]
	case ast.Ref:
		base := c.vars[varOf(v[0])]
		if v[0].Equal(ast.InputRootDocument) {
			base = c.input
		}
		for _, name := range v[1:] {
			if base == nil || types.Compare(base, types.A) == 0 {
				return nil
			}
			base = step(base, name)
		}
		return base
	case ast.Set:
		return listed(v.Slice())
	case *ast.Array:
		var elements []*ast.Term
		v.Foreach(func(t *ast.Term) { elements = append(elements, t) })
		return listed(elements)
	}
	return nil
}

// listed is the type of a set of texts, nil of anything else.
func listed(elements []*ast.Term) types.Type {
	for _, e := range elements {
		if _, ok := e.Value.(ast.String); !ok {
			return nil
		}
	}
	if len(elements) == 0 {
		return nil
	}
	return types.NewSet(types.S)
}

func varOf(t *ast.Term) ast.Var {
	v, _ := t.Value.(ast.Var)
	return v
}

func (c *fieldChecker) say(at *ast.Location, format string, args ...any) {
	if at == nil {
		at = c.at
	}
	if at == nil || strings.HasPrefix(at.File, ownPrefix) || !c.report(at.File) {
		return
	}
	c.fail("", at, policy.ProblemType, format, args...)
}
