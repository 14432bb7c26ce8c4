// Package ledger is the collector's append-only store of audit records, and
// the offline verifier of what it stores.
//
// Every record is a leaf of one RFC 6962 Merkle tree, whose head is signed as
// a C2SP checkpoint (tlog-checkpoint, signed-note) after activity, as a
// heartbeat, and at a clean stop. Each stream is a hash chain besides, so that
// a fault is named by stream, epoch and sequence.
//
// A directory holds segment files, the heads, and the verifier key. Nothing in
// it is ever changed or deleted: at its cap the ledger stops acknowledging.
package ledger
