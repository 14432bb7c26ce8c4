package compile

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/program"
	"github.com/writ-dev/writ/policy/rules"
)

// Bounds of what one YAML rule may become; beyond, it is left to topdown.
const (
	maxRuleClauses  = 4096
	maxRuleOperands = 1 << 17
	// Ranges of one condition: the first and the gaps between them.
	maxRanges = 12
	// Ways in which the claims of one condition may hold.
	maxClaimWays = 16
)

// written compiles YAML rules, as data.writ.rules has them. They speak beside
// the Rego rules of their tier.
func (c *serviceCompiler) written() {
	set := c.p.Rules()
	for _, r := range slices.Concat(set.Guardrails, set.Services[c.unit.Service]) {
		w := translate(&r)
		report := RuleReport{Tier: r.Tier.String(), ID: r.ID, File: r.File, Line: r.Line, Result: Compiled, Why: w.why, Clauses: len(w.clauses)}
		rule := c.rules.index(c.p.Rule(r.Tier, c.unit.Service, r.ID))
		for _, clause := range w.clauses {
			clause.Rule = rule
			if end := r.Ends(); !end.IsZero() && !clause.Ask {
				clause.Expires = end.UnixNano()
			}
			c.unit.Clauses[r.Tier] = append(c.unit.Clauses[r.Tier], clause)
			switch {
			case clause.Ask && len(clause.Atoms) == 0:
				report.Result = Topdown
			case clause.Ask && report.Result == Compiled:
				report.Result = Guarded
			}
		}
		c.unit.Ask = append(c.unit.Ask, w.asks...)
		if len(w.asks) > 0 && report.Result == Compiled {
			report.Result, report.Why = Guarded, "a claim may be a list with more than texts in it"
		}
		if len(w.clauses) == 0 {
			report.Result, report.Why = Never, "nothing of it is left for this service"
		}
		if c.always != "" {
			report.Result, report.Why = Topdown, c.always
		}
		c.report.Rules = append(c.report.Rules, report)
	}
}

// translation is what a YAML rule comes to.
type translation struct {
	// clauses have no Rule yet.
	clauses []program.Clause
	// asks are conditions under which no rule of the service is decided here.
	asks []program.Clause
	// why is empty when the clauses are all there is to the rule.
	why string
}

// branch is one way in which conditions hold: all atoms do. With ask, they are
// necessary and not sufficient.
type branch struct {
	atoms []program.Atom
	ask   bool
}

// translate is the rule in the terms of a program. It says what the
// interpreter, rego/writ/rules.rego, says of the same conditions: one clause
// for each way from a source to an operation, with all values of a condition in
// one atom.
func translate(r *rules.Rule) translation {
	w := &translation{}
	when := w.all(r.When)
	if r.Tier == policy.ServiceAllow && !r.Expires.IsZero() {
		when = product(when, []branch{{atoms: []program.Atom{within(program.Time, math.MinInt64, r.Expires.UnixNano()-1)}}})
	}
	var from, to []branch
	for _, entry := range r.From {
		from = append(from, w.all(entry)...)
	}
	for _, entry := range r.To {
		to = append(to, w.all(entry)...)
	}
	if len(from)*len(to)*len(when) > maxRuleClauses {
		return leftToTopdown("too many combinations of from, to and when")
	}
	operands := 0
	for _, b := range product(product(from, to), when) {
		operands += operandsOf(b.atoms)
		if len(b.atoms) > maxAtoms || operands > maxRuleOperands {
			return leftToTopdown("more conditions than the program can hold")
		}
		w.clauses = append(w.clauses, program.Clause{Atoms: b.atoms, Ask: b.ask})
	}
	return *w
}

func leftToTopdown(why string) translation {
	return translation{clauses: []program.Clause{{Ask: true}}, why: why}
}

func operandsOf(atoms []program.Atom) int {
	n := 0
	for _, a := range atoms {
		n += operandsOf(a.Token)
		for _, p := range a.Preds {
			n += len(p.Texts)
		}
	}
	return n
}

