package rules

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy"
)

// key is one key of a source or an operation, with its not_ form: what its
// values may be, and what they mean.
type key struct {
	name        string
	values, not []string
	check       func(string) error
	// conditions is what the values, or none of the values, come to.
	conditions func(b builder, values []string, not bool) []Condition
	// request says that there is nothing to compare without a request, grpc that
	// there is nothing without gRPC.
	request, grpc bool
}

// named is a key whose values stand under names: headers, query parameters,
// claims.
type named struct {
	name        string
	values, not map[string][]string
	checkName   func(string) error
	check       func(string) error
	field       string
	match       func([]string) (string, []string)
	request     bool
}

// builder knows what conditions depend on beside their values.
type builder struct {
	tier policy.Tier
	// own is the trust domain that shorthands stand for. Empty where a slice
	// holds no service: nothing is in it then.
	own string
}

func (b builder) allows() bool { return b.tier == policy.ServiceAllow }

// texts makes conditions of a text field from values that match takes.
func texts(field string, match func([]string) (string, []string)) func(builder, []string, bool) []Condition {
	return func(_ builder, values []string, not bool) []Condition {
		op, list := match(values)
		return []Condition{{Field: field, Op: op, Not: not, Texts: list}}
	}
}

func exact(values []string) (string, []string) { return OpIn, sorted(values) }

// short makes conditions from values that are short for SPIFFE IDs in the
// service's own trust domain.
func short(id func(value string) string) func(builder, []string, bool) []Condition {
	return func(b builder, values []string, not bool) []Condition {
		if b.own == "" {
			return []Condition{{Field: "source.id", Op: OpIn, Not: not, Texts: []string{}}}
		}
		op, list := matchIDs(mapTexts(values, func(v string) string { return spiffeScheme + b.own + id(v) }))
		return []Condition{{Field: "source.id", Op: op, Not: not, Texts: list}}
	}
}

// addresses compares an address. A text that is not one must neither be
// granted anything nor slip through a deny, so that the four cases differ:
// a rule that allows wants an address, in the networks or outside of them; one
// that denies holds unless there is an address that shows otherwise. Only where
// no address is known at all, a deny of some networks does not hold: it would
// deny everything that does not come through a proxy.
func addresses(field string) func(builder, []string, bool) []Condition {
	return func(b builder, values []string, not bool) []Condition {
		list := sorted(values)
		switch {
		case b.allows() && !not:
			return []Condition{{Field: field, Op: OpCIDR, Texts: list}}
		case b.allows():
			return []Condition{{Field: field, Op: OpOutside, Texts: list}}
		case !not:
			return []Condition{
				{Field: field, Op: OpIn, Not: true, Texts: []string{""}},
				{Field: field, Op: OpOutside, Not: true, Texts: list},
			}
		}
		return []Condition{{Field: field, Op: OpCIDR, Not: true, Texts: list}}
	}
}

func paths(_ builder, values []string, not bool) []Condition {
	c := Condition{Field: "request.segments", Op: OpPath, Not: not}
	for _, text := range sorted(values) {
		p, err := parsePath(text)
		if err == nil { // It was checked.
			c.Paths = append(c.Paths, p)
		}
	}
	return []Condition{c}
}

func hosts(_ builder, values []string, not bool) []Condition {
	op, list := matchTexts(mapTexts(values, strings.ToLower))
	return []Condition{{Field: FieldHost, Op: op, Not: not, Texts: list}}
}

func ports(_ builder, values []string, not bool) []Condition {
	c := Condition{Field: "destination.port", Op: OpRange, Not: not}
	for _, text := range values {
		r, err := parsePorts(text)
		if err == nil { // It was checked.
			c.Ranges = append(c.Ranges, r)
		}
	}
	c.Ranges = merged(c.Ranges)
	return []Condition{c}
}

// merged is the ranges in order, with what overlaps or touches put together.
func merged(list []Range) []Range {
	list = slices.SortedFunc(slices.Values(list), func(a, b Range) int { return cmp.Compare(a.Low, b.Low) })
	var out []Range
	for _, r := range list {
		if n := len(out); n > 0 && r.Low-1 <= out[n-1].High {
			out[n-1].High = max(out[n-1].High, r.High)
			continue
		}
		out = append(out, r)
	}
	return out
}

