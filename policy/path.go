package policy

import (
	"strings"
	"unicode/utf8"
)

// SplitPath takes the raw path of a request target apart, appending to dst the
// segments between the slashes, each percent-decoded after the split, so that
// %2F stays inside its segment. "/" has no segments; a trailing slash gives a
// last, empty one.
//
// A path is never repaired. Where two readers of the same path could disagree
// about what it names, refusal says why it must not pass: dot segments
// (encoded, behind an encoded slash, or with a `;` parameter too), `//` unless
// allowed, backslash, NUL, control characters, spaces, `#` and `?`, invalid
// escapes, invalid UTF-8.
func SplitPath(dst []string, raw string, allowDoubleSlash bool) (segments []string, refusal string) {
	if raw == "" || raw[0] != '/' {
		return dst, "path does not begin with a slash"
	}
	if raw == "/" {
		return dst, ""
	}
	rest := raw[1:]
	for {
		segment, after, more := strings.Cut(rest, "/")
		decoded, refusal := decode(segment, false)
		if refusal == "" {
			refusal = checkSegment(decoded)
		}
		if refusal == "" && segment == "" && more && !allowDoubleSlash {
			refusal = "path contains an empty segment (//)"
		}
		if refusal != "" {
			return dst, refusal
		}
		dst = append(dst, decoded)
		if !more {
			break
		}
		rest = after
	}
	return dst, ""
}

// checkSegment looks at a decoded segment.
func checkSegment(s string) string {
	if !utf8.ValidString(s) {
		return "path is not valid UTF-8"
	}
	// What stands behind an encoded slash is a segment to a reader that
	// decodes first, and some readers drop everything from a semicolon on
	// before they look for dots.
	for part := range strings.SplitSeq(s, "/") {
		name, _, _ := strings.Cut(part, ";")
		if name == "." || name == ".." {
			return "path contains a dot segment"
		}
	}
	return ""
}

// decode undoes percent-encoding and refuses bytes that must not be in a
// request target. In a query, `+` is a space.
func decode(s string, query bool) (decoded, refusal string) {
	plain := true
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '%':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", "invalid percent-encoding"
			}
			switch b := unhex(s[i+1])<<4 | unhex(s[i+2]); {
			case b == 0:
				return "", "encoded NUL"
			case b == '\\' && !query:
				return "", "encoded backslash"
			}
			plain = false
			i += 2
		case c <= ' ' || c == 0x7f:
			return "", "control character or space"
		case c == '#':
			return "", "fragment"
		case c == '\\' && !query:
			return "", "backslash"
		case c == '?' && !query:
			return "", "question mark in the path"
		case c == '+' && query:
			plain = false
		}
	}
	if plain {
		return s, ""
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '%':
			b.WriteByte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		case s[i] == '+' && query:
			b.WriteByte(' ')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}

// ParseQuery reads a raw query, without the question mark, as
// application/x-www-form-urlencoded (WHATWG URL, section 5). `;` is refused
// because half of the world takes it for a separator; it can be written %3B.
// An empty query is nil.
func ParseQuery(raw string) (values MapValues, refusal string) {
	if raw == "" {
		return nil, ""
	}
	values = MapValues{}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		if strings.Contains(pair, ";") {
			return nil, "semicolon in the query"
		}
		k, v, _ := strings.Cut(pair, "=")
		name, refusal := decode(k, true)
		if refusal != "" {
			return nil, refusal + " in the query"
		}
		value, refusal := decode(v, true)
		if refusal != "" {
			return nil, refusal + " in the query"
		}
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, "query is not valid UTF-8"
		}
		values[name] = append(values[name], value)
	}
	return values, ""
}

// SplitMethod takes a gRPC path, /package.Service/Method, apart.
func SplitMethod(segments []string) (service, method string, ok bool) {
	if len(segments) != 2 || segments[0] == "" || segments[1] == "" {
		return "", "", false
	}
	return segments[0], segments[1], true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
