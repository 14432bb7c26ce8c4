package compile_test

import (
	"fmt"
	"strings"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/program"
)

// unitText writes the clauses of a unit, one per line:
//
//	service-allow reads: method = GET HEAD, path ^= /orders/
func unitText(p *program.Program, u program.Unit) string {
	var b strings.Builder
	for _, c := range u.Ask {
		fmt.Fprintf(&b, "ask: %s\n", atomsText(c.Atoms))
	}
	for tier := policy.Guardrail; tier <= policy.ServiceAllow; tier++ {
		for _, c := range u.Clauses[tier] {
			what := p.Rules[c.Rule].ID
			if c.Ask {
				what = "ask"
			}
			fmt.Fprintf(&b, "%s %s: %s\n", tier, what, atomsText(c.Atoms))
		}
	}
	return b.String()
}

func atomsText(atoms []program.Atom) string {
	texts := make([]string, len(atoms))
	for i, a := range atoms {
		texts[i] = atomText(a)
	}
	return strings.Join(texts, ", ")
}

func atomText(a program.Atom) string {
	not := ""
	if a.Not {
		not = "not "
	}
	if len(a.Token) > 0 {
		return not + "token{" + atomsText(a.Token) + "}"
	}
	out := not + fieldText(a.Field)
	for i, p := range a.Preds {
		if i > 0 {
			out += " &"
		}
		out += " " + predText(p)
	}
	return out
}

func fieldText(f program.Field) string {
	out := strings.ToLower(f.Base.String())
	if f.Name != "" {
		out += "(" + strings.ReplaceAll(f.Name, "\x00", ".") + ")"
	}
	switch f.Base {
	case program.Segment, program.Header, program.Query, program.TokenAudience, program.TokenClaimItem:
		if out += fmt.Sprintf("[%d]", f.Index); f.Index < 0 {
			out = strings.Replace(out, "[-1]", "[*]", 1)
		}
	}
	for _, s := range f.Via {
		out += fmt.Sprintf(" |%d", s.Kind)
		if s.Text != "" {
			out += " " + s.Text
		}
		if s.Kind == program.SplitElement {
			out += fmt.Sprintf(" [%d]", s.Index)
		}
	}
	return out
}

func predText(p program.Pred) string {
	op := map[program.Op]string{
		program.Equal: "=", program.Prefix: "^=", program.Suffix: "$=", program.Contains: "*=",
		program.Glob: "glob", program.Regex: "~", program.CIDR: "cidr", program.Address: "address", program.PathMatch: "path",
	}[p.Op]
	switch p.Op {
	case program.Range:
		op = fmt.Sprintf("%d..%d", p.Low, p.High)
		op = strings.ReplaceAll(strings.ReplaceAll(op, "-9223372036854775808", ""), "9223372036854775807", "")
	case program.EqualField:
		op = "= " + fieldText(*p.Other)
	}
	if p.Not {
		op = "!" + op
	}
	return strings.TrimSpace(op + " " + strings.ReplaceAll(strings.Join(p.Texts, " "), "\x00", "|"))
}
