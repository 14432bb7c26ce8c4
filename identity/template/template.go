// Package template gives names to workloads by a pattern in place of a
// registration entry for each. It is the arithmetic that issuer and agent share:
// what a pattern may be, and what it makes of a workload's selectors.
//
// A variable, {TYPE:KEY}, stands for what follows TYPE:KEY: in the one selector
// that begins so. {agent:TYPE:KEY} is the same of the selectors of the node's
// agent.
package template

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// MaxPattern is the longest pattern, in bytes.
	MaxPattern = 1024
	// MaxValue is the longest value of a variable, in bytes.
	MaxValue = 255
	// MaxID is the longest SPIFFE ID, in bytes (SPIFFE ID, section 2.3).
	MaxID = 2048
	// MaxVariables bounds the variables of a pattern.
	MaxVariables = 16
)

// ErrNoMatch: the template is not for these selectors.
var ErrNoMatch = errors.New("the template is not for these selectors")

// Reason is why a variable has no value that could be used.
type Reason string

// Reasons, as metrics have them.
const (
	Ambiguous Reason = "ambiguous" // more than one selector has the key
	Empty     Reason = "empty"
	Malformed Reason = "malformed" // it cannot be part of the name
	TooLong   Reason = "too_long"
	Missing   Reason = "missing" // the agent has no such selector
	// Taken: an entry has the name.
	Taken Reason = "taken"
)

// Reasons lists all of them.
func Reasons() []Reason { return []Reason{Ambiguous, Empty, Malformed, TooLong, Missing, Taken} }

// RefusedError says that a template gives no identity, where it would if not for
// the value of a variable.
type RefusedError struct {
	Reason   Reason
	Variable string // as in {k8s:ns}
	Detail   string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s is %s: %s", e.Variable, strings.ReplaceAll(string(e.Reason), "_", " "), e.Detail)
}

// Rule is what of a template decides who gets which name.
type Rule struct {
	SPIFFEID *Pattern
	DNSNames []*Pattern
	// Selectors that a workload must have, as TYPE:VALUE, sorted.
	Selectors []string
}

// Instance is what a Rule makes of a workload.
type Instance struct {
	ID       spiffeid.ID
	DNSNames []string
	// Selectors that it comes from: those that are required and one for each
	// variable, sorted, each once.
	Selectors []string
}

// Resolve makes the instance of a workload with these selectors. Its error is
// ErrNoMatch or a *RefusedError. Variables of the agent must have been filled in.
func (r *Rule) Resolve(selectors []string) (Instance, error) {
	for _, s := range r.Selectors {
		if !slices.Contains(selectors, s) {
			return Instance{}, ErrNoMatch
		}
	}
	from := slices.Clone(r.Selectors)
	path, err := r.SPIFFEID.resolve(selectors, &from)
	if err != nil {
		return Instance{}, err
	}
	if len(path) > MaxID {
		return Instance{}, &RefusedError{TooLong, r.SPIFFEID.text, fmt.Sprintf("the SPIFFE ID has %d bytes, at most %d are accepted", len(path), MaxID)}
	}
	id, err := spiffeid.FromString(path)
	if err != nil {
		return Instance{}, &RefusedError{Malformed, r.SPIFFEID.text, err.Error()}
	}
	in := Instance{ID: id}
	for _, p := range r.DNSNames {
		name, err := p.resolve(selectors, &from)
		if err != nil {
			return Instance{}, err
		}
		if err := checkDNSName(name); err != nil {
			return Instance{}, &RefusedError{Malformed, p.text, err.Error()}
		}
		in.DNSNames = append(in.DNSNames, name)
	}
	slices.Sort(from)
	in.Selectors = slices.Compact(from)
	return in, nil
}

// AsksFor tells whether a selector is required, or has a value for a variable of
// workloads.
func (r *Rule) AsksFor(selector string) bool {
	if slices.Contains(r.Selectors, selector) {
		return true
	}
	return slices.ContainsFunc(r.patterns(), func(p *Pattern) bool {
		return slices.ContainsFunc(p.parts, func(part part) bool { return part.variable != "" && !part.agent && part.of(selector) })
	})
}

// Kinds are the kinds of selectors that the rule asks for, as in unix:user.
func (r *Rule) Kinds() []string {
	var kinds []string
	add := func(s string) {
		if typ, rest, ok := strings.Cut(s, ":"); ok {
			kind, _, _ := strings.Cut(rest, ":")
			kinds = append(kinds, typ+":"+kind)
		}
	}
	for _, s := range r.Selectors {
		add(s)
	}
	for _, p := range r.patterns() {
		for _, v := range p.Variables() {
			if !v.Agent {
				add(v.Selector)
			}
		}
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// ForAgent fills in the variables of an agent that has these selectors. Its error
// is a *RefusedError.
func (r *Rule) ForAgent(selectors []string) (*Rule, error) {
	id, err := r.SPIFFEID.forAgent(selectors)
	if err != nil {
		return nil, err
	}
	out := &Rule{SPIFFEID: id, Selectors: r.Selectors}
	for _, p := range r.DNSNames {
		name, err := p.forAgent(selectors)
		if err != nil {
			return nil, err
		}
		out.DNSNames = append(out.DNSNames, name)
	}
	return out, nil
}

func (r *Rule) patterns() []*Pattern { return append([]*Pattern{r.SPIFFEID}, r.DNSNames...) }

// MaxSelectors is how many selectors an instance can come from.
func (r *Rule) MaxSelectors() int {
	n := len(r.Selectors)
	for _, p := range r.patterns() {
		n += len(p.Variables())
	}
	return n
}
