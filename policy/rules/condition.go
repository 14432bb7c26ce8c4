package rules

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/writ-dev/writ/policy"
)

// Set is the rules of a policy in their normal form.
type Set struct {
	Files []*File
	// Services by name, each in the order in which its rules are written.
	Services   map[string][]Rule
	Guardrails []Rule
}

// Rule speaks when some conjunction of From holds, some of To, and all of
// When. An empty conjunction holds.
type Rule struct {
	ID   string
	Tier policy.Tier
	File string
	// Line and Column count from 1.
	Line, Column int
	// Who answers for the rule, as written.
	Owner, Ticket, Description string
	// Expires is zero for never. From then on a rule that allows does not speak
	// any more; one that denies goes on.
	Expires  time.Time
	From, To [][]Condition
	When     []Condition
}

// Condition is one test. It holds when one of the values of Field passes Op
// with one of the operands, and with Not, when none does. A field that is
// absent has no values.
type Condition struct {
	Field string
	// Name of a header, query parameter or claim; empty for other fields.
	Name string
	Op   string
	Not  bool
	// Operands, by Op. Texts are sorted, each once.
	Texts  []string
	Paths  []Path
	Ranges []Range
	Window *Window
	// Token is what one token has to meet: conditions without Not on token
	// fields.
	Token []Condition
}

// Operators of a Condition.
const (
	OpIn      = "in"      // text: is one of Texts
	OpPrefix  = "prefix"  // text: begins with one of Texts
	OpSuffix  = "suffix"  // text: ends with one of Texts
	OpRegex   = "regex"   // text: one of Texts matches all of it
	OpCIDR    = "cidr"    // text: an address in one of Texts
	OpOutside = "outside" // text: an address in none of Texts
	OpExists  = "exists"  // has a value
	OpPath    = "path"    // segments: fit one of Paths
	OpRange   = "range"   // number: in one of Ranges
	OpWindow  = "window"  // time: within Window
	OpToken   = "token"   // one token meets all of Token
)

// Fields of a Condition that are not fields of input by the same name.
const (
	// FieldHost is request.host in lower case and without its port.
	FieldHost = "host"
	// FieldTime is input.time in nanoseconds since the Unix epoch.
	FieldTime = "time"
	// FieldToken is the tokens, for OpToken; the others are of one of them.
	FieldToken        = "token"
	FieldTokenIssuer  = "token.issuer"
	FieldTokenSubject = "token.subject"
	// FieldTokenClaim is a claim that is a text, or the texts of a list.
	FieldTokenClaim = "token.claim"
)

// Path is a path pattern taken apart: Head, any number of segments if Open,
// Tail, and one or more segments if Rest. Text is the pattern as written.
type Path struct {
	Text       string
	Head, Tail []Part
	Open, Rest bool
}

// Part is compared with one segment: it is Text, or matches Regex if that is
// not empty, or with One is anything but empty.
type Part struct {
	Text  string
	Regex string
	One   bool
}

// Range is numbers, both ends included.
type Range struct{ Low, High int64 }

// Window is hours of the week: on Days (Monday, …), from From until before To,
// seconds of the day, at Offset nanoseconds east of UTC.
type Window struct {
	Days     []string
	From, To int64
	Offset   int64
}

// Data is the set as data.writ.rules, nil when there are no rules.
func (s *Set) Data() map[string]any {
	if len(s.Services) == 0 && len(s.Guardrails) == 0 {
		return nil
	}
	services := map[string]any{}
	for name, list := range s.Services {
		services[name] = byTier(list)
	}
	return map[string]any{"services": services, "guardrails": byTier(s.Guardrails)}
}

// tierNames are the names of tiers in data, those of the Rego rules.
var tierNames = map[policy.Tier]string{
	policy.Guardrail:            "deny",
	policy.OverridableGuardrail: "deny_overridable",
	policy.ServiceDeny:          "deny",
	policy.ServiceAllow:         "allow",
}

func byTier(list []Rule) map[string]any {
	out := map[string]any{}
	for _, r := range list {
		tier, ok := out[tierNames[r.Tier]].(map[string]any)
		if !ok {
			tier = map[string]any{}
			out[tierNames[r.Tier]] = tier
		}
		tier[r.ID] = r.data()
	}
	return out
}

func (r *Rule) data() map[string]any {
	out := map[string]any{"from": alternatives(r.From), "to": alternatives(r.To), "when": conjunction(r.When)}
	if r.Tier == policy.ServiceAllow && !r.Expires.IsZero() {
		out["expires_ns"] = number(r.Expires.UnixNano())
	}
	return out
}

func alternatives(list [][]Condition) []any {
	out := make([]any, len(list))
	for i, c := range list {
		out[i] = conjunction(c)
	}
	return out
}

func conjunction(list []Condition) []any {
	out := make([]any, len(list))
	for i, c := range list {
		out[i] = c.data()
	}
	return out
}

func (c *Condition) data() map[string]any {
	return map[string]any{"field": c.Field, "name": c.Name, "op": c.Op, "not": c.Not, "values": c.values()}
}

func (c *Condition) values() any {
	switch c.Op {
	case OpIn: // Found by name, however many there are.
		set := make(map[string]any, len(c.Texts))
		for _, text := range c.Texts {
			set[text] = true
		}
		return set
	case OpPath:
		list := make([]any, len(c.Paths))
		for i, p := range c.Paths {
			list[i] = map[string]any{"text": p.Text, "head": parts(p.Head), "tail": parts(p.Tail), "open": p.Open, "rest": p.Rest}
		}
		return list
	case OpRange:
		list := make([]any, len(c.Ranges))
		for i, r := range c.Ranges {
			list[i] = map[string]any{"low": number(r.Low), "high": number(r.High)}
		}
		return list
	case OpWindow:
		days := map[string]any{}
		for _, day := range c.Window.Days {
			days[day] = true
		}
		return map[string]any{"days": days, "from": number(c.Window.From), "to": number(c.Window.To), "offset_ns": number(c.Window.Offset)}
	case OpToken:
		return conjunction(c.Token)
	}
	list := make([]any, len(c.Texts))
	for i, text := range c.Texts {
		list[i] = text
	}
	return list
}

func parts(list []Part) []any {
	out := make([]any, len(list))
	for i, p := range list {
		switch {
		case p.One:
			out[i] = map[string]any{"one": true}
		case p.Regex != "":
			out[i] = map[string]any{"regex": p.Regex}
		default:
			out[i] = map[string]any{"is": p.Text}
		}
	}
	return out
}

// number is exact at any size, as the numbers of data files are.
func number(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }
