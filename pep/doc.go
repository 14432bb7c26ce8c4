// Package pep is the enforcement point without a transport: it decides, puts
// the decision on record, and only then says yes or no.
//
// A transport fills a policy.Input from a verified Peer and the head of a
// request, calls Enforce, and obeys the Result. What cannot be decided at all
// (a malformed request, a connection without an identity) goes through Refuse,
// so that it is on record as well. There is no way to a yes without a record.
package pep
