// Package owners says which publisher may write what of a policy.
//
// Each publisher has keys and grants: packages, data and the services for which
// it may write YAML rules. Grants of two publishers never overlap, so that
// everything has at most one owner. What is in force is the union of what the
// publishers pushed; a push replaces the part of its publisher and nothing
// else.
package owners

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy/bundle"
)

// Names of publishers that no configuration lists: Default has the keys that
// may sign everything, Unsigned is whoever pushes without a signature where
// that is admitted.
const (
	Default  = "default"
	Unsigned = "unsigned"
)

// Everything, among Publisher.Packages, grants all there is.
const Everything = "*"

// Publisher is somebody who may push policy.
type Publisher struct {
	Name string
	// Keys sign what it pushes.
	Keys bundle.Keys
	// Packages as in services.orders, guardrails.internal or shop, with all
	// below them. Only what is listed: guardrails go to nobody by themselves.
	Packages []string
	// Data as in shop.prices, writ.services.orders, writ.break_glass or
	// writ.outside, with all below it.
	Data []string
	// Rules are services for which it may write YAML rules, beside those of
	// its packages.
	Rules []string
}

// Set is who may write what. It is immutable.
type Set struct{ owners []*Owner }

// Owner is a publisher of a Set.
type Owner struct {
	name       string
	keys       bundle.Keys
	everything bool
	packages   []area
	data       []area
	rules      []string
	set        *Set
}

// area is a path below data with everything under it.
type area []string

func (a area) String() string { return strings.Join(a, ".") }

// holds reports whether at is a or below it.
func (a area) holds(at []string) bool { return len(a) <= len(at) && slices.Equal(a, at[:len(a)]) }

// At makes an error at a key of the configuration.
type At func(key, format string, args ...any) error

