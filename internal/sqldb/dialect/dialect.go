// Package dialect turns the SQL that all of Writ is written in, SQLite's, into
// PostgreSQL's.
package dialect

import (
	"strconv"
	"strings"
)

// ToPostgres turns a statement in the SQL that both databases are written in
// (SQLite's words, ? for a parameter) into PostgreSQL's: ? to $n, BLOB to
// BYTEA, INTEGER to BIGINT, the name only in quotes, and WITHOUT ROWID left out.
// Literals, quoted names
// and comments stay as they are.
func ToPostgres(statement string) string {
	var out strings.Builder
	out.Grow(len(statement) + 16)
	parameters := 0
	for rest := statement; rest != ""; {
		n, word := token(rest)
		text := rest[:n]
		rest = rest[n:]
		switch {
		case text == "?":
			parameters++
			out.WriteByte('$')
			out.WriteString(strconv.Itoa(parameters))
		case !word:
			out.WriteString(text)
		case strings.EqualFold(text, "BLOB"):
			out.WriteString("BYTEA")
		case strings.EqualFold(text, "INTEGER"):
			out.WriteString("BIGINT")
		case strings.EqualFold(text, "ONLY"):
			// A column of ours; PostgreSQL keeps the word for itself.
			out.WriteString(`"only"`)
		case strings.EqualFold(text, "WITHOUT"):
			if after, found := afterRowID(rest); found {
				rest = after
				break
			}
			out.WriteString(text)
		default:
			out.WriteString(text)
		}
	}
	return out.String()
}

// token is the length of what s begins with, and whether it is a word: a name
// or keyword, as against literals, quoted names, comments and everything else.
func token(s string) (n int, word bool) {
	switch c := s[0]; {
	case c == '\'' || c == '"':
		// A doubled quote is two literals side by side, which comes to the same.
		if end := strings.IndexByte(s[1:], c); end >= 0 {
			return end + 2, false
		}
		return len(s), false
	case strings.HasPrefix(s, "--"):
		if end := strings.IndexByte(s, '\n'); end >= 0 {
			return end + 1, false
		}
		return len(s), false
	case strings.HasPrefix(s, "/*"):
		if end := strings.Index(s[2:], "*/"); end >= 0 {
			return end + 4, false
		}
		return len(s), false
	case wordByte(c):
		for n < len(s) && wordByte(s[n]) {
			n++
		}
		return n, true
	}
	return 1, false
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// afterRowID is what follows the word ROWID when s begins with it.
func afterRowID(s string) (string, bool) {
	trimmed := strings.TrimLeft(s, " \t\r\n")
	if len(trimmed) == len(s) || trimmed == "" {
		return "", false
	}
	n, word := token(trimmed)
	if !word || !strings.EqualFold(trimmed[:n], "ROWID") {
		return "", false
	}
	return trimmed[n:], true
}
