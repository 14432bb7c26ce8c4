package lint

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// ofText are builtins that look into a text, and which argument that is.
var ofText = map[string]int{
	"startswith": 0, "endswith": 0, "contains": 0, "split": 0, "indexof": 0, "trim_prefix": 0, "trim_suffix": 0,
	"substring": 0, "regex.match": 1, "glob.match": 2, "strings.any_prefix_match": 0, "strings.any_suffix_match": 0,
}

func (s *pass) rawPath() {
	for c := range s.eachCall {
		if at, ok := ofText[c.name]; ok && at < len(c.args) && s.subject(c.rule, c.args[at]) == "input.request.path" {
			s.found(c.at, "%s looks at the path as it was sent, where /%%61dmin is not /admin: use input.request.segments", c.name)
		}
	}
}

func (s *pass) unanchoredRegex() {
	for c := range s.eachCall {
		if c.name != "regex.match" || len(c.args) < 2 {
			continue
		}
		if p, ok := constant(c.args[0]); ok && !anchored(p) {
			s.found(c.at, "%q matches anywhere in the text: begin it with ^ and end it with $", p)
		}
	}
}

func anchored(p string) bool {
	if strings.HasPrefix(p, "(?") { // flags
		if flags, rest, ok := strings.Cut(p, ")"); ok && !strings.ContainsAny(flags, ":<") {
			p = rest
		}
	}
	begins := strings.HasPrefix(p, "^") || strings.HasPrefix(p, `\A`)
	ends := strings.HasSuffix(p, "$") && !strings.HasSuffix(p, `\$`) || strings.HasSuffix(p, `\z`) || strings.HasSuffix(p, ".*")
	return begins && ends
}

// failing are builtins that end in an error on a text that they cannot read.
var failing = map[string]string{
	"to_number": "a text that is no number", "json.unmarshal": "a text that is no JSON",
	"net.cidr_contains": "a text that is no address", "net.cidr_contains_matches": "a text that is no address",
	"net.cidr_intersects": "a text that is no address", "net.cidr_merge": "a text that is no address",
	"base64.decode": "a text that is no base64", "base64url.decode": "a text that is no base64", "hex.decode": "a text that is no hex",
	"time.parse_rfc3339_ns": "a text that is no time", "time.parse_ns": "a text that is no time",
	"time.parse_duration_ns": "a text that is no duration", "units.parse": "a text that is no number", "units.parse_bytes": "a text that is no size",
	"semver.compare": "a text that is no version", "io.jwt.decode": "a text that is no token", "urlquery.decode": "a text that is no query",
}

func (s *pass) errorInGuardrail() {
	for rule := range s.each {
		if !isGuardrail(rule) {
			continue
		}
		for _, r := range s.reach(rule) {
			if isOwn(r) {
				continue // The library tests what it reads.
			}
			for _, c := range calls(r) {
				on, ok := failing[c.name]
				if (c.name == "regex.match" || c.name == "glob.match") && !isText(c.args[0]) {
					on, ok = "a text that is no pattern", true
				}
				if ok && !allGround(c.args) {
					s.found(c.at, "%s ends in an error on %s, and an error in a guardrail denies every service's requests: test the text first", c.name, on)
				}
			}
		}
	}
}

func isText(t *ast.Term) bool {
	_, ok := t.Value.(ast.String)
	return ok
}

// allGround reports whether nothing in the terms comes from elsewhere.
func allGround(terms []*ast.Term) bool {
	for _, t := range terms {
		open := false
		ast.WalkTerms(t, func(t *ast.Term) bool {
			switch t.Value.(type) {
			case ast.Var, ast.Ref, ast.Call:
				open = true
			}
			return open
		})
		if open {
			return false
		}
	}
	return true
}

// anyNotEqual finds xs[_] != "a", and `some x in xs` where x is used for that
// alone.
func (s *pass) anyNotEqual() {
	for c := range s.eachCall {
		if c.name != "neq" || len(c.args) != 2 {
			continue
		}
		for i, t := range c.args {
			switch c.args[1-i].Value.(type) {
			case ast.String, ast.Number, ast.Boolean, ast.Null:
			default:
				continue
			}
			if isWildcard(t) || s.soleElement(c.rule, t) {
				s.found(c.at, "this holds as soon as one element differs; to say that none is equal, ask in a rule of its own (`one if %s in …`) and write `not one`", c.args[1-i])
			}
		}
	}
}

func isWildcard(t *ast.Term) bool {
	ref, ok := t.Value.(ast.Ref)
	if !ok {
		return false
	}
	for _, part := range ref[1:] {
		if v, ok := part.Value.(ast.Var); ok && v.IsWildcard() {
			return true
		}
	}
	return false
}

// soleElement reports whether a variable is declared by `some x in xs` and
// used once after that.
func (s *pass) soleElement(rule *ast.Rule, t *ast.Term) bool {
	v, ok := t.Value.(ast.Var)
	if !ok {
		return false
	}
	declared, used := false, 0
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.SomeDecl:
			for _, symbol := range x.Symbols {
				if in, ok := symbol.Value.(ast.Call); ok && len(in) == 3 && in[1].Equal(t) {
					declared = true
				}
			}
		case ast.Var:
			if x == v {
				used++
			}
		}
		return false
	}).Walk(rule)
	return declared && used == 2
}

func (s *pass) methodCase() {
	for c := range s.eachCall {
		switch c.name {
		case "equal", "eq", "neq", "internal.member_2":
		default:
			continue
		}
		for i, t := range c.args {
			if _, plain := t.Value.(ast.Call); plain || s.subject(c.rule, t) != "input.request.method" || i > 1 {
				continue
			}
			for _, method := range constants(c.args[1-i]) {
				if upper := strings.ToUpper(method); upper != method {
					s.found(c.at, "methods are sent in upper case: write %q, not %q", upper, method)
				}
			}
		}
	}
}
