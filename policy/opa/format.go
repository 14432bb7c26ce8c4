package opa

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/format"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

// Format is the source of one .rego file in the form of `opa fmt`. A source
// that does not parse, or whose formatted text would mean something else, is a
// policy.Refused.
func Format(f bundle.File) ([]byte, error) {
	l := loader{}
	before := l.parse(f)
	if before == nil {
		return nil, policy.Refused(l.problems)
	}
	options := parserOptions()
	out, err := format.SourceWithOpts(f.Path, f.Content, format.Opts{RegoVersion: ast.RegoV1, ParserOptions: &options})
	if err != nil {
		return nil, policy.Refused(problemsOf(err))
	}
	if bytes.Equal(out, f.Content) {
		return out, nil
	}
	// Twice must be once, or an editor that formats on saving never rests.
	after := l.parse(bundle.File{Path: f.Path, Content: out})
	if after == nil || len(after.Rules) != len(before.Rules) || after.Package.Compare(before.Package) != 0 {
		return nil, policy.Refused{{File: f.Path, Code: policy.ProblemParse,
			Message: fmt.Sprintf("OPA's formatter would change what it means; leave it as it is (%s)", strings.Join(strings.Fields(policy.Refused(l.problems).Error()), " "))}}
	}
	return out, nil
}
