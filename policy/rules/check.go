package rules

import (
	"fmt"
	"slices"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
)

// checker finds what is wrong with the values of a file.
type checker struct {
	file     *File
	problems []policy.Problem
}

func (c *checker) fail(key, format string, args ...any) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, problem(c.file.at.Errorf(key, format, args...), policy.ProblemType))
	}
}

func (c *checker) check() {
	w := &c.file.written
	switch {
	case w.Rules != nil && w.Guardrails != nil:
		c.fail("guardrails", "is for all services and rules for some: make two files")
	case w.Guardrails != nil && (w.Service != "" || w.Services != nil):
		c.fail("guardrails", "are for all services: leave service out, or write rules")
	case w.Guardrails != nil:
		c.rules("guardrails", w.Guardrails)
	case w.Rules == nil:
		c.fail("", "want rules and the service that they are for, or guardrails")
	case w.Service != "" && w.Services != nil:
		c.fail("services", "give service or services, not both")
	case len(c.file.Services) == 0:
		c.fail("service", "want the service that the rules are for (guardrails are for all)")
	default:
		c.services()
		c.rules("rules", w.Rules)
	}
	c.text("owner", w.Owner)
}

func (c *checker) services() {
	if len(c.file.Services) > maxServices {
		c.fail("services", "more than %d", maxServices)
		return
	}
	seen := map[string]bool{}
	for i, name := range c.file.Services {
		if err := checkName(name); err != nil {
			c.fail(c.file.serviceKey(i), "%q: a name is made of letters, digits, '.', '_' and '-'", name)
		}
		if seen[name] {
			c.fail(c.file.serviceKey(i), "%q is there twice", name)
		}
		seen[name] = true
	}
}

func (c *checker) rules(key string, list []rule) {
	if len(list) == 0 {
		c.fail(key, "empty: write a rule, or remove the file")
	}
	if len(list) > MaxRules {
		c.fail(key, "more than %d", MaxRules)
		return
	}
	seen := map[string]bool{}
	for i := range list {
		r, at := &list[i], fmt.Sprintf("%s[%d]", key, i)
		c.rule(at, r, key == "guardrails")
		if r.ID != "" && seen[r.ID] {
			c.fail(at+".id", "%q is there twice", r.ID)
		}
		seen[r.ID] = true
	}
}

func (c *checker) rule(at string, r *rule, guardrail bool) {
	if err := checkID(r.ID); err != nil {
		c.fail(at+".id", "%v", err)
	}
	switch {
	case guardrail && r.Action != "":
		c.fail(at+".action", "a guardrail always denies: leave it out")
	case !guardrail && r.Action == "":
		c.fail(at+".action", "want allow or deny")
	case !guardrail && r.Overridable:
		c.fail(at+".overridable", "is for guardrails only")
	}
	switch {
	case r.From == nil:
		c.fail(at+".from", "missing: say whom the rule is about, or from: any")
	case len(r.From) == 0:
		c.fail(at+".from", "empty: from: any is everybody")
	}
	if r.To != nil && len(r.To) == 0 {
		c.fail(at+".to", "empty: leave it out for everything")
	}
	if r.When != nil && len(r.When) == 0 {
		c.fail(at+".when", "empty: leave it out")
	}
	for name, n := range map[string]int{"from": len(r.From), "to": len(r.To), "when": len(r.When)} {
		if n > maxEntries {
			c.fail(at+"."+name, "more than %d: make several rules", maxEntries)
			return
		}
	}
	for i := range r.From {
		c.source(fmt.Sprintf("%s.from[%d]", at, i), &r.From[i], r.Action == "allow")
	}
	for i := range r.To {
		c.operation(fmt.Sprintf("%s.to[%d]", at, i), &r.To[i])
	}
	for i := range r.When {
		c.condition(fmt.Sprintf("%s.when[%d]", at, i), &r.When[i])
	}
	c.text(at+".description", r.Description)
	c.text(at+".owner", r.Owner)
	c.text(at+".ticket", r.Ticket)
	if err := checkTime(r.Expires); err != nil {
		c.fail(at+".expires", "%v", err)
	}
}

func (c *checker) text(at, s string) {
	if err := checkText(s); err != nil {
		c.fail(at, "%v", err)
	}
}

func (c *checker) source(at string, s *source, allow bool) {
	if s.any {
		return
	}
	given := false
	for _, k := range append(s.keys(), s.tokenKeys()...) {
		given = c.key(at, k) || given
	}
	for _, n := range s.named() {
		given = c.named(at, n) || given
	}
	if !given {
		c.fail(at, "an entry without conditions is everybody: write from: any")
	}
	if !allow {
		return
	}
	for i, id := range s.SPIFFEIDs {
		if anyTrustDomain(id) {
			c.fail(fmt.Sprintf("%s.spiffe_ids[%d]", at, i), "%q would allow IDs that any trust domain may issue: name the trust domain", id)
		}
	}
}

func (c *checker) operation(at string, o *operation) {
	given := false
	for _, k := range o.keys() {
		given = c.key(at, k) || given
	}
	for _, n := range o.named() {
		given = c.named(at, n) || given
	}
	if !given {
		c.fail(at, "an entry without conditions is everything: leave to out for that")
	}
}

// key reports whether the key is given, in either form.
func (c *checker) key(at string, k key) bool {
	c.list(at+"."+k.name, k.values, k.check)
	c.list(at+".not_"+k.name, k.not, k.check)
	return k.values != nil || k.not != nil
}

