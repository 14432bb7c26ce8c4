package rules

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// matchTexts is the operator and the operands for patterns in which `*` is any
// run of characters. One operator does for all: the cheapest that can, so that
// a list of exact texts is looked up and not walked.
func matchTexts(patterns []string) (op string, texts []string) {
	all := func(fits func(literal, rest string) bool) bool {
		return !slices.ContainsFunc(patterns, func(p string) bool {
			before, after, star := strings.Cut(p, "*")
			return !star || strings.Contains(after, "*") || !fits(before, after)
		})
	}
	switch {
	case !slices.ContainsFunc(patterns, func(p string) bool { return strings.Contains(p, "*") }):
		return OpIn, sorted(patterns)
	case all(func(_, after string) bool { return after == "" }):
		return OpPrefix, sorted(mapTexts(patterns, func(p string) string { return p[:len(p)-1] }))
	case all(func(before, _ string) bool { return before == "" }):
		return OpSuffix, sorted(mapTexts(patterns, func(p string) string { return p[1:] }))
	}
	return OpRegex, sorted(mapTexts(patterns, func(p string) string { return `^(?s:` + starRegex(p, `.*`) + `)$` }))
}

// starRegex is a pattern as a regular expression, with star for each `*`.
func starRegex(pattern, star string) string {
	runs := strings.Split(pattern, "*")
	for i := range runs {
		runs[i] = regexp.QuoteMeta(runs[i])
	}
	return strings.Join(runs, star)
}

// matchIDs is matchTexts for patterns of SPIFFE IDs.
func matchIDs(patterns []string) (op string, texts []string) {
	below := func(p string) bool { return strings.HasSuffix(p, "/**") && strings.Count(p, "*") == 2 }
	switch {
	case !slices.ContainsFunc(patterns, func(p string) bool { return strings.Contains(p, "*") }):
		return OpIn, sorted(patterns)
	case !slices.ContainsFunc(patterns, func(p string) bool { return !below(p) }):
		return OpPrefix, sorted(mapTexts(patterns, func(p string) string { return strings.TrimSuffix(p, "**") }))
	}
	return OpRegex, sorted(mapTexts(patterns, idRegex))
}

func idRegex(pattern string) string {
	path := strings.Split(strings.TrimPrefix(pattern, spiffeScheme), "/")
	for i, part := range path {
		switch part {
		case "*":
			path[i] = `[^/]+`
		case "**":
			path[i] = `.+`
		default:
			path[i] = starRegex(part, `[^/]*`)
		}
	}
	return `^(?s:` + spiffeScheme + strings.Join(path, "/") + `)$`
}

// parsePath takes a path pattern apart. It means what program.MatchPath means
// by it.
func parsePath(pattern string) (Path, error) {
	p := Path{Text: pattern}
	if !strings.HasPrefix(pattern, "/") {
		return p, errors.New("want a pattern that begins with a slash")
	}
	if pattern == "/" {
		return p, nil
	}
	parts := strings.Split(pattern[1:], "/")
	for i, text := range parts {
		switch {
		case text == "*" && i == len(parts)-1:
			p.Rest = true
			continue
		case text == "{**}" && p.Open:
			return p, errors.New("{**} can stand in a pattern once")
		case text == "{**}":
			p.Open = true
			continue
		case text != "{*}" && strings.ContainsAny(text, "{}"):
			return p, errors.New("braces stand only in the parts {*} and {**}")
		case text == "." || text == "..":
			return p, fmt.Errorf("%s does not occur in a path", text)
		}
		part := Part{Text: text}
		if text == "{*}" {
			part.One = true
		} else if strings.Contains(text, "*") {
			part.Regex = `^(?s:` + starRegex(text, `.*`) + `)$`
		}
		if p.Open {
			p.Tail = append(p.Tail, part)
		} else {
			p.Head = append(p.Head, part)
		}
	}
	return p, nil
}

var escapeForm = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

func checkPath(s string) error {
	if _, err := parsePath(s); err != nil {
		return err
	}
	if strings.ContainsAny(s, "?#") {
		return errors.New("a path has no query and no fragment (see query)")
	}
	if encoded := escapeForm.FindString(s); encoded != "" {
		return fmt.Errorf("segments are decoded before they are compared: write the character that %s stands for", encoded)
	}
	return checkText(s)
}

func mapTexts(list []string, f func(string) string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = f(s)
	}
	return out
}

func sorted(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
