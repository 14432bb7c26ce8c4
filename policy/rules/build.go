package rules

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/writ-dev/writ/policy"
)

// Build puts files together for the services of a catalogue, given with the
// trust domains of their SPIFFE IDs. Rules for other services are left out: of
// a file for several services, a slice needs its own.
func Build(files []*File, catalogue map[string][]string) (*Set, []policy.Problem) {
	s := &setBuilder{set: &Set{Files: files, Services: map[string][]Rule{}}, seen: map[[2]string]Rule{}}
	all := map[string]bool{}
	for _, domains := range catalogue {
		for _, td := range domains {
			all[td] = true
		}
	}
	for _, f := range files {
		if len(f.Services) == 0 {
			s.add(f, "", f.written.Guardrails, "guardrails", slices.Sorted(maps.Keys(all)))
		}
		for _, service := range f.Services {
			if domains, ok := catalogue[service]; ok {
				s.add(f, service, f.written.Rules, "rules", sorted(domains))
			}
		}
	}
	if len(s.problems) > 0 {
		return nil, s.problems
	}
	return s.set, nil
}

type setBuilder struct {
	set      *Set
	seen     map[[2]string]Rule // by service and id
	count    int
	problems []policy.Problem
}

func (s *setBuilder) fail(f *File, key, code, format string, args ...any) {
	if len(s.problems) < maxProblems {
		s.problems = append(s.problems, problem(f.at.Errorf(key, format, args...), code))
	}
}

// add takes the rules of a file for one service, or for all if it is empty.
func (s *setBuilder) add(f *File, service string, list []rule, key string, domains []string) {
	if s.count += len(list); s.count > MaxRules {
		if s.count-len(list) <= MaxRules { // Once is enough.
			s.fail(f, key, policy.ProblemLimit, "more than %d rules in all, each counted for each of its services", MaxRules)
		}
		return
	}
	for i := range list {
		r, at := &list[i], fmt.Sprintf("%s[%d]", key, i)
		if slices.ContainsFunc(r.From, func(s source) bool { return s.usesShorthand() }) && len(domains) > 1 {
			s.fail(f, at+".from", policy.ProblemType, "namespaces, service_accounts and names are those of the service's trust domain, and %s: use spiffe_ids",
				ambiguous(service, domains))
			continue
		}
		built := r.build(f, service, domains)
		where := place(f.at, at)
		built.File, built.Line, built.Column = f.Path, where.Line, where.Column
		if before, ok := s.seen[[2]string{service, r.ID}]; ok {
			s.fail(f, at+".id", policy.ProblemType, "%q is the id of another rule of %s, in %s:%d", r.ID, orAll(service), before.File, before.Line)
			continue
		}
		s.seen[[2]string{service, r.ID}] = built
		if service == "" {
			s.set.Guardrails = append(s.set.Guardrails, built)
		} else {
			s.set.Services[service] = append(s.set.Services[service], built)
		}
	}
}

func ambiguous(service string, domains []string) string {
	if service == "" {
		return fmt.Sprintf("services are in %d (%s, %s, …)", len(domains), domains[0], domains[1])
	}
	return fmt.Sprintf("%s is in %d (%s, %s, …)", service, len(domains), domains[0], domains[1])
}

func orAll(service string) string {
	if service == "" {
		return "all services"
	}
	return "service " + service
}

func (r *rule) tier(service string) policy.Tier {
	switch {
	case service == "" && r.Overridable:
		return policy.OverridableGuardrail
	case service == "":
		return policy.Guardrail
	case r.Action == "allow":
		return policy.ServiceAllow
	}
	return policy.ServiceDeny
}

func (r *rule) build(f *File, service string, domains []string) Rule {
	b := builder{tier: r.tier(service)}
	if len(domains) == 1 {
		b.own = domains[0]
	}
	out := Rule{ID: r.ID, Tier: b.tier, Owner: r.Owner, Ticket: r.Ticket, Description: r.Description, Expires: r.Expires}
	if out.Owner == "" {
		out.Owner = f.written.Owner
	}
	for i := range r.From {
		out.From = append(out.From, b.source(&r.From[i]))
	}
	for i := range r.To {
		out.To = append(out.To, b.operation(&r.To[i]))
	}
	if out.To == nil {
		out.To = [][]Condition{{}}
	}
	out.When = b.when(r.When)
	return out
}

func (b builder) source(s *source) []Condition {
	var list, token []Condition
	for _, k := range s.keys() {
		list = append(list, b.key(k)...)
	}
	none := func(c []Condition) { // No token meets it.
		for i := range c {
			c[i].Not = false
		}
		list = append(list, Condition{Field: FieldToken, Op: OpToken, Not: true, Token: c})
	}
	for _, k := range s.tokenKeys() {
		if k.values != nil {
			token = append(token, k.conditions(b, k.values, false)...)
		}
		if k.not != nil {
			none(k.conditions(b, k.not, false))
		}
	}
	for _, n := range s.named() {
		token = append(token, n.conditions(false)...)
		for _, c := range n.conditions(true) {
			none([]Condition{c})
		}
	}
	if len(token) > 0 {
		list = append(list, Condition{Field: FieldToken, Op: OpToken, Token: token})
	}
	return list
}

func (b builder) operation(o *operation) []Condition {
	var list []Condition
	request, grpc := false, false
	for _, k := range o.keys() {
		list = append(list, b.key(k)...)
		given := k.values != nil || k.not != nil
		request, grpc = request || given && k.request, grpc || given && k.grpc
	}
	for _, n := range o.named() {
		list = append(list, append(n.conditions(false), n.conditions(true)...)...)
		request = request || n.request && (n.values != nil || n.not != nil)
	}
	return b.within(request, grpc, list)
}

func (b builder) key(k key) []Condition {
	var list []Condition
	if k.values != nil {
		list = k.conditions(b, k.values, false)
	}
	if k.not != nil {
		list = append(list, k.conditions(b, k.not, true)...)
	}
	return list
}

// within adds what conditions on a request imply: that there is one. A rule
// that allows all but some gRPC methods allows nothing that is not gRPC; one
// that denies all but some denies that, too.
func (b builder) within(request, grpc bool, list []Condition) []Condition {
	var first []Condition
	if request {
		first = append(first, Condition{Field: "layer", Op: OpIn, Texts: []string{policy.LayerRequest}})
	}
	if grpc && b.allows() {
		first = append(first, Condition{Field: "request.protocol", Op: OpIn, Texts: []string{policy.GRPC}})
	}
	return append(first, list...)
}

func (b builder) when(conditions []condition) []Condition {
	var list []Condition
	request, grpc := false, false
	for i := range conditions {
		w := &conditions[i]
		switch {
		case w.Time != nil:
			list = append(list, w.Time.condition())
		case w.Window != nil:
			list = append(list, w.Window.condition())
		default:
			field, name, info, _ := lookUp(w.Field)
			request, grpc = request || info.request, grpc || info.grpc
			for _, c := range b.field(field, info, w) {
				c.Name = name
				list = append(list, c)
			}
		}
	}
	return b.within(request, grpc, list)
}

func (b builder) field(field string, info fieldInfo, w *condition) []Condition {
	if info.kind == numberField {
		return b.number(field, w)
	}
	var list []Condition
	add := func(values, not []string, conditions func(builder, []string, bool) []Condition) {
		list = append(list, b.key(key{values: values, not: not, conditions: conditions})...)
	}
	operator := func(op string) func([]string) (string, []string) {
		return func(values []string) (string, []string) { return op, sorted(values) }
	}
	add(w.In, w.NotIn, texts(field, exact))
	add(w.Prefix, w.NotPrefix, texts(field, operator(OpPrefix)))
	add(w.Suffix, w.NotSuffix, texts(field, operator(OpSuffix)))
	add(w.Glob, w.NotGlob, texts(field, matchTexts))
	add(w.CIDR, w.NotCIDR, addresses(field))
	if w.Exists != nil {
		list = append(list, Condition{Field: field, Op: OpExists, Not: !*w.Exists})
	}
	return list
}

// number compares a number. The length of a body is -1 when it is not known
// before it ends: by min and max alone, such a request is not allowed, and is
// denied.
func (b builder) number(field string, w *condition) []Condition {
	var list []Condition
	values := func(texts []string, not bool) {
		var ranges []Range
		for _, text := range texts {
			n, err := strconv.ParseInt(text, 10, 64)
			if err == nil { // It was checked.
				ranges = append(ranges, Range{n, n})
			}
		}
		list = append(list, Condition{Field: field, Op: OpRange, Not: not, Ranges: merged(ranges)})
	}
	if w.In != nil {
		values(w.In, false)
	}
	if w.NotIn != nil {
		values(w.NotIn, true)
	}
	if w.Min == nil && w.Max == nil {
		return list
	}
	r := Range{0, math.MaxInt64}
	if w.Min != nil {
		r.Low = max(*w.Min, 0) // No field is negative, that case aside.
	}
	if w.Max != nil {
		r.High = *w.Max
	}
	var ranges []Range
	if r.Low <= r.High {
		ranges = []Range{r}
	}
	if field == fieldContentLength && !b.allows() {
		ranges = append(ranges, Range{-1, -1})
	}
	return append(list, Condition{Field: field, Op: OpRange, Ranges: merged(ranges)})
}

func (t *timeRange) condition() Condition {
	r := Range{0, math.MaxInt64}
	if !t.After.IsZero() {
		r.Low = t.After.UnixNano()
	}
	if !t.Before.IsZero() {
		r.High = t.Before.UnixNano() - 1
	}
	return Condition{Field: FieldTime, Op: OpRange, Ranges: []Range{r}}
}

var dayNames = map[string]time.Weekday{"sun": time.Sunday, "mon": time.Monday, "tue": time.Tuesday, "wed": time.Wednesday,
	"thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday}

func (w *window) condition() Condition {
	out := &Window{}
	out.From, _ = parseClock(w.From)
	out.To, _ = parseClock(w.To)
	out.Offset, _ = parseZone(w.Zone)
	for name, day := range dayNames {
		if w.Days == nil || slices.Contains(w.Days, name) {
			out.Days = append(out.Days, day.String())
		}
	}
	slices.Sort(out.Days)
	return Condition{Field: FieldTime, Op: OpWindow, Window: out}
}
