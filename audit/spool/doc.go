// Package spool is the recorder on the request path: it commits events to
// preallocated, memory-mapped segment files and keeps them until a collector
// has made them durable elsewhere.
//
// A record is committed when its length word is stored, after everything else
// of it. What is committed is in the page cache: it survives the death of the
// process, kill -9 included, and the next process continues the epoch. A
// machine that dies may lose what the kernel had not yet written, so the first
// start after a boot without a clean stop opens a new epoch, with a gap event
// that says so.
//
// Hashing is not done here but by the Reader, off the request path.
package spool
