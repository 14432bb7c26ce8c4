// Package lint finds what compiles, and is probably not what its author meant:
// an allow that any caller gets, a prefix that another trust domain has as
// well, a guardrail that an odd header turns into an error.
//
// It reads sources only and decides nothing. Whoever knows better says so on
// the line before: `# writ-lint: ignore <rule> <reason>`.
package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/rules"
)

// Severity of a finding.
type Severity string

// Severities, the gravest first.
const (
	// Error is most likely a hole.
	Error Severity = "error"
	// Warning is likely a mistake.
	Warning Severity = "warning"
	// Info is worth knowing.
	Info Severity = "info"
)

// Rule is one thing that is looked for. docs/reference/lint.md has a section
// by its ID.
type Rule struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Title says what is found, in a few words.
	Title string `json:"title"`
	check func(*pass)
}

// Finding is one place where a rule found something.
type Finding struct {
	// File is relative to the policy directory. Line and Column count from 1.
	File     string   `json:"file"`
	Line     int      `json:"line"`
	Column   int      `json:"column"`
	Rule     string   `json:"rule"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
}

// String gives file:line:column: severity: message (rule).
func (f Finding) String() string {
	at := ""
	if f.File != "" {
		at = fmt.Sprintf("%s:%d:%d: ", f.File, f.Line, f.Column)
	}
	return fmt.Sprintf("%s%s: %s (%s)", at, f.Severity, f.Message, f.Rule)
}

const badIgnore = "bad-ignore"

// Rules are all rules, those of identity first.
func Rules() []Rule {
	return []Rule{
		{"allow-without-identity", Error, "an allow that does not ask who calls", (*pass).allowWithoutIdentity},
		{"open-trust-domain", Error, "a test of the caller's SPIFFE ID that other trust domains pass", (*pass).openTrustDomain},
		{"path-without-trust-domain", Error, "the path of a SPIFFE ID without its trust domain", (*pass).pathWithoutTrustDomain},
		{"header-trust", Warning, "an allow by what the caller says of itself", (*pass).headerTrust},
		{"raw-path", Warning, "a part of the path as it was sent, instead of its segments", (*pass).rawPath},
		{"unanchored-regex", Warning, "a regular expression that matches anywhere", (*pass).unanchoredRegex},
		{"error-in-guardrail", Warning, "a builtin in a guardrail that can end in an error", (*pass).errorInGuardrail},
		{"waits-outside", Warning, "a decision that waits for an answer from outside", (*pass).waitsOutside},
		{"any-not-equal", Warning, "a != that holds as soon as one element differs", (*pass).anyNotEqual},
		{"method-case", Warning, "a method in lower case, which is never sent", (*pass).methodCase},
		{"missing-test", Warning, "a service or guardrail without any test", (*pass).missingTest},
		{"unused-rule", Warning, "a helper that nothing uses", (*pass).unusedRule},
		{"unused-import", Warning, "an import that nothing uses", (*pass).unusedImport},
		{"no-default", Info, "a boolean allow or deny without a default", (*pass).noDefault},
		{badIgnore, Error, "an ignore comment without a rule, a reason, or an effect", nil},
	}
}

// Lint looks at a policy that passed opa.Check. Findings come in the order of
// their places.
func Lint(p *opa.Program) ([]Finding, error) {
	s, err := newPass(p)
	if err != nil {
		return nil, fmt.Errorf("lint: %w", err)
	}
	for _, rule := range Rules() {
		if rule.check != nil {
			s.rule = rule
			rule.check(s)
		}
	}
	s.applyIgnores()
	slices.SortStableFunc(s.findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), strings.Compare(a.Rule, b.Rule))
	})
	return slices.Compact(s.findings), nil
}

func (s *pass) found(at *ast.Location, format string, args ...any) {
	f := Finding{Rule: s.rule.ID, Severity: s.rule.Severity, Message: fmt.Sprintf(format, args...)}
	if at != nil {
		f.File, f.Line, f.Column = at.File, at.Row, at.Col
	}
	s.findings = append(s.findings, f)
}

// ignoreMark begins a comment that takes a finding back.
const ignoreMark = "writ-lint:"

// applyIgnores removes what the line before a finding ignores, and reports
// comments that ignore nothing, or do not say what and why.
func (s *pass) applyIgnores() {
	known := Rules()
	ids := make([]string, len(known))
	for i, r := range known {
		ids[i] = r.ID
	}
	s.rule = known[len(known)-1]
	for _, f := range s.content {
		path := f.Path
		if !f.IsModule() && !rules.IsFile(path) {
			continue
		}
		for _, c := range s.comments(path) {
			text, ok := strings.CutPrefix(strings.TrimSpace(c.text), ignoreMark)
			if !ok {
				continue
			}
			fields := strings.Fields(text)
			switch {
			case len(fields) < 2 || fields[0] != "ignore":
				s.found(c.at, "want `# %s ignore <rule> <reason>`", ignoreMark)
			case !slices.Contains(ids, fields[1]) || fields[1] == badIgnore:
				s.found(c.at, "there is no rule %q%s", fields[1], nearmiss.Hint(fields[1], ids))
			case len(fields) == 2:
				s.found(c.at, "say why %s is ignored, after its name", fields[1])
			default:
				before := len(s.findings)
				s.findings = slices.DeleteFunc(s.findings, func(f Finding) bool {
					return f.File == path && f.Line == c.at.Row+1 && f.Rule == fields[1]
				})
				if len(s.findings) == before {
					s.found(c.at, "nothing to ignore: %s finds nothing in the next line", fields[1])
				}
			}
		}
	}
}
