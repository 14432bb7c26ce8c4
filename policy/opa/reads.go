package opa

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
)

// reads is what modules can look at. It errs towards more: whatever is not a
// literal name is everything.
type reads struct {
	headers, query       map[string]bool
	allHeaders, allQuery bool
	tokens               bool
	// imports of the module that is looked at, by their name in it.
	imports map[ast.Var]ast.Ref
}

// libraryReads are the names in the library that read the tokens, or the header
// or query parameter that their first argument says.
var libraryReads = map[string]string{
	"http.header":         "headers",
	"http.header_has":     "headers",
	"http.header_matches": "headers",
	"http.query":          "query",
	"http.query_has":      "query",
	"token.verified":      "tokens",
}

// interpreter is our module that looks at whatever YAML rules name.
const interpreter = ownPrefix + "writ/rules.rego"

// reads is what the program looks at.
func (p *Program) reads() *reads {
	modules := maps.Clone(p.parsed)
	delete(modules, interpreter)
	r := readsOf(modules)
	if p.written == nil {
		return r
	}
	headers, query, tokens := p.written.Reads()
	for _, name := range headers {
		r.headers[name] = true
	}
	for _, name := range query {
		r.query[name] = true
	}
	r.tokens = r.tokens || tokens
	return r
}

// readsOf looks at modules as they were written. A variable that stands for a
// part of the input comes from a reference to that part, which is seen. The
// library is looked at where it is used: it is in every program, and reads what
// its arguments say.
func readsOf(modules map[string]*ast.Module) *reads {
	r := &reads{headers: map[string]bool{}, query: map[string]bool{}}
	for _, m := range modules {
		if _, ok := library()[libraryOf(m.Package.Path)]; ok {
			continue
		}
		r.imports = importsOf(m)
		for _, ref := range r.imports {
			if !ref[0].Equal(ast.DefaultRootDocument) {
				r.ref(ref)
			}
		}
		for _, rule := range m.Rules {
			ast.NewGenericVisitor(r.visit).Walk(rule)
		}
	}
	return r
}

// importsOf are what the names stand for that a module imports.
func importsOf(m *ast.Module) map[ast.Var]ast.Ref {
	imports := map[ast.Var]ast.Ref{}
	for _, imp := range m.Imports {
		if ref, ok := imp.Path.Value.(ast.Ref); ok {
			imports[imp.Name()] = ref
		}
	}
	return imports
}

func (r *reads) visit(x any) bool {
	switch x := x.(type) {
	case *ast.Expr:
		if terms, ok := x.Terms.([]*ast.Term); ok {
			if !r.libraryCall(terms) {
				return len(x.With) == 0 && r.objectGet(terms)
			}
			for _, w := range x.With {
				ast.NewGenericVisitor(r.visit).Walk(w)
			}
			return true
		}
	case ast.Call:
		return r.libraryCall(x) || r.objectGet(x)
	case ast.Ref:
		r.ref(r.resolve(x))
		// A head that is a name is dealt with, and would look like input as a
		// whole. It may also be a call, or a value that is written out.
		rest := x
		if _, isName := x[0].Value.(ast.Var); isName {
			rest = x[1:]
		}
		for _, t := range rest {
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

// resolve puts what is imported in the place of its name.
func (r *reads) resolve(ref ast.Ref) ast.Ref {
	if head, ok := ref[0].Value.(ast.Var); ok {
		if imported, ok := r.imports[head]; ok && imported[0].Equal(ast.DefaultRootDocument) {
			return imported.Concat(ref[1:])
		}
	}
	return ref
}

// libraryCall notes what a function of the library reads for its caller, and
// reports whether it dealt with all of the call.
func (r *reads) libraryCall(call []*ast.Term) bool {
	operator, ok := call[0].Value.(ast.Ref)
	if !ok || len(call) < 2 {
		return false
	}
	name, literal := call[1].Value.(ast.String)
	if !literal {
		return false // The operator counts as any other reference to it.
	}
	switch libraryReads[libraryName(r.resolve(operator))] {
	case "headers":
		r.headers[strings.ToLower(string(name))] = true
	case "query":
		r.query[string(name)] = true
	default:
		return false
	}
	for _, arg := range call[2:] {
		ast.NewGenericVisitor(r.visit).Walk(arg)
	}
	return true
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
	switch libraryReads[libraryName(ref)] {
	case "headers":
		r.allHeaders = true
	case "query":
		r.allQuery = true
	case "tokens":
		r.tokens = true
	}
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
