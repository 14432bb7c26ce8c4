package proxy

import (
	"net/http"
	"net/textproto"
	"strings"
)

// hopHeaders end at each hop (RFC 9110, section 7.6.1), whether Connection
// lists them or not. Http2-Settings belongs to an upgrade to h2c (RFC 7540,
// section 3.2.1).
var hopHeaders = [...]string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate",
	"Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Http2-Settings",
}

// stripHop removes what ends at this hop and what Connection lists, and
// returns the protocol that an upgrade asks for. `TE: trailers` stays: gRPC
// wants to see it.
func stripHop(h http.Header) (upgrade string) {
	te := false
	if len(h["Te"]) > 0 {
		te = hasToken(h["Te"], "trailers")
	}
	if connection := h["Connection"]; len(connection) > 0 {
		if hasToken(connection, "upgrade") && len(h["Upgrade"]) == 1 {
			upgrade = h["Upgrade"][0]
		}
		for _, line := range connection {
			for name := range strings.SplitSeq(line, ",") {
				if name = textproto.TrimString(name); name != "" {
					delete(h, textproto.CanonicalMIMEHeaderKey(name))
				}
			}
		}
	}
	for _, name := range hopHeaders {
		delete(h, name)
	}
	if te {
		h["Te"] = []string{"trailers"}
	}
	return upgrade
}

// stripUnderscores removes what an application that folds _ into - (CGI and its
// descendants) would take for another header than policy does.
func stripUnderscores(h http.Header) {
	for name := range h {
		if strings.IndexByte(name, '_') >= 0 {
			delete(h, name)
		}
	}
}

// hasToken looks for a token in comma-separated lists, ignoring case and what
// follows a semicolon.
func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(textproto.TrimString(name), token) {
				return true
			}
		}
	}
	return false
}
