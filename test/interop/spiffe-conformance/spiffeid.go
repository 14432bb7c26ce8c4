package main

import (
	"crypto/x509"
	"net/url"
	"regexp"
	"strings"
)

var (
	trustDomainName = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
	pathSegment     = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)
)

// checkID judges a SPIFFE ID and gives its trust domain and path.
func (r *Report) checkID(text string) (trustDomain, path string) {
	rest, ok := strings.CutPrefix(text, "spiffe://")
	r.Say("id-scheme", ok && !strings.ContainsAny(rest, "?#@:"), "%q", text)
	trustDomain, path, _ = strings.Cut(rest, "/")
	if strings.Contains(rest, "/") {
		path = "/" + path
	}
	r.Say("id-trust-domain", trustDomainName.MatchString(trustDomain), "%q", text)
	r.Say("id-path", path == "" || validPath(path), "%q", text)
	r.Say("id-length", len(text) <= 2048, "%d bytes", len(text))
	return trustDomain, path
}

func validPath(path string) bool {
	for _, segment := range strings.Split(path[1:], "/") {
		if !pathSegment.MatchString(segment) || segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

// isTrustDomainID tells whether text is spiffe://TD and nothing more.
func isTrustDomainID(text string) bool {
	td, ok := strings.CutPrefix(text, "spiffe://")
	return ok && trustDomainName.MatchString(td)
}

// uriSANs are the URIs of a certificate, as they are in it.
func uriSANs(cert *x509.Certificate) []string {
	var all []string
	for _, u := range cert.URIs {
		all = append(all, (*url.URL)(u).String())
	}
	return all
}
