// Package collect takes audit records from spools to a ledger: Ship is the
// client, Server serves auditv1.Ingest on the control listener.
//
// A connection is one epoch of one stream. The recorder says what it holds, the
// collector says where it is, and records follow in batches, each with the
// chain value after it. The collector acknowledges what is durable; only then
// does the spool let go of it.
package collect
