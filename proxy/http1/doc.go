// Package http1 serves HTTP/1.1 and speaks it to an application, on
// connections that somebody else has secured.
//
// It stands on net/http, whose reading of a message is strict where two
// readers could disagree (RFC 9112, sections 2.2, 5.1, 6.1, 6.3, 11.2), and
// adds what net/http answers by itself without asking anybody: a request head
// that it refuses is put on record and answered with a decision id like any
// other refusal.
package http1
