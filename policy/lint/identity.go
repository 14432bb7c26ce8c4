package lint

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

func (s *pass) allowWithoutIdentity() {
	s.writtenWithoutIdentity()
	for rule := range s.allows {
		if !s.reads(rule, "input.source", "input.tokens") {
			s.found(rule.Location, "nothing in this allow, nor in what it uses, asks who calls: read input.source or input.tokens")
		}
	}
}

const sourceID = "input.source.id"

// openTrustDomain looks at tests of input.source.id by a part of it.
func (s *pass) openTrustDomain() {
	s.writtenOpenTrustDomain()
	for c := range s.eachCall {
		if len(c.args) < 2 {
			continue
		}
		subject, pattern := c.args[0], c.args[1]
		open := func(string) bool { return true }
		switch c.name {
		case "startswith":
			open = func(p string) bool { return !pinnedPrefix(p) }
		case "glob.match":
			if len(c.args) < 3 {
				continue
			}
			subject, pattern = c.args[2], c.args[0]
			open = func(p string) bool { return !pinnedPrefix(p) }
		case "regex.match":
			subject, pattern = c.args[1], c.args[0]
			open = func(p string) bool { return !pinnedRegex(p) }
		case "endswith", "contains":
		default:
			continue
		}
		if s.subject(c.rule, subject) != sourceID || s.reads(c.rule, "input.source.trust_domain") {
			continue
		}
		if text, ok := constant(pattern); ok && open(text) {
			s.found(c.at, "%q admits callers of other trust domains: name the whole trust domain up to its slash, as in spiffe://example.org/, or compare input.source.trust_domain", text)
		}
	}
}

// pinnedPrefix reports whether what begins so is of one trust domain.
func pinnedPrefix(p string) bool {
	domain, ok := strings.CutPrefix(p, "spiffe://")
	name, _, slash := strings.Cut(domain, "/")
	return ok && slash && name != "" && !strings.ContainsAny(name, `*?[]{}!\`)
}

// pinnedRegex reports whether what matches is of one trust domain; a dot that
// is not escaped is any character, and so another domain.
func pinnedRegex(p string) bool {
	p, anchored := strings.CutPrefix(p, "^")
	p = strings.ReplaceAll(strings.ReplaceAll(p, `\/`, "/"), `\.`, "")
	domain, ok := strings.CutPrefix(p, "spiffe://")
	name, _, slash := strings.Cut(domain, "/")
	return anchored && ok && slash && name != "" && !strings.ContainsAny(name, `.*+?[](){}|\`)
}

func (s *pass) pathWithoutTrustDomain() {
	for rule := range s.each {
		if kind(rule) == "guardrails deny" && s.reads(rule, "input.source.trust_domain") {
			return // A guardrail keeps the others out.
		}
	}
	s.writtenPathWithoutTrustDomain()
	for rule := range s.allows {
		if s.reads(rule, sourceID, "input.source.trust_domain") {
			continue
		}
		if s.reads(rule, "input.source.path") {
			s.found(rule.Location, "the same path is in other trust domains, too: compare input.source.trust_domain, or the whole of input.source.id")
		}
	}
}

// claimed are headers that say who the caller is, and that the caller writes.
var claimed = []string{"forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip",
	"remote-user", "x-remote-user", "x-user", "x-user-id", "x-username", "x-email", "x-roles", "x-groups", "authorization", "cookie"}

func (s *pass) headerTrust() {
	s.writtenHeaderTrust()
	for rule := range s.allows {
		for _, r := range s.reach(rule) {
			if isOwn(r) {
				continue
			}
			for _, ref := range refs(r) {
				if name := headerOf(ref); isClaimed(name) {
					s.foundHeader(r, ref[0].Location, name)
				}
			}
			for _, c := range calls(r) { // the library's header, header_has, …
				if name, ok := constant(c.args[0]); ok && strings.HasPrefix(c.name, "data.writ.http.header") && isClaimed(strings.ToLower(name)) {
					s.foundHeader(r, c.at, name)
				}
			}
		}
	}
}

// headerOf is the header that a reference reads, "host" included.
func headerOf(ref ast.Ref) string {
	if !readsField(ref, "input.request") || len(ref) < 3 {
		return ""
	}
	switch part, _ := ref[2].Value.(ast.String); {
	case part == "host":
		return "host"
	case part == "headers" && len(ref) > 3:
		name, _ := ref[3].Value.(ast.String)
		return string(name)
	}
	return ""
}

func isClaimed(name string) bool {
	return name == "host" || strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "x-auth-") || slices.Contains(claimed, name)
}

func (s *pass) foundHeader(rule *ast.Rule, at *ast.Location, name string) {
	if at == nil {
		at = rule.Location
	}
	s.found(at, "an allow reads %q, which the caller writes as it likes: it proves nothing", name)
}