func (s *source) keys() []key {
	return []key{
		{name: "spiffe_ids", values: s.SPIFFEIDs, not: s.NotSPIFFEIDs, check: checkSPIFFEID, conditions: texts("source.id", matchIDs)},
		{name: "trust_domains", values: s.TrustDomains, not: s.NotTrustDomains, check: checkTrustDomain, conditions: texts("source.trust_domain", exact)},
		{name: "namespaces", values: s.Namespaces, not: s.NotNamespaces, check: checkName,
			conditions: short(func(v string) string { return "/ns/" + v + "/**" })},
		{name: "service_accounts", values: s.ServiceAccounts, not: s.NotServiceAccounts, check: checkServiceAccount,
			conditions: short(func(v string) string { return "/ns/" + strings.Replace(v, "/", "/sa/", 1) })},
		{name: "names", values: s.Names, not: s.NotNames, check: checkName,
			conditions: short(func(v string) string { return "/svc/" + v })},
		{name: "cidrs", values: s.CIDRs, not: s.NotCIDRs, check: checkCIDR, conditions: addresses("connection.peer_ip")},
		{name: "client_cidrs", values: s.ClientCIDRs, not: s.NotClientCIDRs, check: checkCIDR, conditions: addresses("connection.client_ip")},
	}
}

// tokenKeys are about one token: what is asked of it has to be met by the same.
func (s *source) tokenKeys() []key {
	return []key{
		{name: "token_issuers", values: s.TokenIssuers, not: s.NotTokenIssuers, check: checkFilled, conditions: texts(FieldTokenIssuer, exact)},
		{name: "token_subjects", values: s.TokenSubjects, not: s.NotTokenSubjects, check: checkFilled, conditions: texts(FieldTokenSubject, exact)},
	}
}

func (s *source) named() []named {
	return []named{{name: "claims", values: s.Claims, not: s.NotClaims, checkName: checkFilled, check: checkFilled, field: FieldTokenClaim, match: exact}}
}

// usesShorthand reports whether the source means the service's own trust
// domain somewhere.
func (s *source) usesShorthand() bool {
	return s.Namespaces != nil || s.NotNamespaces != nil || s.ServiceAccounts != nil || s.NotServiceAccounts != nil ||
		s.Names != nil || s.NotNames != nil
}

func (o *operation) keys() []key {
	return []key{
		{name: "methods", values: o.Methods, not: o.NotMethods, check: checkMethod, conditions: texts("request.method", exact), request: true},
		{name: "paths", values: o.Paths, not: o.NotPaths, check: checkPath, conditions: paths, request: true},
		{name: "hosts", values: o.Hosts, not: o.NotHosts, check: checkHost, conditions: hosts, request: true},
		{name: "grpc_services", values: o.GRPCServices, not: o.NotGRPCServices, check: checkGRPCService,
			conditions: texts("request.grpc.service", matchTexts), request: true, grpc: true},
		{name: "grpc_methods", values: o.GRPCMethods, not: o.NotGRPCMethods, check: checkGRPCMethod,
			conditions: texts("request.grpc.method", matchTexts), request: true, grpc: true},
		{name: "ports", values: o.Ports, not: o.NotPorts, check: checkPort, conditions: ports},
	}
}

func (o *operation) named() []named {
	return []named{
		{name: "headers", values: o.Headers, not: o.NotHeaders, checkName: checkHeaderName, check: checkText, field: "request.headers", match: matchTexts, request: true},
		{name: "query", values: o.Query, not: o.NotQuery, checkName: checkFilled, check: checkText, field: "request.query", match: matchTexts, request: true},
	}
}

// conditions of a named key, names in order.
func (n named) conditions(not bool) []Condition {
	values := n.values
	if not {
		values = n.not
	}
	var list []Condition
	for _, name := range slices.Sorted(maps.Keys(values)) {
		op, operands := n.match(values[name])
		list = append(list, Condition{Field: n.field, Name: name, Op: op, Not: not, Texts: operands})
	}
	return list
}