func (c *checker) named(at string, n named) bool {
	for prefix, values := range map[string]map[string][]string{"": n.values, "not_": n.not} {
		here := at + "." + prefix + n.name
		if values != nil && len(values) == 0 {
			c.fail(here, "empty: leave it out, or name something")
		}
		if len(values) > maxEntries {
			c.fail(here, "more than %d", maxEntries)
			continue
		}
		for name, list := range values {
			if err := n.checkName(name); err != nil {
				c.fail(here+"."+name, "%q: %v", name, err)
			}
			c.list(here+"."+name, list, n.check)
		}
	}
	return n.values != nil || n.not != nil
}

func (c *checker) list(at string, values []string, check func(string) error) {
	switch {
	case values == nil:
		return
	case len(values) == 0:
		c.fail(at, "an empty list matches nothing: leave it out, or name something")
	case len(values) > maxValues:
		c.fail(at, "more than %d values", maxValues)
		return
	}
	seen := make(map[string]bool, len(values))
	for i, v := range values {
		here := fmt.Sprintf("%s[%d]", at, i)
		if err := check(v); err != nil {
			c.fail(here, "%.200q: %v", v, err)
		} else if seen[v] {
			c.fail(here, "%.200q is there twice", v)
		}
		seen[v] = true
	}
}

// operators of a condition, by the kind of its field.
var operators = map[fieldKind][]string{
	textField:    {"in", "not_in", "prefix", "not_prefix", "suffix", "not_suffix", "glob", "not_glob"},
	wordField:    {"in", "not_in"},
	addressField: {"in", "not_in", "cidr", "not_cidr"},
	numberField:  {"in", "not_in", "min", "max"},
	setField:     {"in", "not_in", "prefix", "not_prefix", "suffix", "not_suffix", "glob", "not_glob", "exists"},
}

func (c *checker) condition(at string, w *condition) {
	kinds := 0
	for _, given := range []bool{w.Field != "", w.Time != nil, w.Window != nil} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		c.fail(at, "want one of field, time and window")
		return
	}
	switch {
	case w.Time != nil:
		c.timeRange(at+".time", w.Time)
	case w.Window != nil:
		c.window(at+".window", w.Window)
	}
	if w.Field == "" {
		if given := w.operators(); len(given) > 0 {
			c.fail(at+"."+given[0], "is for a field")
		}
		return
	}
	field, name, info, ok := lookUp(w.Field)
	if !ok {
		c.fail(at+".field", "%.200q is no field%s", w.Field, nearmiss.Hint(w.Field, fieldNames()))
		return
	}
	checkField := checkFilled
	if field == "request.headers" {
		checkField = checkHeaderName
	}
	if err := checkField(name); info.kind == setField && err != nil {
		c.fail(at+".field", "%q: %v", name, err)
	}
	given := w.operators()
	if len(given) == 0 {
		c.fail(at, "want what the field is held to: %v", operators[info.kind])
	}
	for _, op := range given {
		if !slices.Contains(operators[info.kind], op) {
			c.fail(at+"."+op, "does not go with %s; these do: %v", w.Field, operators[info.kind])
		}
	}
	check := map[fieldKind]func(string) error{textField: checkText, setField: checkText, addressField: checkText,
		wordField: checkWord(info.words), numberField: checkWhole}[info.kind]
	c.list(at+".in", w.In, check)
	c.list(at+".not_in", w.NotIn, check)
	for op, list := range map[string][]string{"prefix": w.Prefix, "not_prefix": w.NotPrefix, "suffix": w.Suffix, "not_suffix": w.NotSuffix,
		"glob": w.Glob, "not_glob": w.NotGlob} {
		c.list(at+"."+op, list, checkFilled)
	}
	c.list(at+".cidr", w.CIDR, checkCIDR)
	c.list(at+".not_cidr", w.NotCIDR, checkCIDR)
	if w.Min != nil && w.Max != nil && *w.Min > *w.Max {
		c.fail(at+".max", "is less than min")
	}
}

// operators are the names of those that are given.
func (w *condition) operators() []string {
	var names []string
	for _, op := range []struct {
		name  string
		given bool
	}{
		{"in", w.In != nil}, {"not_in", w.NotIn != nil}, {"prefix", w.Prefix != nil}, {"not_prefix", w.NotPrefix != nil},
		{"suffix", w.Suffix != nil}, {"not_suffix", w.NotSuffix != nil}, {"glob", w.Glob != nil}, {"not_glob", w.NotGlob != nil},
		{"cidr", w.CIDR != nil}, {"not_cidr", w.NotCIDR != nil}, {"min", w.Min != nil}, {"max", w.Max != nil}, {"exists", w.Exists != nil},
	} {
		if op.given {
			names = append(names, op.name)
		}
	}
	return names
}

func (c *checker) timeRange(at string, t *timeRange) {
	if t.After.IsZero() && t.Before.IsZero() {
		c.fail(at, "want after, before, or both")
	}
	if !t.After.IsZero() && !t.Before.IsZero() && !t.After.Before(t.Before) {
		c.fail(at+".before", "is not later than after")
	}
	if err := checkTime(t.After); err != nil {
		c.fail(at+".after", "%v", err)
	}
	if err := checkTime(t.Before); err != nil {
		c.fail(at+".before", "%v", err)
	}
}

func (c *checker) window(at string, w *window) {
	c.list(at+".days", w.Days, func(string) error { return nil })
	from, err := parseClock(w.From)
	if err != nil {
		c.fail(at+".from", "%v", err)
	}
	to, err2 := parseClock(w.To)
	if err2 != nil {
		c.fail(at+".to", "%v", err2)
	}
	if err == nil && err2 == nil && from >= to {
		c.fail(at+".to", "is not later than from: a window ends on the day on which it begins; over midnight, write two rules")
	}
	if _, err := parseZone(w.Zone); err != nil {
		c.fail(at+".zone", "%v", err)
	}
}