// product is every way in which both hold.
func product(a, b []branch) []branch {
	out := make([]branch, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			atoms := make([]program.Atom, 0, len(x.atoms)+len(y.atoms))
			out = append(out, branch{atoms: append(append(atoms, x.atoms...), y.atoms...), ask: x.ask || y.ask})
		}
	}
	return out
}

// all are the ways in which all conditions hold; none when they cannot.
func (w *translation) all(conditions []rules.Condition) []branch {
	out := []branch{{}}
	for i := range conditions {
		if out = product(out, w.condition(&conditions[i])); len(out) == 0 {
			return nil
		}
		if len(out) > maxRuleClauses {
			w.why = "too many ways in which its conditions hold"
			return []branch{{ask: true}}
		}
	}
	return out
}

// condition is the ways in which one condition holds.
func (w *translation) condition(c *rules.Condition) []branch {
	if c.Op == rules.OpToken {
		return w.token(c)
	}
	field, ok := fieldOf(c.Field, c.Name)
	if !ok {
		return w.ask(fmt.Sprintf("%s is not a field that the program reads", c.Field))
	}
	if c.Op == rules.OpWindow {
		return w.window(c)
	}
	if c.Op == rules.OpRange && len(c.Ranges) > maxRanges {
		return w.ask(fmt.Sprintf("more than %d ranges", maxRanges))
	}
	if c.Op != rules.OpExists && len(c.Texts)+len(c.Paths)+len(c.Ranges) == 0 { // None of nothing, or one of it.
		if c.Not {
			return []branch{{}}
		}
		return nil
	}
	return []branch{{atoms: []program.Atom{{Field: field, Not: c.Not, Preds: predsOf(c)}}}}
}

// window is the days and the hours of a week at an offset of whole minutes.
func (w *translation) window(c *rules.Condition) []branch {
	offset := time.Duration(c.Window.Offset)
	if c.Not || offset%time.Minute != 0 || offset.Abs() > 24*time.Hour {
		return w.ask("hours of the week that are negated, or at an odd offset")
	}
	at := int32(program.OffsetUTC + offset/time.Minute)
	return []branch{{atoms: []program.Atom{
		{Field: program.Field{Base: program.Weekday, Index: at}, Preds: []program.Pred{{Op: program.Equal, Texts: c.Window.Days}}},
		{Field: program.Field{Base: program.SecondOfDay, Index: at}, Preds: []program.Pred{{Op: program.Range, Low: c.Window.From, High: c.Window.To - 1}}},
	}}}
}

func (w *translation) ask(why string) []branch {
	w.why = why
	return []branch{{ask: true}}
}

// predsOf are what one value of the field has to meet.
func predsOf(c *rules.Condition) []program.Pred {
	switch c.Op {
	case rules.OpExists:
		return nil
	case rules.OpIn:
		return []program.Pred{{Op: program.Equal, Texts: c.Texts}}
	case rules.OpPrefix:
		return []program.Pred{{Op: program.Prefix, Texts: c.Texts}}
	case rules.OpSuffix:
		return []program.Pred{{Op: program.Suffix, Texts: c.Texts}}
	case rules.OpRegex:
		return []program.Pred{{Op: program.Regex, Texts: c.Texts}}
	case rules.OpCIDR:
		return []program.Pred{{Op: program.CIDR, Texts: c.Texts}}
	case rules.OpOutside:
		return []program.Pred{{Op: program.Address}, {Op: program.CIDR, Texts: c.Texts, Not: true}}
	case rules.OpPath:
		patterns := make([]string, len(c.Paths))
		for i, p := range c.Paths {
			patterns[i] = p.Text
		}
		return []program.Pred{{Op: program.PathMatch, Texts: patterns}}
	case rules.OpRange:
		// In one of the ranges is in the span of all and in no gap: they are in
		// order and apart.
		preds := []program.Pred{{Op: program.Range, Low: c.Ranges[0].Low, High: c.Ranges[len(c.Ranges)-1].High}}
		for i := range len(c.Ranges) - 1 {
			preds = append(preds, program.Pred{Op: program.Range, Not: true, Low: c.Ranges[i].High + 1, High: c.Ranges[i+1].Low - 1})
		}
		return preds
	}
	return nil
}

func within(base program.Base, low, high int64) program.Atom {
	return program.Atom{Field: program.Field{Base: base}, Preds: []program.Pred{{Op: program.Range, Low: low, High: high}}}
}

// fieldOf is the field of a condition as the program reads it.
func fieldOf(name, of string) (program.Field, bool) {
	base, ok := map[string]program.Base{
		"direction":              program.Direction,
		"layer":                  program.Layer,
		"source.id":              program.SourceID,
		"source.trust_domain":    program.SourceTrustDomain,
		"source.path":            program.SourcePath,
		"source.authn":           program.SourceAuthn,
		"destination.id":         program.DestinationID,
		"destination.port":       program.DestinationPort,
		"request.protocol":       program.Protocol,
		"request.method":         program.Method,
		"request.host":           program.Host,
		rules.FieldHost:          program.Host,
		"request.path":           program.Path,
		"request.segments":       program.Segments,
		"request.headers":        program.Header,
		"request.query":          program.Query,
		"request.grpc.service":   program.GRPCService,
		"request.grpc.method":    program.GRPCMethod,
		"request.content_length": program.ContentLength,
		"connection.peer_ip":     program.PeerIP,
		"connection.client_ip":   program.ClientIP,
		"connection.tls_version": program.TLSVersion,
		"connection.sni":         program.SNI,
		"connection.alpn":        program.ALPN,
		"token_status":           program.TokenStatus,
		rules.FieldTime:          program.Time,
		rules.FieldTokenIssuer:   program.TokenIssuer,
		rules.FieldTokenSubject:  program.TokenSubject,
		rules.FieldTokenClaim:    program.TokenClaim,
	}[name]
	f := program.Field{Base: base, Name: of}
	switch {
	case base == program.Header || base == program.Query:
		f.Index = program.Any
	case name == rules.FieldHost:
		f.Via = []program.Step{{Kind: program.Lower}, {Kind: program.SplitElement, Text: ":"}}
	}
	return f, ok
}

// token is the ways in which one token meets all conditions, or none does. A
// claim is a text or a list of texts, which the program reads apart; a list
// with anything else in it is asked about.
func (w *translation) token(c *rules.Condition) []branch {
	ways := [][]program.Atom{nil}
	for i := range c.Token {
		one := &c.Token[i]
		field, _ := fieldOf(one.Field, one.Name)
		options := [][]program.Atom{{{Field: field, Preds: predsOf(one)}}}
		if one.Field == rules.FieldTokenClaim {
			item := program.Field{Base: program.TokenClaimItem, Name: one.Name, Index: program.Any}
			options = [][]program.Atom{
				{claimIs(one.Name, "string"), {Field: field, Preds: predsOf(one)}},
				{claimIs(one.Name, "strings"), {Field: item, Preds: predsOf(one)}},
			}
			w.asks = append(w.asks, program.Clause{Atoms: []program.Atom{{Token: []program.Atom{claimIs(one.Name, "array")}}}})
		}
		var next [][]program.Atom
		for _, way := range ways {
			for _, option := range options {
				next = append(next, append(append([]program.Atom{}, way...), option...))
			}
		}
		if ways = next; len(ways) > maxClaimWays {
			return w.ask("many claims of one token")
		}
	}
	if c.Not {
		b := branch{}
		for _, way := range ways {
			b.atoms = append(b.atoms, program.Atom{Token: way, Not: true})
		}
		return []branch{b}
	}
	out := make([]branch, len(ways))
	for i, way := range ways {
		out[i].atoms = []program.Atom{{Token: way}}
	}
	return out
}

func claimIs(name, kind string) program.Atom {
	return program.Atom{Field: program.Field{Base: program.TokenClaimKind, Name: name}, Preds: []program.Pred{{Op: program.Equal, Texts: []string{kind}}}}
}
