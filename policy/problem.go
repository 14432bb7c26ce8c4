package policy

import (
	"fmt"
	"strings"
)

// Codes of a Problem.
const (
	ProblemParse     = "parse"
	ProblemType      = "type"
	ProblemTest      = "test"
	ProblemSignature = "signature"
	ProblemLimit     = "limit"
	ProblemCatalogue = "catalogue"
	// ProblemExpired is a warning: a rule is past its date.
	ProblemExpired = "expired"
	ProblemOwner   = "owner"
)

// Problem is one reason why a policy is refused, told to its publisher.
type Problem struct {
	// File is relative to the policy directory; empty for the policy as a
	// whole. Line and Column count from 1, 0 is unknown.
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// String gives file:line:column: code: message, without what is unknown.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
			if p.Column > 0 {
				fmt.Fprintf(&b, ":%d", p.Column)
			}
		}
		b.WriteString(": ")
	}
	return b.String() + p.Code + ": " + p.Message
}

// Refused is the error of a policy that has problems. It is not empty.
type Refused []Problem

func (r Refused) Error() string {
	lines := make([]string, len(r))
	for i, p := range r {
		lines[i] = p.String()
	}
	return "policy refused: " + strings.Join(lines, "\n")
}
