package compile

import (
	"context"
	"fmt"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// maxSteps bounds the work on one rule. It is a count and not a time, so that
// the same content compiles to the same program.
const maxSteps = 4 << 20

// evaluation follows rules as topdown would, expression by expression in the
// compiler's order, with an input that is not known. Where topdown would look
// at the input it notes a condition and goes on; where an expression could
// have several outcomes it goes on with each.
//
// What it does not know to be exact it does not follow: ask notes the
// conditions under which topdown would come so far, and nothing of what
// follows is looked at. So an error that topdown could run into is never
// passed over, because an expression that can fail is one that is not known.
type evaluation struct {
	ctx     context.Context
	p       *opa.Program
	consts  *opa.Constants
	service string

	relations  map[string]relation
	functions  map[string]function
	intrinsics map[string]relation

	steps   int
	depth   int
	lastID  int // of elements and tokens
	asks    []asked
	stopped string // why nothing more is followed
	// serviceRead is whether what was followed depends on the service.
	serviceRead bool

	independent map[*ast.Rule]bool
	documents   map[string]constantDoc
	outcomes    map[*ast.Rule]*outcomes // of complete rules, by their first
}

// asked is a way through a rule that ends where topdown must be asked.
type asked struct {
	conds conj
	why   string
}

// state is how far a way through a rule has come.
type state struct {
	env   *binding
	conds *conds
}

// binding is what a variable stands for.
type binding struct {
	prev *binding
	name ast.Var
	v    value
}

func (s state) bind(name ast.Var, v value) state {
	return state{&binding{s.env, name, v}, s.conds}
}

func (s state) and(c *cond) state { return state{s.env, s.conds.and(c)} }

func (s state) lookup(name ast.Var) (value, bool) {
	for b := s.env; b != nil; b = b.prev {
		if b.name == name {
			return b.v, true
		}
	}
	return nil, false
}

// ask ends a way: topdown is asked when its conditions hold.
func (x *evaluation) ask(s state, format string, args ...any) {
	if c := s.conds.conj(); x.stopped == "" && x.spend(len(c)) {
		x.asks = append(x.asks, asked{c, fmt.Sprintf(format, args...)})
	}
}

// step counts work, and reports whether to go on.
func (x *evaluation) step() bool {
	if x.stopped != "" {
		return false
	}
	x.steps++
	if x.steps > maxSteps {
		x.stopped = "too many ways through it"
	} else if x.steps%4096 == 0 && x.ctx.Err() != nil {
		x.stopped = "not compiled in time"
	}
	return x.stopped == ""
}

// spend counts work that is more than a step: conditions that were copied or
// compared.
func (x *evaluation) spend(n int) bool {
	if x.steps += n; x.steps > maxSteps && x.stopped == "" {
		x.stopped = "too many ways through it"
	}
	return x.stopped == ""
}

// maxDepth bounds how deep one way goes: each expression, part of a list and
// element of an every is followed below the one before it, on the stack.
const maxDepth = 1 << 16

// below runs what is followed below the rest.
func (x *evaluation) below(run func()) {
	if x.depth++; x.depth > maxDepth && x.stopped == "" {
		x.stopped = "too long"
	}
	if x.stopped == "" {
		run()
	}
	x.depth--
}

func (x *evaluation) newID() int {
	x.lastID++
	return x.lastID
}

// apart runs f and gives what it asked instead of noting it.
func (x *evaluation) apart(f func()) []asked {
	before := x.asks
	x.asks = nil
	f()
	asks := x.asks
	x.asks = before
	return asks
}

// askAll notes what was asked apart, on top of the way to there.
func (x *evaluation) askAll(s state, asks []asked) {
	for _, a := range asks {
		x.ask(state{s.env, s.conds.all(a.conds)}, "%s", a.why)
	}
}

// solutions are the ways to meet what run follows, on top of s.
func (x *evaluation) solutions(s state, run func(s state, k func(state))) []conj {
	var out []conj
	asks := x.apart(func() {
		run(state{s.env, nil}, func(s state) {
			if c := s.conds.conj(); x.spend(len(c)) {
				out = append(out, c)
			}
		})
	})
	x.askAll(s, asks)
	return out
}

func (x *evaluation) body(s state, body ast.Body, k func(state)) {
	if len(body) == 0 {
		k(s)
		return
	}
	x.below(func() {
		x.expr(s, body[0], func(s state) { x.body(s, body[1:], k) })
	})
}

func (x *evaluation) expr(s state, e *ast.Expr, k func(state)) {
	switch {
	case !x.step():
	case len(e.With) > 0:
		x.ask(s, "line %d: with", line(e))
	case e.Negated:
		x.negated(s, e, k)
	default:
		x.plain(s, e, k)
	}
}

func line(e *ast.Expr) int {
	if e.Location == nil {
		return 0
	}
	return e.Location.Row
}

// negated holds when no way through the expression does.
func (x *evaluation) negated(s state, e *ast.Expr, k func(state)) {
	plain := *e
	plain.Negated = false
	floor := x.lastID
	ways := x.solutions(s, func(s state, k func(state)) { x.plain(s, &plain, k) })
	x.unless(s, ways, floor, fmt.Sprintf("line %d: the opposite of it is not simple", line(e)), k)
}

// unless goes on with what holds when none of the ways does.
func (x *evaluation) unless(s state, ways []conj, floor int, why string, k func(state)) {
	if slices.ContainsFunc(ways, func(c conj) bool { return len(c) == 0 }) {
		return
	}
	opposite, ok := x.complement(ways, floor)
	if !ok {
		x.ask(s, "%s", why)
		return
	}
	for _, c := range opposite {
		k(state{s.env, s.conds.all(c)})
	}
}

func (x *evaluation) plain(s state, e *ast.Expr, k func(state)) {
	switch terms := e.Terms.(type) {
	case *ast.Term:
		if terms.Equal(firstToken) {
			s, _ := x.newToken(s)
			k(s) // There is one.
			return
		}
		x.term(s, terms, func(s state, v value) { x.notFalse(s, e, v, k) })
	case []*ast.Term:
		x.call(s, e, terms, k)
	case *ast.Every:
		x.every(s, e, terms, k)
	default:
		x.ask(s, "line %d: an expression of an unknown kind", line(e))
	}
}

// notFalse goes on where a value that stands as a condition is not false.
func (x *evaluation) notFalse(s state, e *ast.Expr, v value, k func(state)) {
	switch v := v.(type) {
	case constant:
		if ast.Boolean(false).Compare(v.v) == 0 {
			return
		}
	case claim:
		if v.path != "" {
			s = s.and(v.isNot("false"))
		}
	case unknown:
		x.ask(s, "line %d: %s is not followed", line(e), e)
		return
	}
	k(s)
}

// term goes on with each value that the term can have.
func (x *evaluation) term(s state, t *ast.Term, k func(state, value)) {
	if !x.step() {
		return
	}
	switch v := t.Value.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String:
		k(s, constant{v})
	case ast.Var:
		if bound, ok := s.lookup(v); ok {
			k(s, bound)
		} else {
			x.ask(s, "%s has no value here", v)
		}
	case ast.Ref:
		x.ref(s, v, k)
	case *ast.Array:
		terms := make([]*ast.Term, v.Len())
		for i := range terms {
			terms[i] = v.Elem(i)
		}
		x.terms(s, terms, func(s state, items []value) { k(s, arrayOf(items)) })
	case ast.Object:
		keys := v.Keys()
		terms := make([]*ast.Term, 0, len(keys))
		for _, key := range keys {
			if !isPlain(key) {
				x.ask(s, "an object with a key that is computed")
				return
			}
			terms = append(terms, v.Get(key))
		}
		x.terms(s, terms, func(s state, items []value) { k(s, objectOf(keys, items)) })
	case ast.Set:
		x.terms(s, v.Slice(), func(s state, items []value) { k(s, setOf(items)) })
	case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension:
		x.comprehension(s, t, k)
	default:
		x.ask(s, "%s is not followed", t)
	}
}

