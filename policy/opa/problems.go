package opa

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-dev/writ/internal/nearmiss"
	"github.com/writ-dev/writ/policy"
)

func newReader(data []byte) io.Reader { return bytes.NewReader(data) }

func (l *loader) fail(file string, at *ast.Location, code, format string, args ...any) {
	p := policy.Problem{File: file, Code: code, Message: fmt.Sprintf(format, args...)}
	if at != nil {
		p.File, p.Line, p.Column = at.File, at.Row, at.Col
	}
	l.problems = append(l.problems, p)
}

func comparePlace(a, b policy.Problem) int {
	return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
}

// problemsOf says of OPA's errors where they are and, for a word that is
// nearly right, which one is.
func problemsOf(err error) []policy.Problem {
	var list ast.Errors
	var one *ast.Error
	switch {
	case errors.As(err, &list):
	case errors.As(err, &one):
		list = ast.Errors{one}
	default:
		return []policy.Problem{{Code: policy.ProblemParse, Message: err.Error()}}
	}
	list.Sort()
	// Recursion through the root rule is reported in our modules as well; the
	// publisher can only mend his own.
	theirs := slices.DeleteFunc(slices.Clone(list), func(e *ast.Error) bool {
		return e.Location != nil && strings.HasPrefix(e.Location.File, ownPrefix)
	})
	if len(theirs) > 0 {
		list = theirs
	}
	problems := make([]policy.Problem, len(list))
	for i, e := range list {
		p := policy.Problem{Code: policy.ProblemType, Message: e.Message + hint(e)}
		if e.Code == ast.ParseErr {
			p.Code = policy.ProblemParse
		}
		if e.Location != nil {
			p.File, p.Line, p.Column = e.Location.File, e.Location.Row, e.Location.Col
		}
		problems[i] = p
	}
	// The parser may say the same twice, once without the details.
	i := 0
	return slices.DeleteFunc(problems, func(p policy.Problem) bool {
		i++
		return i < len(list) && samePlace(list[i-1].Location, list[i].Location) && strings.HasPrefix(list[i].Message, list[i-1].Message)
	})
}

func samePlace(a, b *ast.Location) bool {
	return a != nil && b != nil && a.File == b.File && a.Row == b.Row && a.Col == b.Col
}

func hint(e *ast.Error) string {
	if invalid, ok := e.Details.(*ast.RefErrInvalidDetail); ok && invalid.Pos < len(invalid.Ref) {
		var known []string
		for _, v := range invalid.OneOf {
			if s, ok := v.(ast.String); ok {
				known = append(known, string(s))
			}
		}
		if got, ok := invalid.Ref[invalid.Pos].Value.(ast.String); ok && len(known) > 0 {
			return nearmiss.Hint(string(got), known)
		}
		return ""
	}
	if pattern, ok := e.Details.(*ast.UnificationErrDetail); ok {
		if hint := patternHint(pattern); hint != "" {
			return hint
		}
	}
	if e.Code == ast.TypeErr && e.Details != nil {
		lines := e.Details.Lines()
		for i := range lines {
			lines[i] = strings.Join(strings.Fields(lines[i]), " ")
		}
		return ": " + strings.Join(lines, ", ")
	}
	if name, ok := strings.CutPrefix(e.Message, "undefined function "); ok {
		if path, ok := strings.CutPrefix(name, "data.writ."); ok {
			pkg, name, _ := strings.Cut(path, ".")
			if library()[pkg] != nil {
				return ": " + missingInLibrary(pkg, name)
			}
			return didYouMean(pkg, slices.Collect(maps.Keys(library())))
		}
		for _, b := range refusedBuiltins {
			if b.name == name {
				return ": policy may not use it: " + b.why
			}
		}
		var known []string
		for _, b := range capabilities().Builtins {
			if near := b.Name; strings.Contains(near, ".") == strings.Contains(name, ".") {
				known = append(known, near)
			}
		}
		if near := nearmiss.Hint(name, known); strings.HasPrefix(near, ": did") {
			return near
		}
	}
	return ""
}

// patternHint explains why a pattern such as {"method": m} = input.request
// never matches: it would have to name all fields.
func patternHint(e *ast.UnificationErrDetail) string {
	left, right := fieldsOf(e.Left), fieldsOf(e.Right)
	if len(left) == 0 || len(right) == 0 {
		return ""
	}
	if len(left) > len(right) {
		left, right = right, left
	}
	for _, name := range left {
		if !slices.Contains(right, name) {
			return fmt.Sprintf(": no field %q", name) + nearmiss.Hint(name, right)
		}
	}
	if len(left) == len(right) {
		return ""
	}
	return ": a pattern of an object matches only one with exactly its fields; refer to each field that is meant"
}
