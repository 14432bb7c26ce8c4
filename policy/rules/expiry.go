package rules

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/writ-dev/writ/policy"
)

// Expiry is the end of a rule. One that allows stops to; one that denies goes
// on, and somebody should hear of it.
type Expiry struct {
	// Service is empty for a guardrail.
	Service string
	Rule    policy.Rule
	// Action is allow, deny or guardrail.
	Action string
	At     time.Time
	// Owner and Ticket are as written.
	Owner, Ticket string
}

// Expiries are the rules of the set that expire, the next first.
func (s *Set) Expiries() []Expiry {
	var list []Expiry
	add := func(service string, rules []Rule) {
		for _, r := range rules {
			if !r.Expires.IsZero() {
				list = append(list, Expiry{Service: service, Rule: policy.Rule{ID: r.ID, File: r.File, Line: r.Line},
					Action: r.action(), At: r.Expires, Owner: r.Owner, Ticket: r.Ticket})
			}
		}
	}
	add("", s.Guardrails)
	for service, rules := range s.Services {
		add(service, rules)
	}
	slices.SortFunc(list, func(a, b Expiry) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Rule.ID, b.Rule.ID))
	})
	return list
}

// Ends is when what the rule allows ends at the latest: when it expires, or a
// time that it needs is over. It is zero for never, and for rules that deny. The
// hours of a window are not looked at.
func (r *Rule) Ends() time.Time {
	if r.Tier != policy.ServiceAllow {
		return time.Time{}
	}
	end := r.Expires
	for _, c := range r.When {
		if c.Field != FieldTime || c.Op != OpRange {
			continue
		}
		if high := c.Ranges[0].High; high != math.MaxInt64 {
			if before := time.Unix(0, high+1).UTC(); end.IsZero() || before.Before(end) {
				end = before
			}
		}
	}
	return end
}

func (r *Rule) action() string {
	switch r.Tier {
	case policy.ServiceAllow:
		return "allow"
	case policy.ServiceDeny:
		return "deny"
	}
	return "guardrail"
}

// Reads are the headers and query parameters that the rules look at, and
// whether they look at tokens.
func (s *Set) Reads() (headers, query []string, tokens bool) {
	seen := map[string]map[string]bool{"request.headers": {}, "request.query": {}}
	look := func(list []Condition) {
		for _, c := range list {
			if names := seen[c.Field]; names != nil {
				names[c.Name] = true
			}
			tokens = tokens || c.Field == FieldToken
		}
	}
	every := func(rules []Rule) {
		for _, r := range rules {
			look(r.When)
			for _, entry := range r.From {
				look(entry)
			}
			for _, entry := range r.To {
				look(entry)
			}
		}
	}
	every(s.Guardrails)
	for _, rules := range s.Services {
		every(rules)
	}
	return keys(seen["request.headers"]), keys(seen["request.query"]), tokens
}

func keys(set map[string]bool) []string {
	list := make([]string, 0, len(set))
	for name := range set {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}
