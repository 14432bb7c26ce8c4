package compile

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy/program"
)

// A relation is a builtin that is true or false. It goes on where it is true,
// and asks where it could fail or is not known.
type relation func(x *evaluation, s state, args []value, k func(state))

// relations by name, for arguments that are not all constant. Those of the
// input have the type of the schema, so what fails on a wrong type does not.
func relations() map[string]relation {
	return map[string]relation{
		"neq": func(x *evaluation, s state, args []value, k func(state)) {
			x.opposite(s, "==", func(s state, k func(state)) { x.equal(s, args[0], args[1], k) }, k)
		},
		"equal":                    func(x *evaluation, s state, args []value, k func(state)) { x.equal(s, args[0], args[1], k) },
		"lt":                       order("lt"),
		"lte":                      order("lte"),
		"gt":                       order("gt"),
		"gte":                      order("gte"),
		"internal.member_2":        func(x *evaluation, s state, args []value, k func(state)) { x.member(s, args[0], args[1], k) },
		"startswith":               affix("startswith", program.Prefix, false),
		"endswith":                 affix("endswith", program.Suffix, false),
		"contains":                 affix("contains", program.Contains, false),
		"strings.any_prefix_match": affix("strings.any_prefix_match", program.Prefix, true),
		"strings.any_suffix_match": affix("strings.any_suffix_match", program.Suffix, true),
		"regex.match":              matchRegex,
		"glob.match":               matchGlob,
		"net.cidr_contains":        containsAddress,
		"is_string":                kind(func(v value) bool { _, ok := v.(text); return ok }),
		"is_number":                kind(func(v value) bool { _, ok := v.(number); return ok }),
		"is_array":                 kind(isList),
		"is_object":                kind(func(v value) bool { _, n := v.(node); _, o := v.(object); return n || o }),
		"is_set":                   kind(func(v value) bool { _, r := v.(ruleSet); _, s := v.(set); return r || s }),
		"is_boolean":               kind(func(value) bool { return false }),
		"is_null":                  kind(func(value) bool { return false }),
	}
}

func isList(v value) bool {
	switch v.(type) {
	case list, array, split, tokens:
		return true
	}
	return false
}

// kinds of a claim for which a builtin is true.
var kinds = map[string][]string{
	"is_string":  {kindString},
	"is_number":  {"number"},
	"is_boolean": {"true", "false"},
	"is_null":    {"null"},
	"is_array":   {kindStrings, kindArray},
	"is_object":  {kindObject},
	"is_set":     {""}, // No claim is.
}

func kind(is func(value) bool) relation {
	return func(x *evaluation, s state, args []value, k func(state)) {
		switch args[0].(type) {
		case unknown, claim, constant, comprehension:
			x.ask(s, "the type of %s", describe(args[0]))
		default:
			if is(args[0]) {
				k(s)
			}
		}
	}
}

func order(op string) relation {
	return func(x *evaluation, s state, args []value, k func(state)) { x.compare(s, op, args[0], args[1], k) }
}

// affix is a test of a text against one text, or any of several.
func affix(name string, op program.Op, several bool) relation {
	return func(x *evaluation, s state, args []value, k func(state)) {
		t, isText := args[0].(text)
		c, isConstant := args[1].(constant)
		if !isText || !isConstant {
			x.ask(s, "%s of %s and %s", name, describe(args[0]), describe(args[1]))
			return
		}
		var texts []string
		switch operand := c.v.(type) {
		case ast.String:
			texts = []string{string(operand)}
		case *ast.Array, ast.Set:
			_, items, _ := elements(c)
			for _, item := range items {
				t, ok := item.(constant).v.(ast.String)
				if !ok || !several {
					x.ask(s, "%s fails", name)
					return
				}
				texts = append(texts, string(t))
			}
			if !several {
				x.ask(s, "%s fails", name)
				return
			}
		default:
			x.ask(s, "%s fails", name)
			return
		}
		if len(texts) > 0 {
			k(s.and(textOp(op, t, texts)))
		}
	}
}

