package opa

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
)

// reads is what modules can look at. It errs towards more: whatever is not a
// literal name is everything.
type reads struct {
	headers, query       map[string]bool
	allHeaders, allQuery bool
	tokens               bool
}

// readsOf looks at modules as they were written. A variable that stands for a
// part of the input comes from a reference to that part, which is seen.
func readsOf(modules map[string]*ast.Module) *reads {
	r := &reads{headers: map[string]bool{}, query: map[string]bool{}}
	for _, m := range modules {
		for _, imp := range m.Imports {
			if ref, ok := imp.Path.Value.(ast.Ref); ok {
				r.ref(ref)
			}
		}
		for _, rule := range m.Rules {
			ast.NewGenericVisitor(r.visit).Walk(rule)
		}
	}
	return r
}

func (r *reads) visit(x any) bool {
	switch x := x.(type) {
	case *ast.Expr:
		if terms, ok := x.Terms.([]*ast.Term); ok && len(x.With) == 0 {
			return r.objectGet(terms)
		}
	case ast.Call:
		return r.objectGet(x)
	case ast.Ref:
		r.ref(x)
		// The head is dealt with, and would look like input as a whole.
		for _, t := range x[1:] {
			ast.NewGenericVisitor(r.visit).Walk(t)
		}
		return true
	case ast.Var:
		if x.Equal(ast.InputRootDocument.Value) {
			r.all()
		}
	}
	return false
}

// objectGet recognizes object.get(input.request.headers, "name", default) and
// the form with a list, which are as good as a reference, and reports whether
// it dealt with all of it.
func (r *reads) objectGet(call []*ast.Term) bool {
	if len(call) != 4 || call[0].String() != ast.ObjectGet.Name {
		return false
	}
	object, ok := call[1].Value.(ast.Ref)
	if !ok || !object[0].Equal(ast.InputRootDocument) || !object.IsGround() {
		return false
	}
	key := call[2]
	if list, ok := key.Value.(*ast.Array); ok && list.Len() > 0 {
		key = list.Elem(0)
	}
	if _, literal := key.Value.(ast.String); !literal || !isConstant(call[2].Value) || !isConstant(call[3].Value) {
		return false
	}
	if !call[2].IsGround() || !call[3].IsGround() || hasRef(call[2]) || hasRef(call[3]) {
		return false
	}
	r.ref(object.Append(key))
	return true
}

func hasRef(t *ast.Term) bool {
	found := false
	ast.WalkRefs(t, func(ast.Ref) bool {
		found = true
		return true
	})
	return found
}

func (r *reads) all() {
	r.allHeaders, r.allQuery, r.tokens = true, true, true
}

func (r *reads) ref(ref ast.Ref) {
	if !ref[0].Equal(ast.InputRootDocument) {
		return
	}
	name := func(i int) string { // "" when not a literal or not there
		if i >= len(ref) {
			return ""
		}
		s, _ := ref[i].Value.(ast.String)
		return string(s)
	}
	switch name(1) {
	case "":
		r.all()
	case "tokens":
		r.tokens = true
	case "request":
		switch name(2) {
		case "":
			r.allHeaders, r.allQuery = true, true
		case "headers":
			if n := name(3); n != "" {
				r.headers[n] = true
			} else {
				r.allHeaders = true
			}
		case "query":
			if n := name(3); n != "" {
				r.query[n] = true
			} else {
				r.allQuery = true
			}
		}
	}
}

func (r *reads) contract() policy.Reads {
	return policy.Reads{
		Headers:    slices.Sorted(maps.Keys(r.headers)),
		Query:      slices.Sorted(maps.Keys(r.query)),
		AllHeaders: r.allHeaders,
		AllQuery:   r.allQuery,
	}
}
