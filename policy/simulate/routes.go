package simulate

import (
	"net/url"
	"strings"
)

const (
	// maxDepth is how many segments of a path tell routes apart.
	maxDepth = 10
	// maxSiblings is how many different segments stand in one place before it
	// is taken for a variable.
	maxSiblings = 12
	// longSegment is a variable by its length alone.
	longSegment = 40
)

// routes generalises paths. A segment that looks like an identifier is a
// variable at once, and so is every segment in a place that has seen too many
// different ones: what was counted there is put together.
type routes struct {
	root node
	// n is the number of groups.
	n int
}

type node struct {
	children map[string]*node
	// variable is the child of every segment that varies; once there were too
	// many children it is the only one.
	variable *node
	full     bool
	// rest is the group of what goes deeper than maxDepth.
	rest  *Group
	group *Group
}

// find returns the group of a path, which it makes where there is room; with
// literal, no segment is taken for an identifier.
func (r *routes) find(segments []string, literal, room bool) *Group {
	n := &r.root
	for depth, segment := range segments {
		if depth == maxDepth {
			return r.leaf(&n.rest, room)
		}
		next := n.next(segment, literal)
		if next == nil {
			if !room {
				return nil
			}
			next = r.grow(n, segment, literal)
		}
		n = next
	}
	return r.leaf(&n.group, room)
}

func (r *routes) leaf(at **Group, room bool) *Group {
	if *at == nil && room {
		*at = new(Group)
		r.n++
	}
	return *at
}

// next is the child for a segment, nil when there is none yet.
func (n *node) next(segment string, literal bool) *node {
	if n.full || !literal && varies(segment) {
		return n.variable
	}
	return n.children[segment]
}

func (r *routes) grow(n *node, segment string, literal bool) *node {
	if !n.full && len(n.children) == maxSiblings && !(!literal && varies(segment)) {
		n.full = true
		if n.variable == nil {
			n.variable = new(node)
		}
		for _, child := range n.children {
			r.merge(n.variable, child)
		}
		n.children = nil
		return n.variable
	}
	child := new(node)
	segment = strings.Clone(segment)
	switch {
	case n.full || !literal && varies(segment):
		n.variable = child
	case n.children == nil:
		n.children = map[string]*node{segment: child}
	default:
		n.children[segment] = child
	}
	return child
}

// merge puts what is below from below into.
func (r *routes) merge(into, from *node) {
	r.join(&into.group, from.group)
	r.join(&into.rest, from.rest)
	if from.variable != nil {
		if into.variable == nil {
			into.variable = new(node)
		}
		r.merge(into.variable, from.variable)
	}
	into.full = into.full || from.full
	for segment, child := range from.children {
		if into.children == nil {
			into.children = map[string]*node{}
		}
		if into.children[segment] == nil {
			into.children[segment] = new(node)
		}
		r.merge(into.children[segment], child)
	}
	if !into.full && len(into.children) <= maxSiblings {
		return
	}
	into.full = true
	if into.variable == nil {
		into.variable = new(node)
	}
	children := into.children
	into.children = nil
	for _, child := range children {
		r.merge(into.variable, child)
	}
}

func (r *routes) join(into **Group, from *Group) {
	switch {
	case from == nil:
	case *into == nil:
		*into = from
	default:
		(*into).merge(from)
		r.n--
	}
}

// each calls f for every group, in no stated order.
func (r *routes) each(f func(route string, g *Group)) { r.root.each("", f) }

func (n *node) each(prefix string, f func(string, *Group)) {
	if n.group != nil {
		route := prefix
		if route == "" {
			route = "/"
		}
		f(route, n.group)
	}
	if n.rest != nil {
		f(prefix+"/{**}", n.rest)
	}
	if n.variable != nil {
		n.variable.each(prefix+"/{*}", f)
	}
	for segment, child := range n.children {
		// Braces are escaped, so that no segment looks like a variable.
		child.each(prefix+"/"+url.PathEscape(segment), f)
	}
}

// varies reports whether a segment looks like an identifier: a number, a UUID,
// a long hexadecimal or mixed text.
func varies(s string) bool {
	if len(s) > longSegment {
		return true
	}
	digits, hex, other := 0, 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			hex++
		case c == '-' || c == '_' || c == ':':
		default:
			other++
		}
	}
	switch {
	case digits == 0:
		return false
	case hex+other == 0:
		return true // A number, a date.
	case other == 0:
		return len(s) >= 8
	}
	// v1 and oauth2 are words; ord_8f3a9c2e1b is not.
	return digits >= 4 && !strings.Contains(s, ".")
}
