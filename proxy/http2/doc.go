// Package http2 serves HTTP/2 and speaks it to an application or to another
// sidecar, on connections that somebody else has secured. There is no upgrade
// from HTTP/1.1: both ends know what they speak (RFC 9113, sections 3.2
// and 3.3).
package http2
