// Package mtls makes connections between workloads: TLS 1.3 with an X509-SVID
// on both sides, verified against the trust bundle at every handshake.
//
// SVID and bundle are read from a source at each handshake, so a rotation
// touches no open connection. Session tickets are off: a resumed session would
// carry an identity that nobody has looked at again.
package mtls
