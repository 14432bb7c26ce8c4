package program

import (
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy"
)

func TestValidate(t *testing.T) {
	good := func() *Program { return grants(2, 2) }
	atom := func(a Atom) func(*Program) {
		return func(p *Program) { p.Units[0].Clauses[policy.ServiceAllow][1].Atoms[2] = a }
	}
	pred := func(f Field, preds ...Pred) func(*Program) { return atom(Atom{Field: f, Preds: preds}) }
	host := Field{Base: Host}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*Program)
		want   string
	}{
		"rule":             {func(p *Program) { p.Units[0].Clauses[policy.ServiceAllow][1].Rule = 2 }, `unit "shop": service-allow, clause 1: rule 2 of 2`},
		"ids":              {func(p *Program) { p.Rules[1].ID = p.Rules[0].ID }, "rules 0 and 1 have one id"},
		"line":             {func(p *Program) { p.Rules[1].Line = -1 }, "line -1"},
		"file":             {func(p *Program) { p.Rules[1].File = "\xff" }, "not valid UTF-8"},
		"units":            {func(p *Program) { p.Units = append(p.Units, p.Units[0]) }, `not after "shop"`},
		"tier":             {func(p *Program) { p.Units[0].Clauses[0] = make([]Clause, 1) }, "clauses without a tier"},
		"ask":              {func(p *Program) { p.Units[0].Ask = []Clause{{Rule: 1}} }, "ask, clause 0: it has conditions and nothing else"},
		"expiry":           {func(p *Program) { p.Units[0].Clauses[policy.ServiceDeny] = []Clause{{Expires: 1}} }, "only what allows expires"},
		"no expiry":        {func(p *Program) { p.Units[0].Clauses[policy.BreakGlass] = make([]Clause, 1) }, "break-glass, clause 0: break-glass without an expiry"},
		"atoms":            {func(p *Program) { p.Units[0].Ask = []Clause{{Atoms: make([]Atom, 65)}} }, "65 atoms, more than 64"},
		"base":             {pred(Field{Base: endBase}), "clause 1: atom 2: unknown field"},
		"no base":          {pred(Field{}), "unknown field 0"},
		"name":             {pred(Field{Base: Host, Name: "x"}), `request.host: name "x"`},
		"no name":          {pred(Field{Base: Header}), `request.headers: name ""`},
		"upper case":       {pred(Field{Base: Header, Name: "X-Team"}), "not lower case"},
		"replacement":      {pred(Field{Base: Header, Name: "\ufffd"}), "name"},
		"index":            {pred(Field{Base: Host, Index: 1}), "index 1"},
		"negative index":   {pred(Field{Base: Segment, Index: -2}), "index -2"},
		"steps":            {pred(Field{Base: Host, Via: make([]Step, 9)}), "9 steps, more than 8"},
		"step":             {pred(Field{Base: Host, Via: []Step{{Kind: endStep}}}), "step 0: unknown kind"},
		"step text":        {pred(Field{Base: Host, Via: []Step{{Kind: Lower, Text: "x"}}}), `step 0: text "x"`},
		"separator":        {pred(Field{Base: Host, Via: []Step{{Kind: SplitElement}}}), `step 0: text ""`},
		"step index":       {pred(Field{Base: Host, Via: []Step{{Kind: Lower, Index: 1}}}), "step 0: index 1"},
		"step of a number": {pred(Field{Base: Time, Via: []Step{{Kind: Lower}}}), "steps derive from a text"},
		"operator":         {pred(host, Pred{Op: endOp}), "request.host: operator 12: unknown"},
		"number on text":   {pred(host, Pred{Op: Range}), "range: not for this field"},
		"text on number":   {pred(Field{Base: Time}, equal("x")...), "equal: not for this field"},
		"path on text":     {pred(host, Pred{Op: PathMatch, Texts: []string{"/"}}), "path match: not for this field"},
		"no operand":       {pred(host, Pred{Op: Equal}), "0 operands"},
		"an operand":       {pred(host, Pred{Op: Address, Texts: []string{"x"}}), "1 operands"},
		"offset":           {pred(Field{Base: SecondOfDay, Index: Any}), "an offset of -1441 minutes"},
		"bounds":           {pred(Field{Base: Time}, Pred{Op: Range, Low: 2, High: 1}), "bounds 2 and 1"},
		"bounds of a text": {pred(host, Pred{Op: Equal, Texts: []string{"x"}, High: 1}), "bounds 0 and 1"},
		"other":            {pred(host, Pred{Op: EqualField}), "another field"},
		"no other":         {pred(host, Pred{Op: Equal, Texts: []string{"x"}, Other: &host}), "another field"},
		"other number":     {pred(host, Pred{Op: EqualField, Other: &Field{Base: Time}}), "time is not one text"},
		"other many":       {pred(host, Pred{Op: EqualField, Other: &Field{Base: Segment, Index: Any}}), "request.segments[] is not one text"},
		"other token":      {pred(host, Pred{Op: EqualField, Other: &Field{Base: TokenIssuer}}), "token issuer is not one text that can be read here"},
		"glob":             {pred(host, Pred{Op: Glob, Texts: []string{"\x00[a"}}), "glob"},
		"glob delimiters":  {pred(host, Pred{Op: Glob, Texts: []string{"a"}}), "no delimiters"},
		"regex":            {pred(host, Pred{Op: Regex, Texts: []string{"("}}), "missing closing"},
		"cidr":             {pred(host, Pred{Op: CIDR, Texts: []string{"10.0.0.0"}}), "invalid CIDR"},
		"path":             {pred(Field{Base: Segments}, Pred{Op: PathMatch, Texts: []string{"/{x}"}}), "braces"},
		"long pattern":     {pred(host, Pred{Op: Regex, Texts: []string{strings.Repeat("a", maxPattern+1)}}), "a pattern of 4097 bytes"},
		"long text":        {pred(host, equal(strings.Repeat("a", maxTextSize+1))...), "more than 65536"},
		"UTF-8":            {pred(host, equal("\xff")...), "not valid UTF-8"},
		"preds":            {pred(host, make([]Pred, 17)...), "17 predicates, more than 16"},
		"token outside":    {pred(Field{Base: TokenIssuer}), "fields of a token stand in Token"},
		"token inside":     {atom(Atom{Token: []Atom{{Field: host}}}), "token, atom 0: request.host: fields of a token"},
		"token twice":      {atom(Atom{Token: []Atom{{Token: []Atom{{Field: Field{Base: TokenIssuer}}}}}}), "a token within a token"},
		"token and field":  {atom(Atom{Field: host, Token: []Atom{{Field: Field{Base: TokenIssuer}}}}), "stand alone"},
	} {
		t.Run(name, func(t *testing.T) {
			p := good()
			tc.change(p)
			err := p.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v; want %q", err, tc.want)
			}
			if _, again := New(p); again == nil {
				t.Error("New takes it")
			}
		})
	}
}