// pattern is the constant text v, if topdown accepts it: it is tried first.
func (x *evaluation) pattern(s state, v value, try func(pattern *ast.Term) *ast.Expr) (string, bool) {
	c, ok := v.(constant)
	if !ok {
		return "", false
	}
	p, ok := c.v.(ast.String)
	if !ok {
		return "", false
	}
	name := "pattern " + try(ast.NewTerm(p)).String()
	d, known := x.documents[name]
	if !known {
		if _, err := x.consts.Eval(x.ctx, constantBody(nil).with(try(ast.NewTerm(p))), resultVar); err != nil {
			d.why = err.Error()
		}
		x.documents[name] = d
	}
	if d.why != "" {
		return "", false
	}
	return string(p), true
}

func matchRegex(x *evaluation, s state, args []value, k func(state)) {
	t, isText := args[1].(text)
	p, ok := x.pattern(s, args[0], func(p *ast.Term) *ast.Expr {
		return ast.RegexMatch.Expr(p, ast.StringTerm(""), ast.VarTerm(string(resultVar)))
	})
	if !isText || !ok {
		x.ask(s, "regex.match with a pattern that is not literal, or not valid")
		return
	}
	k(s.and(textOp(program.Regex, t, []string{p})))
}

func matchGlob(x *evaluation, s state, args []value, k func(state)) {
	t, isText := args[2].(text)
	delimiters, ok := globDelimiters(args[1])
	if isText && ok {
		p, valid := x.pattern(s, args[0], func(p *ast.Term) *ast.Expr {
			return ast.GlobMatch.Expr(p, ast.NewTerm(args[1].(constant).v), ast.StringTerm(""), ast.VarTerm(string(resultVar)))
		})
		if valid && !strings.Contains(p, "\x00") {
			k(s.and(textOp(program.Glob, t, []string{delimiters + "\x00" + p})))
			return
		}
	}
	x.ask(s, "glob.match with a pattern that is not literal, or not valid")
}

// globDelimiters are those of OPA: null is none, an empty list is ".".
func globDelimiters(v value) (string, bool) {
	c, ok := v.(constant)
	if !ok {
		return "", false
	}
	if _, ok := c.v.(ast.Null); ok {
		return "", true
	}
	a, ok := c.v.(*ast.Array)
	if !ok {
		return "", false
	}
	if a.Len() == 0 {
		return ".", true
	}
	var b strings.Builder
	for i := range a.Len() {
		d, ok := a.Elem(i).Value.(ast.String)
		if !ok || len([]rune(string(d))) != 1 || d == "\x00" {
			return "", false
		}
		b.WriteString(string(d))
	}
	return b.String(), true
}

// containsAddress asks for a text that is no address: topdown takes a network
// as well, and fails on anything else.
func containsAddress(x *evaluation, s state, args []value, k func(state)) {
	t, isText := args[1].(text)
	p, ok := x.pattern(s, args[0], func(p *ast.Term) *ast.Expr {
		return ast.NetCIDRContains.Expr(p, ast.StringTerm("192.0.2.1"), ast.VarTerm(string(resultVar)))
	})
	if !isText || !ok {
		x.ask(s, "net.cidr_contains with a network that is not literal, or not valid")
		return
	}
	x.askNotAddress(s, t)
	k(s.and(textOp(program.CIDR, t, []string{p})))
}

func (x *evaluation) askNotAddress(s state, t text) {
	for l := s.conds; l != nil; l = l.prev {
		if l.c.f != nil && l.c.f.key == t.f.key && l.c.elem == t.elem && l.c.token == t.token && !l.c.not &&
			len(l.c.pred) == 1 && l.c.pred[0].Op == program.Address && !l.c.pred[0].Not {
			return // It is one.
		}
	}
	no := newCond(t.f, t.elem, t.token, program.Pred{Op: program.Address, Not: true})
	x.ask(s.and(no), "an address that is none")
}

// A function is a builtin with a value. It goes on with it and reports
// whether it could be followed.
type function func(x *evaluation, s state, args []value, k func(state, value)) bool

func functions() map[string]function {
	return map[string]function{
		"trim":        throughWith(program.Trim),
		"trim_left":   throughWith(program.TrimLeft),
		"trim_right":  throughWith(program.TrimRight),
		"lower":       through(program.Lower),
		"upper":       through(program.Upper),
		"trim_space":  through(program.TrimSpace),
		"trim_prefix": throughWith(program.TrimPrefix),
		"trim_suffix": throughWith(program.TrimSuffix),
		"split": func(_ *evaluation, s state, args []value, k func(state, value)) bool {
			t, isText := args[0].(text)
			separator, ok := constantText(args[1])
			if isText && ok {
				k(s, split{t, separator})
			}
			return isText && ok
		},
		"count":                 count,
		"object.get":            objectGet,
		"time.parse_rfc3339_ns": parseClock,
	}
}

