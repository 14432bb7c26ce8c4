// Package proxy is the sidecar of one workload.
//
// Inbound it terminates mTLS, has pep decide and record each request, and then
// forwards it to the application or refuses it. Outbound it takes plain
// requests from its own application on loopback and carries them by mTLS to a
// peer whose SPIFFE ID it checks. The transports are in http1 and http2, TLS in
// mtls, the way out in upstream.
package proxy