// terms goes on with each combination of values.
func (x *evaluation) terms(s state, terms []*ast.Term, k func(state, []value)) {
	x.combine(s, terms, nil, k)
}

// chain is values so far, the last first. They are shared by what follows
// them: a list of many thousands is not copied at each of its elements.
type chain struct {
	prev *chain
	v    value
	n    int
}

func (c *chain) and(v value) *chain {
	if c == nil {
		return &chain{nil, v, 1}
	}
	return &chain{c, v, c.n + 1}
}

func (c *chain) values() []value {
	if c == nil {
		return nil
	}
	out := make([]value, c.n)
	for ; c != nil; c = c.prev {
		out[c.n-1] = c.v
	}
	return out
}

func (x *evaluation) combine(s state, terms []*ast.Term, done *chain, k func(state, []value)) {
	for ; len(terms) > 0; terms = terms[1:] {
		switch terms[0].Value.(type) {
		case ast.Null, ast.Boolean, ast.Number, ast.String: // No deeper for these.
			if !x.step() {
				return
			}
			done = done.and(constant{terms[0].Value})
			continue
		}
		x.below(func() {
			x.term(s, terms[0], func(s state, v value) { x.combine(s, terms[1:], done.and(v), k) })
		})
		return
	}
	k(s, done.values())
}

