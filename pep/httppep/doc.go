// Package httppep is the enforcement point for net/http: a handler that
// decides and records each request before the next handler sees it. The
// sidecar stands on it, and a Go program can put it in front of its own mux
// behind a tls.Config of proxy/mtls.
//
// The next handler finds the caller in the headers writ-source-id,
// writ-source-trust-domain, writ-source-authn, writ-decision-id and
// x-forwarded-client-cert. They are always ours: what a client sends under
// these names, in any spelling that some server could take for them, is gone
// before the decision.
package httppep
