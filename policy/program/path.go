package program

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MatchPath reports whether the decoded segments of a path match pattern; a
// pattern that CheckPathPattern refuses matches nothing.
//
// A pattern is split as pep.SplitPath splits a path: it begins with "/"; "/"
// alone has no parts; a trailing slash gives a last, empty part. Each part is
// compared with one segment. The pattern is not percent-decoded: its parts are
// written as the decoded segments are.
//
//   - `*` inside a part stands for any run of characters of that segment, also
//     none;
//   - a part `{*}` is exactly one segment that is not empty;
//   - a part `{**}`, at most once in a pattern, is any number of segments, also
//     none;
//   - a last part that is just `*` is one or more segments: the rest of the
//     path. The one may be empty, so "/a/*" matches "/a/" and not "/a".
//
// Braces mean nothing else and are refused elsewhere.
func MatchPath(pattern string, segments []string) bool {
	p, err := compilePath(pattern)
	return err == nil && p.match(segments)
}

// CheckPathPattern says what is wrong with a pattern for MatchPath.
func CheckPathPattern(pattern string) error {
	_, err := compilePath(pattern)
	return err
}

// path is a pattern taken apart: head, then any number of segments if open,
// then tail, then at least one segment more if rest.
type path struct {
	head, tail []part
	open, rest bool
}

type part struct {
	kind partKind
	text string   // of partLiteral
	runs []string // of partGlob: what stands between the stars
}

type partKind uint8

const (
	partLiteral partKind = iota
	partGlob
	partOne // a segment that is not empty
)

func compilePath(pattern string) (*path, error) {
	if pattern == "" || pattern[0] != '/' {
		return nil, fmt.Errorf("path pattern %q does not begin with a slash", pattern)
	}
	if !utf8.ValidString(pattern) {
		return nil, fmt.Errorf("path pattern %q is not valid UTF-8", pattern)
	}
	p := &path{}
	if pattern == "/" {
		return p, nil
	}
	parts := strings.Split(pattern[1:], "/")
	for i, text := range parts {
		if text == "*" && i == len(parts)-1 {
			p.rest = true
			continue
		}
		if text == "{**}" {
			if p.open {
				return nil, fmt.Errorf("path pattern %q has more than one {**}", pattern)
			}
			p.open = true
			continue
		}
		one, err := compilePart(text)
		if err != nil {
			return nil, fmt.Errorf("path pattern %q: %w", pattern, err)
		}
		if p.open {
			p.tail = append(p.tail, one)
		} else {
			p.head = append(p.head, one)
		}
	}
	return p, nil
}

func compilePart(text string) (part, error) {
	switch {
	case text == "{*}":
		return part{kind: partOne}, nil
	case strings.ContainsAny(text, "{}"):
		return part{}, errors.New("braces stand only in the parts {*} and {**}")
	case strings.Contains(text, "*"):
		return part{kind: partGlob, runs: strings.Split(text, "*")}, nil
	}
	return part{text: text}, nil
}

// literals are the first parts that are compared as they are.
func (p *path) literals() []string {
	var texts []string
	for i := range p.head {
		if p.head[i].kind != partLiteral {
			break
		}
		texts = append(texts, p.head[i].text)
	}
	return texts
}

func (p *path) match(segments []string) bool {
	if len(segments) < len(p.head) || !matchParts(p.head, segments) {
		return false
	}
	left := segments[len(p.head):]
	if !p.open {
		if p.rest {
			return len(left) > 0
		}
		return len(left) == 0
	}
	spare := len(left) - len(p.tail)
	if !p.rest {
		return spare >= 0 && matchParts(p.tail, left[spare:])
	}
	for i := range spare { // At least one segment stays for the rest.
		if matchParts(p.tail, left[i:]) {
			return true
		}
	}
	return false
}

func matchParts(parts []part, segments []string) bool {
	for i := range parts {
		if !parts[i].match(segments[i]) {
			return false
		}
	}
	return true
}

func (p *part) match(segment string) bool {
	switch p.kind {
	case partLiteral:
		return segment == p.text
	case partOne:
		return segment != ""
	}
	first, last := p.runs[0], p.runs[len(p.runs)-1]
	if len(segment) < len(first)+len(last) || !strings.HasPrefix(segment, first) || !strings.HasSuffix(segment, last) {
		return false
	}
	segment = segment[len(first) : len(segment)-len(last)]
	for _, run := range p.runs[1 : len(p.runs)-1] {
		at := strings.Index(segment, run)
		if at < 0 {
			return false
		}
		segment = segment[at+len(run):]
	}
	return true
}
