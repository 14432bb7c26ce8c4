package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/program"
)

// Bounds of what one rule may become.
const (
	maxClauses = 1 << 16
	// Distinct conditions under which one rule is asked about.
	maxAsks = 64
)

// serviceCompiler makes the unit of one service. It knows the root rule,
// rego/writ/decision.rego: what each tier reads and what counts as speaking.
type serviceCompiler struct {
	p      *opa.Program
	x      *evaluation
	rules  *ruleTable
	unit   program.Unit
	report ServiceReport
	// shared is what became of rules that are the same for every service.
	shared map[*ast.Rule]*found
	// always is why everything is asked about, "" when it is not.
	always string
}

func (c *serviceCompiler) compile() {
	if why := c.unknownRoot(); why != "" {
		c.unit.Ask = []program.Clause{{}}
		c.always = why
	}
	guardrails := c.tree("guardrails")
	for _, tier := range []struct {
		tier policy.Tier
		rule string
	}{{policy.Guardrail, "deny"}, {policy.OverridableGuardrail, "deny_overridable"}} {
		for _, name := range children(guardrails) {
			c.tier(tier.tier, guardrails.Child(name), ast.Ref{ast.StringTerm("guardrails"), ast.NewTerm(name)}, tier.rule)
		}
	}
	c.breakGlass()
	service := ast.String(c.unit.Service)
	tree, path := child(c.tree("services"), service), ast.Ref{ast.StringTerm("services"), ast.NewTerm(service)}
	c.tier(policy.ServiceDeny, tree, path, "deny")
	c.tier(policy.ServiceAllow, tree, path, "allow")
	c.written()
	order := map[string]int{}
	for t := policy.Guardrail; t <= policy.ServiceAllow; t++ {
		order[t.String()] = int(t)
	}
	slices.SortStableFunc(c.report.Rules, func(a, b RuleReport) int {
		return cmp.Or(cmp.Compare(order[a.Tier], order[b.Tier]), strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
}

// unknownRoot is why the tiers are not what they are taken for, "" if they
// are.
func (c *serviceCompiler) unknownRoot() string {
	data := c.p.Data()
	for _, root := range []string{"guardrails", "services"} {
		if data.Get(ast.StringTerm(root)) != nil {
			return fmt.Sprintf("data.%s holds data", root)
		}
	}
	writ, _ := data.Get(ast.StringTerm("writ")).Value.(ast.Object)
	if written := c.p.Rules(); writ.Get(ast.StringTerm("rules")) != nil && len(written.Guardrails)+len(written.Services) == 0 {
		return "data.writ.rules holds rules that no file has"
	}
	services, _ := writ.Get(ast.StringTerm("services")).Value.(ast.Object)
	entry := services.Get(ast.StringTerm(c.unit.Service))
	if _, ok := entry.Value.(ast.Object); !ok {
		return "the service's entry in data.writ.services is no object"
	}
	return ""
}

// tree is the rules below data.root, nil if there are none.
func (c *serviceCompiler) tree(root string) *ast.TreeNode {
	return child(child(c.p.Compiler().RuleTree, ast.DefaultRootDocument.Value), ast.String(root))
}

func child(tree *ast.TreeNode, key ast.Value) *ast.TreeNode {
	if tree == nil {
		return nil
	}
	return tree.Child(key)
}

func children(tree *ast.TreeNode) []ast.Value {
	if tree == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(tree.Children), func(a, b ast.Value) int { return a.Compare(b) })
}

// found is what became of one rule.
type found struct {
	rule    policy.Rule
	clauses map[string][]conj // by id
	n       int               // of them
	asks    []asked
}

// tier compiles the rules of one name in one package.
func (c *serviceCompiler) tier(tier policy.Tier, tree *ast.TreeNode, path ast.Ref, name string) {
	node := child(tree, ast.String(name))
	if node == nil || len(node.Values) == 0 {
		return
	}
	rules := node.Values
	if rules[0].Head.RuleKind() == ast.MultiValue {
		for _, rule := range rules {
			id, _ := opa.RuleID(rule)
			f := c.follow(rule, id, func(f *found) {
				c.x.ruleMembers(state{}, rule, func(s state, m value) { c.speak(f, s, m) })
			})
			c.add(tier, f)
		}
		return
	}
	names := make([]string, 0, 3)
	for _, t := range path {
		names = append(names, string(t.Value.(ast.String)))
	}
	id := strings.Join(append(names, name), ".")
	f := c.follow(rules[0], id, func(f *found) {
		c.x.follow(state{}, c.x.evaluate(state{}, rules, nil), func(s state, v value) {
			k, isConstant := v.(constant)
			if !isConstant {
				c.x.ask(s, "its value is not constant")
				return
			}
			if ids, isSet := k.v.(ast.Set); isSet {
				for _, member := range ids.Slice() {
					c.speak(f, s, constant{member.Value})
				}
				return
			}
			holds := ast.Boolean(false).Compare(k.v) != 0
			if tier == policy.ServiceAllow {
				holds = ast.Boolean(true).Compare(k.v) == 0
			}
			if holds {
				c.speak(f, s, constant{ast.String(id)})
			}
		})
	})
	c.add(tier, f)
}

// follow runs one rule and gathers what it comes to.
func (c *serviceCompiler) follow(rule *ast.Rule, id string, run func(*found)) *found {
	if f := c.shared[rule]; f != nil {
		return f
	}
	f := &found{clauses: map[string][]conj{}}
	f.rule = policy.Rule{ID: id, File: rule.Location.File, Line: rule.Location.Row}
	if c.x.ctx.Err() != nil {
		c.x.stopped = "not compiled in time"
	} else {
		c.x.stopped = ""
	}
	c.x.steps, c.x.depth, c.x.asks, c.x.serviceRead = 0, 0, nil, false
	c.x.safely(func() { run(f) })
	f.asks = c.x.asks
	if c.x.stopped != "" {
		f.clauses, f.asks = nil, []asked{{nil, c.x.stopped}}
	} else if !c.x.serviceRead {
		c.shared[rule] = f
	}
	return f
}

// safely leaves to topdown what the compiler cannot even look at.
func (x *evaluation) safely(run func()) {
	defer func() {
		if r := recover(); r != nil {
			x.stopped = fmt.Sprintf("the compiler panicked: %v", r)
		}
	}()
	run()
}

// speak notes that the rule gives the id.
func (c *serviceCompiler) speak(f *found, s state, id value) {
	k, _ := id.(constant)
	text, ok := k.v.(ast.String)
	if !ok {
		c.x.ask(s, "its id is not a text that is known")
		return
	}
	conds := s.conds.conj()
	if !c.x.spend(len(conds)) {
		return
	}
	conds, ok = conds.simplified()
	if !ok {
		return
	}
	if conds, ok = conds.closed(0); !ok {
		c.x.ask(s, "conditions on an element of a list that are not simple")
		return
	}
	if conds, ok = conds.simplified(); !ok {
		return
	}
	if !conds.fits() {
		c.x.ask(s, "more conditions than the program can hold")
	} else {
		f.clauses[string(text)] = append(f.clauses[string(text)], conds)
		if f.n++; f.n > maxClauses && c.x.stopped == "" {
			c.x.stopped = "too many ways through it"
		}
	}
}

// add puts what became of a rule into the unit and the report.
func (c *serviceCompiler) add(tier policy.Tier, f *found) {
	r := RuleReport{Tier: tier.String(), ID: f.rule.ID, File: f.rule.File, Line: f.rule.Line, Result: Compiled}
	asks, why := c.asks(f)
	for _, ask := range asks {
		clause := program.Clause{Ask: true, Atoms: atoms(ask), Rule: c.rules.index(c.p.Rule(tier, c.unit.Service, f.rule.ID))}
		if tier == policy.BreakGlass {
			clause.Expires = 1 // It has one, and an ask none that matters.
		}
		c.unit.Clauses[tier] = append(c.unit.Clauses[tier], clause)
		r.Result = Guarded
	}
	if len(asks) > 0 && len(asks[0]) == 0 {
		r.Result = Topdown
	}
	r.Clauses = len(asks)
	for _, id := range slices.Sorted(maps.Keys(f.clauses)) {
		if r.Result == Topdown {
			break // They are never looked at.
		}
		rule := c.rules.index(c.p.Rule(tier, c.unit.Service, id))
		for _, conds := range merged(f.clauses[id]) {
			c.unit.Clauses[tier] = append(c.unit.Clauses[tier], program.Clause{
				Rule: rule, Atoms: atoms(conds), Expires: c.expires(tier, id),
			})
			r.Clauses++
		}
	}
	if r.Clauses == 0 {
		r.Result, why = Never, "nothing of it is left for this service"
	}
	r.Why = why
	if c.always != "" {
		r.Result, r.Why = Topdown, c.always
	}
	if tier != policy.BreakGlass {
		c.report.Rules = append(c.report.Rules, r)
	}
}

// asks are the distinct conditions under which a rule is asked about, the
// widest one alone if it is always, and why.
func (c *serviceCompiler) asks(f *found) (out []conj, why string) {
	var reasons []string
	for _, a := range f.asks {
		all, ok := a.conds.simplified()
		if !ok {
			continue
		}
		conds, ok := all.closed(0)
		if !ok {
			conds = weakened(all)
		}
		if conds, ok = conds.simplified(); !ok {
			continue
		}
		conds = slices.DeleteFunc(conds, func(x *cond) bool { return !conj{x}.fits() })
		conds = conds[:min(len(conds), maxAtoms)]
		out = append(out, conds)
		if !slices.Contains(reasons, a.why) {
			reasons = append(reasons, a.why)
		}
	}
	out = merged(out)
	if len(out) > maxAsks {
		out = []conj{shared(out)}
	}
	if slices.ContainsFunc(out, func(c conj) bool { return len(c) == 0 }) {
		out = []conj{nil}
	}
	if len(reasons) > 3 {
		reasons = append(reasons[:3], "…")
	}
	return out, strings.Join(reasons, "; ")
}

// weakened says of each condition alone what cannot be said of one element or
// token together.
func weakened(all conj) conj {
	var out conj
	for _, c := range all {
		if !c.open() {
			out = append(out, c)
		} else if one, ok := (conj{c}).closed(0); ok {
			out = append(out, one...)
		}
	}
	return out
}

// shared are the conditions that all have.
func shared(all []conj) conj {
	var out conj
	for _, c := range all[0] {
		if !slices.ContainsFunc(all[1:], func(other conj) bool {
			return !slices.ContainsFunc(other, func(o *cond) bool { return o.sign() == c.sign() })
		}) {
			out = append(out, c)
		}
	}
	return out
}

func atoms(c conj) []program.Atom {
	out := make([]program.Atom, len(c))
	for i, x := range c {
		out[i] = x.atom()
	}
	return out
}

// breakGlass compiles data.writ.broken_glass as it is written.
func (c *serviceCompiler) breakGlass() {
	var entries []string
	for _, b := range c.p.Catalogue().BreakGlass {
		if b.Service == c.unit.Service {
			entries = append(entries, b.ID)
		}
	}
	node := child(c.tree("writ"), ast.String("broken_glass"))
	if node == nil {
		return
	}
	for _, rule := range node.Values {
		f := c.follow(rule, "break-glass", func(f *found) {
			c.x.ruleMembers(state{}, rule, func(s state, m value) { c.speak(f, s, m) })
		})
		if len(f.clauses) > 0 || len(f.asks) > 0 {
			c.add(policy.BreakGlass, f)
		}
		_, why := c.asks(f)
		for _, id := range entries {
			source := c.p.Rule(policy.BreakGlass, c.unit.Service, id)
			r := RuleReport{Tier: policy.BreakGlass.String(), ID: id, File: source.File, Line: source.Line, Clauses: len(merged(f.clauses[id]))}
			switch {
			case why != "":
				r.Result, r.Why = Topdown, why
			case r.Clauses > 0:
				r.Result = Compiled
			default:
				r.Result, r.Why = Never, "its conditions do not hold"
			}
			c.report.Rules = append(c.report.Rules, r)
		}
	}
}

// expires is when an answer by the id ends, 0 for no end.
func (c *serviceCompiler) expires(tier policy.Tier, id string) int64 {
	if tier == policy.ServiceAllow { // An id that Rego computes may be that of a YAML rule.
		for _, r := range c.p.Rules().Services[c.unit.Service] {
			if end := r.Ends(); r.Tier == tier && r.ID == id && !end.IsZero() {
				return end.UnixNano()
			}
		}
	}
	if tier != policy.BreakGlass {
		return 0
	}
	for _, b := range c.p.Catalogue().BreakGlass {
		if b.ID == id {
			return b.Expires.UnixNano()
		}
	}
	return 0
}