// New makes a Set, and finds what cannot be: names and keys that are there
// twice, grants that nobody can have, and grants that overlap. at may be nil.
func New(publishers []Publisher, at At) (*Set, error) {
	if at == nil {
		at = func(key, format string, args ...any) error { return fmt.Errorf(key+": "+format, args...) }
	}
	s := &Set{}
	var errs []error
	for i, p := range publishers {
		key := func(name string) string { return fmt.Sprintf("publishers[%d].%s", i, name) }
		o := &Owner{name: p.Name, keys: p.Keys, set: s}
		bad := func(name, format string, args ...any) { errs = append(errs, at(key(name), format, args...)) }
		o.grant(p, bad)
		for _, other := range s.owners {
			s.apart(other, o, bad)
		}
		s.owners = append(s.owners, o)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// One is the Set in which name has keys and owns everything.
func One(name string, keys bundle.Keys) *Set {
	s := &Set{}
	s.owners = []*Owner{{name: name, keys: keys, everything: true, set: s}}
	return s
}

func (o *Owner) grant(p Publisher, bad func(name, format string, args ...any)) {
	switch {
	case p.Name == "" || strings.ContainsFunc(p.Name, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		bad("name", "want a name without spaces, got %q", p.Name)
	case p.Name == Default || p.Name == Unsigned:
		bad("name", "%q is taken: choose another", p.Name)
	}
	for _, text := range p.Packages {
		if text == Everything {
			o.everything = true
			continue
		}
		a, err := packageArea(text)
		if err != nil {
			bad("packages", "%v", err)
			continue
		}
		o.packages = append(o.packages, a)
	}
	for _, text := range p.Data {
		a, err := dataArea(text)
		if err != nil {
			bad("data", "%v", err)
			continue
		}
		o.data = append(o.data, a)
	}
	o.rules = p.Rules
	if slices.Contains(p.Rules, "") {
		bad("rules", "want names of services")
	}
	if !o.everything && len(o.packages)+len(o.data)+len(o.rules) == 0 {
		bad("packages", "missing: publisher %q may write nothing", p.Name)
	}
}

// split cuts a dotted name. The name of a service or a guardrail is one part,
// dots included.
func split(text string) (area, error) {
	first, rest, more := strings.Cut(text, ".")
	if more && (first == "services" || first == "guardrails") {
		if rest == "" {
			return nil, fmt.Errorf("%q: a name is missing at the end", text)
		}
		return area{first, rest}, nil
	}
	a := area(strings.Split(text, "."))
	if slices.Contains(a, "") {
		return nil, fmt.Errorf("%q: want names with dots between them", text)
	}
	return a, nil
}

func packageArea(text string) (area, error) {
	a, err := split(text)
	if err == nil && (a[0] == "writ" || a[0] == "system") {
		err = fmt.Errorf("package %q is nobody's", a[0])
	}
	return a, err
}

func dataArea(text string) (area, error) {
	if kind, rest, ok := strings.Cut(strings.TrimPrefix(text, "writ."), "."); ok && strings.HasPrefix(text, "writ.") && rest != "" &&
		(kind == "services" || kind == "break_glass") {
		return area{"writ", kind, rest}, nil
	}
	a, err := split(text)
	if err != nil {
		return nil, err
	}
	switch a[0] {
	case "services", "guardrails":
		return nil, fmt.Errorf("%q is made of rules, not of data: grant it under packages", text)
	case "system":
		return nil, fmt.Errorf("data %q is nobody's", text)
	case "writ":
		if len(a) != 2 || a[1] != "services" && a[1] != "break_glass" && a[1] != "outside" {
			return nil, fmt.Errorf("%q: of data.writ, services (or writ.services.<name>), break_glass and outside can be granted", text)
		}
	}
	return a, nil
}

// apart finds what a and b both could write. Packages and data share one tree,
// so that a rule of one could stand in the place of the other's data.
func (s *Set) apart(a, b *Owner, bad func(name, format string, args ...any)) {
	if strings.EqualFold(a.name, b.name) {
		bad("name", "%q is there twice", b.name)
	}
	for _, id := range slices.Sorted(maps.Keys(b.keys)) {
		if a.keys[id] != nil {
			bad("keys", "key %s is publisher %q's as well: a key tells who signed", id, a.name)
		}
	}
	if a.everything || b.everything {
		all := a.name
		if b.everything {
			all = b.name
		}
		bad("packages", "publisher %q owns everything, so there is nothing left for another", all)
		return
	}
	for name, areas := range map[string][]area{"packages": b.packages, "data": b.data} {
		for _, mine := range areas {
			for _, theirs := range slices.Concat(a.packages, a.data) {
				if mine.holds(theirs) || theirs.holds(mine) {
					bad(name, "%s overlaps with %s of publisher %q: everything has one owner", mine, theirs, a.name)
				}
			}
		}
	}
	for _, service := range b.rules {
		if a.mayRule(service) {
			bad("rules", "service %q is publisher %q's as well", service, a.name)
		}
	}
	for _, service := range a.rules {
		if !slices.Contains(b.rules, service) && b.mayRule(service) {
			bad("packages", "publisher %q may write the rules of service %q as well", a.name, service)
		}
	}
}

// mayRule reports whether o may write YAML rules for the service.
func (o *Owner) mayRule(service string) bool {
	return o.everything || slices.Contains(o.rules, service) || o.mayPackage([]string{"services", service})
}

func (o *Owner) mayPackage(at []string) bool {
	return o.everything || slices.ContainsFunc(o.packages, func(a area) bool { return a.holds(at) })
}

func (o *Owner) mayData(at []string) bool {
	return o.everything || slices.ContainsFunc(o.data, func(a area) bool { return a.holds(at) })
}

// Name of the publisher.
func (o *Owner) Name() string { return o.name }

// Everything reports whether o owns all there is.
func (o *Owner) Everything() bool { return o.everything }

// Keys are the keys of all publishers.
func (s *Set) Keys() bundle.Keys {
	keys := bundle.Keys{}
	for _, o := range s.owners {
		maps.Copy(keys, o.keys)
	}
	return keys
}

// ByKey is the publisher that has the key, nil for none.
func (s *Set) ByKey(id string) *Owner {
	return s.find(func(o *Owner) bool { return o.keys[id] != nil })
}

// ByName is nil for a publisher that is not in the set.
func (s *Set) ByName(name string) *Owner {
	return s.find(func(o *Owner) bool { return o.name == name })
}

func (s *Set) find(is func(*Owner) bool) *Owner {
	if i := slices.IndexFunc(s.owners, is); i >= 0 {
		return s.owners[i]
	}
	return nil
}

// hint says who has what o has not.
func (o *Owner) hint(may func(*Owner) bool) string {
	if other := o.set.find(may); other != nil && other != o {
		return fmt.Sprintf("; publisher %q has it", other.name)
	}
	return ""
}
