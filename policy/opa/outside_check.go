package opa

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// checkOutside finds requests of http.send that it would refuse, in rules, as
// far as they are written out.
func (l *loader) checkOutside() {
	bounds := l.program.catalogue.Outside.HTTP
	if bounds == nil {
		return
	}
	check := func(call []*ast.Term) {
		if len(call) < 2 || call[0].String() != bundle.HTTPSend {
			return
		}
		request, ok := call[1].Value.(ast.Object)
		if !ok {
			return
		}
		request.Foreach(func(k, v *ast.Term) {
			name, literal := k.Value.(ast.String)
			if !literal {
				return
			}
			if why := refusedOption(string(name), v.Value); why != "" {
				l.fail("", k.Location, policy.ProblemType, "%s: %v: %s", bundle.HTTPSend, k, why)
				return
			}
			if text, literal := v.Value.(ast.String); literal && name == "url" {
				u, err := url.Parse(string(text))
				if err == nil {
					err = refusedURL(bounds, u)
				}
				if err != nil {
					l.fail("", v.Location, policy.ProblemType, "%s: %v", bundle.HTTPSend, err)
				}
			}
		})
	}
	for _, path := range slices.Sorted(maps.Keys(l.program.parsed)) {
		if strings.HasPrefix(path, ownPrefix) {
			continue
		}
		ast.NewGenericVisitor(func(x any) bool {
			switch x := x.(type) {
			case *ast.Expr:
				if terms, ok := x.Terms.([]*ast.Term); ok {
					check(terms)
				}
			case ast.Call:
				check(x)
			}
			return false
		}).Walk(l.program.parsed[path])
	}
}
