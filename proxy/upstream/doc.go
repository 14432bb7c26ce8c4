// Package upstream is the way from an application out to the services it
// calls: a local listener that admits only the application's own user, and a
// pool of mutual TLS connections to one address with one SPIFFE ID.
package upstream
