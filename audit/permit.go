package audit

import (
	"fmt"
	"slices"
	"strings"
)

// Permit is a recorder's allow-list of headers and query parameters. The nil
// Permit permits none.
//
// Credentials are kept out of the record whatever the list says: the names in
// neverHeaders and neverQuery cannot be listed and no `*` reaches them, a name
// that speaks of a credential must be listed exactly, and a value that looks
// like a bearer token or a JWS is withheld under any name.
type Permit struct {
	headers, query names
}

type names struct {
	exact    map[string]bool
	prefixes []string
}

// NewPermit prepares an allow-list: exact names, or prefixes that end in `*`.
// Header names are lower case.
func NewPermit(headers, query []string) (*Permit, error) {
	for _, h := range headers {
		if h != strings.ToLower(h) {
			return nil, fmt.Errorf("audit header %q: names are lower case", h)
		}
	}
	h, err := newNames("header", headers, neverHeaders)
	if err != nil {
		return nil, err
	}
	q, err := newNames("query parameter", query, neverQuery)
	if err != nil {
		return nil, err
	}
	return &Permit{headers: h, query: q}, nil
}

func newNames(what string, list []string, never func(string) bool) (names, error) {
	n := names{exact: make(map[string]bool)}
	for _, name := range list {
		prefix, wild := strings.CutSuffix(name, "*")
		switch {
		case strings.Contains(prefix, "*"):
			return n, fmt.Errorf("audit %s %q: a * stands only at the end", what, name)
		case wild:
			n.prefixes = append(n.prefixes, prefix)
		case name == "":
			return n, fmt.Errorf("audit %s: empty name", what)
		case never(name):
			return n, fmt.Errorf("audit %s %q carries credentials and is never recorded", what, name)
		default:
			n.exact[name] = true
		}
	}
	return n, nil
}

// Header reports whether the header of this lower-case name may be recorded.
func (p *Permit) Header(name string) bool {
	return p != nil && !neverHeaders(name) && p.headers.has(name)
}

// Query reports whether the query parameter may be recorded.
func (p *Permit) Query(name string) bool {
	return p != nil && !neverQuery(name) && p.query.has(name)
}

func (n *names) has(name string) bool {
	if n.exact[name] {
		return true
	}
	for _, p := range n.prefixes {
		if strings.HasPrefix(name, p) {
			return !speaksOfCredential(name)
		}
	}
	return false
}

func neverHeaders(name string) bool {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "cookie2", "set-cookie":
		return true
	}
	return false
}

func neverQuery(name string) bool {
	switch strings.ToLower(name) {
	case "access_token", "id_token", "refresh_token", "client_secret", "client_assertion", "password":
		return true
	}
	return false
}

func speaksOfCredential(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{"token", "secret", "passw", "auth", "cookie", "key", "jwt", "assertion", "session", "credential", "signature"},
		func(part string) bool { return strings.Contains(name, part) })
}

// looksLikeToken catches bearer tokens and compact JWS (RFC 7515) that travel
// under other names.
func looksLikeToken(v string) bool {
	if len(v) > 7 && strings.EqualFold(v[:7], "bearer ") {
		return true
	}
	return strings.HasPrefix(v, "eyJ") && strings.Count(v, ".") == 2
}
