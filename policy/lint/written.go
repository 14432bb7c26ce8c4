package lint

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/rules"
)

// writtenAllows gives the YAML rules that allow, a rule for several services
// once.
func (s *pass) writtenAllows(yield func(*rules.Rule) bool) {
	seen := map[string]bool{}
	for _, service := range sortedKeys(s.yaml.Services) {
		list := s.yaml.Services[service]
		for i := range list {
			key := fmt.Sprintf("%s:%d", list[i].File, list[i].Line)
			if list[i].Tier != policy.ServiceAllow || seen[key] {
				continue
			}
			seen[key] = true
			if !yield(&list[i]) {
				return
			}
		}
	}
}

// entry is where an entry of a part of a rule is written.
func (s *pass) entry(r *rules.Rule, part string, i int) *ast.Location {
	line, column := s.yaml.Place(r, part, i)
	return &ast.Location{File: r.File, Row: line, Col: column}
}

func asks(list []rules.Condition, fields ...string) bool {
	return slices.ContainsFunc(list, func(c rules.Condition) bool { return !c.Not && slices.Contains(fields, c.Field) })
}

// identityFields are what tells who calls; source.authn alone does not.
var identityFields = []string{sourceIDField, "source.trust_domain", "source.path", rules.FieldToken}

const sourceIDField = "source.id"

func (s *pass) writtenWithoutIdentity() {
	for r := range s.writtenAllows {
		for i, from := range r.From {
			if !asks(from, identityFields...) && !asks(r.When, identityFields...) {
				s.found(s.entry(r, rules.PartFrom, i), "this entry of an allow does not ask who calls: name spiffe_ids, trust_domains, names or a token")
			}
		}
	}
}

func (s *pass) writtenOpenTrustDomain() {
	for r := range s.writtenAllows {
		for i, from := range r.From {
			s.openEntry(r, rules.PartFrom, i, from, append(slices.Clone(r.When), from...))
		}
		// What every entry of from says holds for when, too.
		if !slices.ContainsFunc(r.From, func(from []rules.Condition) bool { return !asks(from, "source.trust_domain", sourceIDField) }) {
			continue
		}
		for i := range r.When {
			s.openEntry(r, rules.PartWhen, i, r.When[i:i+1], r.When)
		}
	}
}

// openEntry looks at tests of the SPIFFE ID that stand beside others.
func (s *pass) openEntry(r *rules.Rule, part string, i int, list, beside []rules.Condition) {
	if asks(beside, "source.trust_domain") {
		return
	}
	for _, c := range list {
		if c.Field != sourceIDField || c.Not {
			continue
		}
		for _, text := range c.Texts {
			open := false
			switch c.Op {
			case rules.OpRegex:
				open = !pinnedRegex("^" + strings.TrimPrefix(strings.TrimPrefix(text, "^"), "(?s:"))
			case rules.OpPrefix:
				open = !pinnedPrefix(text)
			case rules.OpSuffix:
				open = true
			}
			if open {
				s.found(s.entry(r, part, i), "%q admits callers of other trust domains: name the whole trust domain, or add trust_domains", text)
			}
		}
	}
}

func (s *pass) writtenPathWithoutTrustDomain() {
	for r := range s.writtenAllows {
		for i, from := range r.From {
			if all := append(slices.Clone(r.When), from...); asks(all, "source.path") && !asks(all, sourceIDField, "source.trust_domain") {
				s.found(s.entry(r, rules.PartFrom, i), "the same path is in other trust domains, too: add trust_domains, or name spiffe_ids")
			}
		}
	}
}

func (s *pass) writtenHeaderTrust() {
	look := func(r *rules.Rule, part string, i int, list []rules.Condition) {
		for _, c := range list {
			name := ""
			switch {
			case c.Not:
				continue
			case c.Field == rules.FieldHost, c.Field == "request.host":
				name = "host"
			case c.Field == "request.headers":
				name = c.Name
			}
			if isClaimed(name) {
				s.found(s.entry(r, part, i), "an allow reads %q, which the caller writes as it likes: it proves nothing", name)
			}
		}
	}
	for r := range s.writtenAllows {
		for i, to := range r.To {
			look(r, rules.PartTo, i, to)
		}
		for i := range r.When {
			look(r, rules.PartWhen, i, r.When[i:i+1])
		}
	}
}

// comment is one line that begins with a comment.
type comment struct {
	at   *ast.Location
	text string
}

// comments are those of a file: of a module as it was parsed, of YAML the
// lines that are nothing but a comment.
func (s *pass) comments(path string) []comment {
	var list []comment
	if m := s.written[path]; m != nil {
		for _, c := range m.Comments {
			list = append(list, comment{c.Location, string(c.Text)})
		}
		return list
	}
	text, _ := s.content.File(path)
	row := 0
	for line := range strings.Lines(string(text)) {
		row++
		if before, after, ok := strings.Cut(line, "#"); ok && strings.TrimSpace(before) == "" {
			list = append(list, comment{&ast.Location{File: path, Row: row, Col: len(before) + 1}, after})
		}
	}
	return list
}
