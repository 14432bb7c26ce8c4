package main

import (
	"fmt"
	"strings"
)

// Results of a check.
const (
	Pass      = "pass"
	Fail      = "fail"
	NotTested = "not tested"
)

// Check is one demand of a standard and whether it holds.
type Check struct {
	ID      string `json:"id"`
	Section string `json:"section"`
	// Level is MUST or SHOULD.
	Level  string `json:"level"`
	Title  string `json:"title"`
	Result string `json:"result"`
	Found  string `json:"found,omitempty"`
}

// Report holds every check, looked at or not.
type Report struct {
	Checks []*Check `json:"checks"`
	byID   map[string]*Check
}

// NewReport has all checks, none of them tested.
func NewReport() *Report {
	r := &Report{byID: map[string]*Check{}}
	for _, line := range strings.Split(strings.TrimSpace(checks), "\n") {
		f := strings.SplitN(line, " | ", 4)
		c := &Check{ID: f[0], Section: f[1], Level: f[2], Title: f[3], Result: NotTested}
		r.Checks = append(r.Checks, c)
		r.byID[c.ID] = c
	}
	return r
}

// Say records that a check holds, or what was found instead. A check that was
// made several times fails with the first that did not hold.
func (r *Report) Say(id string, ok bool, format string, args ...any) {
	c := r.byID[id]
	if c == nil {
		panic("no check is called " + id)
	}
	switch {
	case c.Result == Fail:
	case ok:
		c.Result = Pass
	default:
		c.Result, c.Found = Fail, fmt.Sprintf(format, args...)
	}
}

// Skip says why a check was not made.
func (r *Report) Skip(why string, ids ...string) {
	for _, id := range ids {
		if c := r.byID[id]; c.Result == NotTested {
			c.Found = why
		}
	}
}

// Failed tells whether a MUST does not hold.
func (r *Report) Failed() bool {
	for _, c := range r.Checks {
		if c.Result == Fail && c.Level == "MUST" {
			return true
		}
	}
	return false
}

