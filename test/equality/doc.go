// Package equality holds the compiled form of policies against OPA's own
// evaluation of them: for every generated policy and input, for the library,
// the examples and OPA's conformance cases, both give the same decision down to
// the rules' lines. There is nothing in it but tests.
package equality
