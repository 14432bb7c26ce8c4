package compile

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/program"
)

// call follows a builtin or a function.
func (x *evaluation) call(s state, e *ast.Expr, terms []*ast.Term, k func(state)) {
	op, ok := terms[0].Value.(ast.Ref)
	if !ok {
		x.ask(s, "line %d: %s is not followed", line(e), e)
		return
	}
	name, operands := op.String(), terms[1:]
	if name == ast.Equality.Name && len(operands) == 2 {
		x.unify(s, operands[0], operands[1], k)
		return
	}
	arity := -1
	if b, ok := ast.BuiltinMap[name]; ok {
		arity = b.Decl.Arity()
	} else if rules := x.p.Compiler().GetRulesExact(op); len(rules) > 0 {
		arity = len(rules[0].Head.Args)
	}
	var out *ast.Term
	switch {
	case arity >= 0 && len(operands) == arity:
	case arity >= 0 && len(operands) == arity+1:
		operands, out = operands[:arity], operands[arity]
	default:
		x.ask(s, "line %d: %s is not followed", line(e), name)
		return
	}
	x.terms(s, operands, func(s state, args []value) { x.apply(s, e, op, args, out, k) })
}

// apply follows op with its arguments; out is the term for the result, nil
// when it only must not be false.
func (x *evaluation) apply(s state, e *ast.Expr, op ast.Ref, args []value, out *ast.Term, k func(state)) {
	name := op.String()
	result := func(s state, v value) {
		if out != nil {
			x.match(s, out, v, k)
		} else {
			x.notFalse(s, e, v, k)
		}
	}
	if native, ok := x.intrinsics[name]; ok {
		if _, known := constants(args); !known {
			// A function that does not hold has no value, where a builtin is false.
			native(x, s, args, func(s state) { result(s, constant{ast.Boolean(true)}) })
			return
		}
	}
	if rules := x.p.Compiler().GetRulesExact(op); len(rules) > 0 {
		floor := x.lastID
		outcomes := x.evaluate(s, rules, args)
		for i := range outcomes.all {
			if mentions(outcomes.all[i].v, floor) {
				x.ask(s, "line %d: %s may have several values", line(e), name)
				return
			}
		}
		x.follow(s, outcomes, result)
		return
	}
	if name == ast.NowNanos.Name {
		result(s, number{newField(program.Field{Base: program.Time})})
		return
	}
	if slices.Contains(bundle.OutsideBuiltins(), name) {
		x.ask(s, "line %d: %s looks outside of the input", line(e), name)
		return
	}
	if operands, ok := constants(args); ok && !ast.BuiltinMap[name].Nondeterministic {
		x.constantCall(s, op, operands, result)
		return
	}
	if isKind, ok := kinds[name]; ok {
		if c, isClaim := args[0].(claim); isClaim && c.path != "" {
			x.relation(s, e, func(s state, k func(state)) { k(s.and(c.is(isKind...))) }, out, k)
			return
		}
	} else if name != ast.Member.Name {
		for _, a := range args {
			if _, isClaim := a.(claim); isClaim {
				x.texts(s, args, nil, func(s state, args []value) { x.apply(s, e, op, args, out, k) })
				return
			}
		}
	}
	if relation, ok := x.relations[name]; ok {
		x.relation(s, e, func(s state, k func(state)) { relation(x, s, args, k) }, out, k)
		return
	}
	if function, ok := x.functions[name]; ok && function(x, s, args, result) {
		return
	}
	x.ask(s, "line %d: %s(%s)", line(e), name, describeAll(args))
}

func describeAll(args []value) string {
	names := make([]string, len(args))
	for i, a := range args {
		switch a := a.(type) {
		case constant:
			names[i] = a.v.String()
			if len(names[i]) > 40 {
				names[i] = names[i][:40] + "…"
			}
		default:
			names[i] = "…"
		}
	}
	return strings.ToValidUTF8(strings.Join(names, ", "), "")
}

// constantCall is what topdown makes of a builtin with constant arguments.
func (x *evaluation) constantCall(s state, op ast.Ref, operands []*ast.Term, k func(state, value)) {
	e := ast.NewExpr(append(append([]*ast.Term{ast.NewTerm(op)}, operands...), ast.VarTerm(string(resultVar))))
	x.constant(s, constantBody(nil).with(e), k)
}

// relation follows a builtin that is true or false.
func (x *evaluation) relation(s state, e *ast.Expr, holds func(state, func(state)), out *ast.Term, k func(state)) {
	if out == nil {
		holds(s, k)
		return
	}
	floor := x.lastID
	ways := x.solutions(s, holds)
	for _, way := range ways {
		x.match(state{s.env, s.conds.all(way)}, out, constant{ast.Boolean(true)}, k)
	}
	x.unless(s, ways, floor, "the opposite of "+e.Operator().String()+" is not simple", func(s state) {
		x.match(s, out, constant{ast.Boolean(false)}, k)
	})
}

// opposite goes on where holds does not.
func (x *evaluation) opposite(s state, what string, holds func(state, func(state)), k func(state)) {
	floor := x.lastID
	x.unless(s, x.solutions(s, holds), floor, "the opposite of "+what+" is not simple", k)
}
