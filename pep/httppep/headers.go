package httppep

import (
	"net/http"
	"strings"

	"github.com/writ-dev/writ/pep"
)

// Header names in the canonical form of net/http.
const (
	DecisionID        = "Writ-Decision-Id"
	sourceID          = "Writ-Source-Id"
	sourceTrustDomain = "Writ-Source-Trust-Domain"
	sourceAuthn       = "Writ-Source-Authn"
	clientCert        = "X-Forwarded-Client-Cert"
	forwardedFor      = "X-Forwarded-For"
)

// Reserved reports whether a header or trailer of this name may only be set by
// an enforcement point: everything under `writ-`, and x-forwarded-client-cert.
// Case does not count, and any character that is no letter or digit counts as
// `-`, because CGI and its descendants (WSGI, PSGI, PHP) fold such names into
// one variable. x-forwarded-for is reserved in every spelling but its own.
func Reserved(name string) bool {
	if len(name) == 0 || name[0]|0x20 != 'w' && name[0]|0x20 != 'x' {
		return false
	}
	if folds(name, "writ-") {
		return true
	}
	if len(name) == len(clientCert) && folds(name, "x-forwarded-client-cert") {
		return true
	}
	return len(name) == len(forwardedFor) && folds(name, "x-forwarded-for") && !strings.EqualFold(name, forwardedFor)
}

// folds reports whether name begins with prefix (lower case, `-`) in some
// spelling.
func folds(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case ('a' > c || c > 'z') && ('0' > c || c > '9'):
			c = '-'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// StripReserved removes the headers that only an enforcement point may set.
func StripReserved(h http.Header) {
	for name := range h {
		if Reserved(name) {
			delete(h, name)
		}
	}
}

// setIdentity tells the next handler who calls.
func setIdentity(h http.Header, p *pep.Peer, ownID, decisionID string) {
	if p.Verified() {
		id := p.ID.String()
		h[sourceID] = []string{id}
		h[sourceTrustDomain] = []string{p.ID.TrustDomain().Name()}
		h[sourceAuthn] = []string{"mtls"}
		h[clientCert] = []string{"By=" + ownID + ";Hash=" + p.Fingerprint + ";URI=" + id}
	} else {
		h[sourceAuthn] = []string{"none"}
	}
	if decisionID != "" {
		h[DecisionID] = []string{decisionID}
	}
	if p.IP != "" {
		// One field line, so that a reader of the last line reads the whole list.
		list := p.IP
		if before := h[forwardedFor]; len(before) > 0 {
			list = strings.Join(before, ", ") + ", " + p.IP
		}
		h[forwardedFor] = []string{list}
	}
}

// headerValues shows http.Header, whose names are canonical, under lower-case
// names. Reserved names, which the enforcement point itself sets after the
// decision, are not part of the input.
type headerValues struct{ h http.Header }

// Get implements policy.Values.
func (v headerValues) Get(name string) []string {
	if Reserved(name) {
		return nil
	}
	var buf [64]byte
	if len(name) > len(buf) {
		if name != strings.ToLower(name) {
			return nil
		}
		return v.h[http.CanonicalHeaderKey(name)]
	}
	upper := true
	for i := range len(name) {
		c := name[i]
		switch {
		case upper && 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		case 'A' <= c && c <= 'Z':
			return nil // not lower case, so no name of the input
		}
		buf[i] = c
		upper = c == '-'
	}
	return v.h[string(buf[:len(name)])]
}

// Each implements policy.Values.
func (v headerValues) Each(f func(name string, values []string) bool) {
	for name, values := range v.h {
		if len(values) == 0 || Reserved(name) {
			continue
		}
		if !f(strings.ToLower(name), values) {
			return
		}
	}
}
