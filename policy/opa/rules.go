package opa

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/rules"
)

// ruleKey names the rules of one tier: of one service, or of all guardrails.
type ruleKey struct {
	tier    policy.Tier
	service string
}

// ruleIndex finds the source of a rule id.
type ruleIndex map[ruleKey]*tierRules

type tierRules struct {
	byID map[string]policy.Rule
	// computed is where an id that is not literal comes from, if one rule
	// only can have made it.
	computed policy.Rule
	many     bool
}

func indexRules(p *Program) ruleIndex {
	index := ruleIndex{}
	for _, path := range slices.Sorted(maps.Keys(p.parsed)) {
		m := p.parsed[path]
		for _, rule := range m.Rules {
			tier := tierOf(m.Package.Path, rule.Head.Ref()[0].Value.String())
			if tier == 0 || rule.Default {
				continue
			}
			key := ruleKey{tier, bundle.ServiceOf(m.Package.Path)}
			t := index[key]
			if t == nil {
				t = &tierRules{byID: map[string]policy.Rule{}}
				index[key] = t
			}
			id, literal := ruleID(rule)
			source := policy.Rule{ID: id, File: rule.Location.File, Line: rule.Location.Row}
			if _, seen := t.byID[id]; literal && !seen {
				t.byID[id] = source
			} else if !literal {
				t.many = t.computed.File != ""
				t.computed = source
			}
		}
	}
	index.addWritten("", p.written.Guardrails)
	for service, list := range p.written.Services {
		index.addWritten(service, list)
	}
	for _, b := range p.catalogue.BreakGlass {
		key := ruleKey{policy.BreakGlass, b.Service}
		if index[key] == nil {
			index[key] = &tierRules{byID: map[string]policy.Rule{}}
		}
		file, line, _ := p.content.Locate("writ", "break_glass", b.ID)
		index[key].byID[b.ID] = policy.Rule{ID: b.ID, File: file, Line: line}
	}
	return index
}

// addWritten adds YAML rules. Check refuses an id that a Rego rule has, too.
func (x ruleIndex) addWritten(service string, list []rules.Rule) {
	for _, r := range list {
		key := ruleKey{r.Tier, service}
		if x[key] == nil {
			x[key] = &tierRules{byID: map[string]policy.Rule{}}
		}
		if _, seen := x[key].byID[r.ID]; !seen {
			x[key].byID[r.ID] = policy.Rule{ID: r.ID, File: r.File, Line: r.Line}
		}
	}
}

func (x ruleIndex) find(tier policy.Tier, service, id string) policy.Rule {
	key := ruleKey{tier, service}
	if tier == policy.Guardrail || tier == policy.OverridableGuardrail {
		key.service = ""
	}
	t := x[key]
	if t == nil {
		return policy.Rule{ID: id}
	}
	if rule, ok := t.byID[id]; ok {
		return rule
	}
	if t.many {
		return policy.Rule{ID: id}
	}
	return policy.Rule{ID: id, File: t.computed.File, Line: t.computed.Line}
}

// hasPolicy reports whether anything is written for the service.
func (x ruleIndex) hasPolicy(service string) bool {
	return x[ruleKey{policy.ServiceAllow, service}] != nil || x[ruleKey{policy.ServiceDeny, service}] != nil
}

// idText is the id that a rule gave, as a text.
func idText(t *ast.Term) string {
	if s, ok := t.Value.(ast.String); ok {
		return string(s)
	}
	return t.String()
}