// isPlain reports whether the term is a value as it stands.
func isPlain(t *ast.Term) bool {
	if !t.IsGround() {
		return false
	}
	plain := true
	ast.WalkTerms(t, func(t *ast.Term) bool {
		switch t.Value.(type) {
		case ast.Ref, ast.Var, ast.Call, *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension:
			plain = false
		}
		return !plain
	})
	return plain
}

func constants(items []value) ([]*ast.Term, bool) {
	terms := make([]*ast.Term, len(items))
	for i, v := range items {
		c, ok := v.(constant)
		if !ok {
			return nil, false
		}
		terms[i] = ast.NewTerm(c.v)
	}
	return terms, true
}

func arrayOf(items []value) value {
	if terms, ok := constants(items); ok {
		return constant{ast.NewArray(terms...)}
	}
	return array{items}
}

func setOf(items []value) value {
	if terms, ok := constants(items); ok {
		return constant{ast.NewSet(terms...)}
	}
	return set{items}
}

func objectOf(keys []*ast.Term, items []value) value {
	if terms, ok := constants(items); ok {
		o := ast.NewObject()
		for i, key := range keys {
			o.Insert(key, terms[i])
		}
		return constant{o}
	}
	out := object{items: items}
	for _, key := range keys {
		out.keys = append(out.keys, key.Value)
	}
	return out
}

var firstToken = ast.MustParseTerm("input.tokens[0]")

var resultVar = ast.Var("__writ_result__")

// comprehension is evaluated where it depends on no input.
func (x *evaluation) comprehension(s state, t *ast.Term, k func(state, value)) {
	if !x.depends(t) {
		if body, ok := x.closedOver(s, t); ok {
			x.constant(s, body.with(ast.Equality.Expr(ast.VarTerm(string(resultVar)), t)), k)
			return
		}
	}
	if x.p.Compiler().ComprehensionIndex(t) != nil {
		// Topdown makes it for all values of what it closes over at once, and so
		// meets errors of other values, too.
		x.ask(s, "a comprehension that topdown indexes")
		return
	}
	c := comprehension{env: s.env}
	switch v := t.Value.(type) {
	case *ast.SetComprehension:
		c.head, c.body = v.Term, v.Body
	case *ast.ArrayComprehension:
		c.head, c.body = v.Term, v.Body
	default:
		x.ask(s, "an object of the input's parts")
		return
	}
	// Topdown makes all of it here, with any error in it.
	x.solutions(s, func(s state, k func(state)) {
		x.members(s, c, func(s state, _ value) { k(s) })
	})
	k(s, c)
}

// constantBody is a body that begins with what its variables stand for.
type constantBody ast.Body

func (b constantBody) with(e *ast.Expr) ast.Body {
	e.Index = len(b)
	return append(ast.Body(b), e)
}

// closedOver says what the variables in node stand for, if all are constant.
func (x *evaluation) closedOver(s state, node any) (body constantBody, ok bool) {
	vars := map[ast.Var]bool{}
	ast.WalkVars(node, func(v ast.Var) bool {
		vars[v] = true
		return false
	})
	for b := s.env; b != nil; b = b.prev {
		if !vars[b.name] {
			continue
		}
		delete(vars, b.name)
		c, ok := b.v.(constant)
		if !ok {
			return nil, false
		}
		e := ast.Equality.Expr(ast.NewTerm(b.name), ast.NewTerm(c.v))
		e.Index = len(body)
		body = append(body, e)
	}
	return body, true
}

// constant goes on with the values that topdown gives the body now.
func (x *evaluation) constant(s state, body ast.Body, k func(state, value)) {
	values, err := x.consts.Eval(x.ctx, body, resultVar)
	if err != nil {
		x.ask(s, "%v", err)
		return
	}
	for _, v := range values {
		k(s, constant{v})
	}
}

// newToken is some token of the input.
func (x *evaluation) newToken(s state) (state, token) {
	id := x.newID()
	issuer := newField(program.Field{Base: program.TokenIssuer})
	return s.and(presence(issuer, 0, id)), token{id}
}