func constantText(v value) (string, bool) {
	if c, ok := v.(constant); ok {
		t, ok := c.v.(ast.String)
		return string(t), ok
	}
	return "", false
}

func through(kind program.StepKind) function {
	return func(_ *evaluation, s state, args []value, k func(state, value)) bool {
		t, ok := args[0].(text)
		if ok {
			k(s, t.via(program.Step{Kind: kind}))
		}
		return ok
	}
}

func throughWith(kind program.StepKind) function {
	return func(_ *evaluation, s state, args []value, k func(state, value)) bool {
		t, isText := args[0].(text)
		operand, ok := constantText(args[1])
		if isText && ok {
			k(s, t.via(program.Step{Kind: kind, Text: operand}))
		}
		return isText && ok
	}
}

func count(x *evaluation, s state, args []value, k func(state, value)) bool {
	switch v := args[0].(type) {
	case list:
		if v.token != 0 {
			return false
		}
		k(s, number{v.counter()})
	case ruleSet, comprehension:
		k(s, size{v})
	case array:
		k(s, constant{ast.InternedTerm(len(v.items)).Value})
	case object:
		k(s, constant{ast.InternedTerm(len(v.items)).Value})
	default:
		return false
	}
	return true
}

// objectGet is what the path leads to, or the default where it leads nowhere.
func objectGet(x *evaluation, s state, args []value, k func(state, value)) bool {
	switch v := args[0].(type) {
	case node:
	case constant:
		if _, ok := v.v.(ast.Object); !ok {
			return false
		}
	default:
		return false
	}
	var path []*ast.Term
	switch p := args[1].(type) {
	case constant:
		if list, ok := p.v.(*ast.Array); ok {
			for i := range list.Len() {
				path = append(path, list.Elem(i))
			}
			break
		}
		path = []*ast.Term{ast.NewTerm(p.v)}
	case text:
		const key = ast.Var("__writ_key__")
		s = s.bind(key, p)
		path = []*ast.Term{ast.NewTerm(key)}
	default:
		return false
	}
	floor := x.lastID
	var found []value
	ways := x.solutions(s, func(s state, k func(state)) {
		x.walk(s, args[0], nil, path, func(s state, v value) {
			found = append(found, v)
			k(s)
		})
	})
	for i, way := range ways {
		k(state{s.env, s.conds.all(way)}, found[i])
	}
	x.unless(s, ways, floor, "object.get of what may be absent", func(s state) { k(s, args[2]) })
	return true
}

// parseClock: input.time is written from the time that the program reads.
func parseClock(x *evaluation, s state, args []value, k func(state, value)) bool {
	if _, ok := args[0].(clockText); !ok {
		return false
	}
	k(s, number{newField(program.Field{Base: program.Time})})
	return true
}

// intrinsics are functions of Writ's own library whose meaning is one
// condition, though their rules say it with many. Those that are not taken
// are followed like any other.
func intrinsics() map[string]relation {
	return map[string]relation{
		"data.writ.net.is_address": func(x *evaluation, s state, args []value, k func(state)) {
			t, isText := args[0].(text)
			if !isText {
				x.ask(s, "is_address(%s)", describe(args[0]))
				return
			}
			k(s.and(newCond(t.f, t.elem, t.token, program.Pred{Op: program.Address})))
		},
		"data.writ.http.path_match": func(x *evaluation, s state, args []value, k func(state)) {
			pattern, ok := constantText(args[0])
			l, isList := args[1].(list)
			if !ok || !isList || l.base != program.Segment || len(pattern) > maxOperand {
				x.ask(s, "path_match with a pattern that is not literal")
				return
			}
			if program.CheckPathPattern(pattern) != nil {
				return // It matches nothing.
			}
			k(s.and(newCond(newField(program.Field{Base: program.Segments}), 0, 0, program.Pred{Op: program.PathMatch, Texts: []string{pattern}})))
		},
	}
}