// checks are: name, standard and section, level, demand.
const checks = `
endpoint-header | Workload Endpoint 6 | MUST | a request without the security header is InvalidArgument
endpoint-header-other | Workload Endpoint 6 | MUST | a security header that is not true is InvalidArgument
endpoint-no-tls-client | Workload Endpoint 5 | MUST | no direct authentication of the client is asked for
endpoint-denied | Workload Endpoint 6 | SHOULD | no identity for the caller is PermissionDenied
x509-prompt | Workload API 4.3 | MUST | the first message of a stream comes without delay
x509-svids | Workload API 5.2.1 | MUST | at least one X509-SVID
x509-mandatory | Workload API 5.2.1 | MUST | SPIFFE ID, certificate, key and bundle are set in each
x509-hints | Workload API 5.2.1 | MUST | hints are unique in a message
x509-whole | Workload API 4.3 | MUST | each message holds the whole state
x509-bundles-own | Workload API 5.2.2 | MUST | FetchX509Bundles has the own trust domain's bundle
x509-bundles-keys | Workload API 5.2.2 | MUST | bundles are keyed by the SPIFFE ID of a trust domain
x509-bundles-same | Workload API 5.2.1 | MUST | both RPCs give the same bundle for the own trust domain
id-scheme | SPIFFE-ID 2 | MUST | scheme spiffe, no query, fragment, user or port
id-trust-domain | SPIFFE-ID 2.1 | MUST | trust domain of lower-case letters, digits, dots, dashes, underscores; at most 255 bytes
id-path | SPIFFE-ID 2.2 | MUST | path of non-empty segments of letters, digits, dots, dashes, underscores; none is . or ..
id-length | SPIFFE-ID 2.3 | MUST | at most 2048 bytes
svid-uri | X509-SVID 2 | MUST | exactly one URI SAN, the SPIFFE ID that the API names
svid-san-critical | RFC 5280 4.2.1.6 | MUST | the SAN extension is critical where the subject is empty
svid-path | X509-SVID 5.2 | MUST | the leaf's SPIFFE ID has a path
svid-leaf | X509-SVID 4.1 | MUST | the leaf is no CA
svid-key-usage-critical | X509-SVID 4.3 | MUST | key usage is present and critical, in leaf and authorities
svid-key-usage | X509-SVID 4.3 | MUST | the leaf has digitalSignature, neither keyCertSign nor cRLSign
svid-eku | X509-SVID 4.4 | MUST | extended key usage, where present, has serverAuth and clientAuth
svid-eku-present | X509-SVID 4.4 | SHOULD | extended key usage is present
svid-key | Workload API 5.1 | MUST | the private key is PKCS#8 and belongs to the leaf
svid-chain | X509-SVID 5.1 | MUST | the chain verifies with the bundle
svid-time | X509-SVID 5.1 | MUST | the SVID is valid now
ca-basic | X509-SVID 4.1 | MUST | each authority is a CA
ca-key-usage | X509-SVID 4.3 | MUST | each authority has keyCertSign
ca-path | X509-SVID 3.2 | MUST | an authority's SPIFFE ID, where it has one, has no path and is of its trust domain
ca-id | X509-SVID 3.2 | SHOULD | an authority has a SPIFFE ID
ca-self-signed | X509-SVID 6.1 | SHOULD | an authority in the bundle is self-signed
jwt-svids | Workload API 6.2.1 | MUST | at least one JWT-SVID, each with SPIFFE ID and token
jwt-all | Workload API 6.2.1 | MUST | without spiffe_id, one for each identity
jwt-one | Workload API 6.2.1 | MUST | with spiffe_id, that one
jwt-other | Workload API 6.2.1 | SHOULD | for an identity that is another's: PermissionDenied
jwt-no-audience | Workload API 4.5 | SHOULD | without audience: InvalidArgument
jwt-hints | Workload API 6.2.1 | MUST | hints are unique in a message
jwt-compact | JWT-SVID 5.1 | MUST | compact serialization
jwt-alg | JWT-SVID 2.1 | MUST | alg is one of RS, ES, PS with 256, 384, 512
jwt-typ | JWT-SVID 2.3 | MUST | typ, where set, is JWT or JOSE
jwt-header | JWT-SVID 2 | MUST | no header beyond alg, kid, typ
jwt-sub | JWT-SVID 3.1 | MUST | sub is the SPIFFE ID
jwt-aud | JWT-SVID 3.2 | MUST | aud is what was asked for
jwt-exp | JWT-SVID 3.3 | MUST | exp is set, and ahead
jwt-signature | JWT-SVID 4 | MUST | the signature verifies with the bundle's key
jwt-bundles-own | Workload API 6.2.2 | MUST | FetchJWTBundles has the own trust domain's keys
jwt-bundles-use | Workload API 6.2.2 | MUST | no key of another use
jwt-bundles-kid | JWT-SVID 6.1 | MUST | each key has a kid
jwt-validate | Workload API 6.2.3 | MUST | ValidateJWTSVID takes the token, with its SPIFFE ID and claims
jwt-validate-audience | Workload API 6.2.3 | MUST | ... and refuses it for another audience
jwt-validate-tampered | Workload API 6.2.3 | MUST | ... and refuses it with another signature
jwt-validate-none | Workload API 6.2.3 | MUST | ... and refuses alg none
jwt-validate-empty | Workload API 4.5 | SHOULD | ... and an empty token or audience is InvalidArgument
bundle-https | Federation 5.2 | MUST | the endpoint is https, its URL without user
bundle-web | Federation 5.2.1 | MUST | https_web: the certificate is the host's
bundle-spiffe | Federation 5.2.2 | MUST | https_spiffe: the certificate is an X509-SVID of the endpoint's SPIFFE ID, verified with the bundle
bundle-get | Federation 5.1 | MUST | GET answers 200 with a JWK Set
bundle-keys | Bundle 4.1.3 | MUST | keys is present
bundle-sequence | Bundle 4.1.1 | SHOULD | spiffe_sequence is an integer
bundle-sequence-grows | Bundle 4.1.1 | MUST | the sequence never falls, and differs where the content does
bundle-hint | Bundle 4.1.2 | SHOULD | spiffe_refresh_hint is an integer of seconds
bundle-kty | Bundle 4.2.1 | MUST | each key has a kty
bundle-use | Bundle 4.2.2 | MUST | each key has a use
bundle-x509-kid | X509-SVID 6.1 | MUST | x509-svid keys have no kid
bundle-x509-x5c | X509-SVID 6.1 | MUST | x509-svid keys have exactly one certificate in x5c, whose key it is
bundle-jwt-kid | JWT-SVID 6.1 | MUST | jwt-svid keys have a kid
bundle-private | RFC 7517 9.3 | MUST | no private key
bundle-workload | Bundle 3 | MUST | the endpoint and the Workload API have an authority in common
`
