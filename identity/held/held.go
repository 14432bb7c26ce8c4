// Package held sums up a list of entries, so that an agent and an issuer can tell
// by a few bytes whether they have the same one.
package held

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// Sum makes the digest of a list of entries. Add them in the order of their IDs.
type Sum struct {
	h      hash.Hash
	prefix [2 * binary.MaxVarintLen64]byte
}

// NewSum returns the Sum of an empty list.
func NewSum() *Sum { return &Sum{h: sha256.New()} }

// Add adds an entry: its ID, and the tag that stands for its content.
func (s *Sum) Add(id string, tag []byte) {
	prefix := binary.AppendUvarint(s.prefix[:0], uint64(len(id)))
	s.h.Write(binary.AppendUvarint(prefix, uint64(len(tag))))
	s.h.Write([]byte(id))
	s.h.Write(tag)
}

// Digest is the digest of what was added: SHA-256 over the lengths of ID and tag
// as varints, the ID and the tag of each.
func (s *Sum) Digest() [sha256.Size]byte { return [sha256.Size]byte(s.h.Sum(nil)) }
