package audit

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"hash"
)

// SaltSize is the size of a record's salt in bytes.
const SaltSize = 16

// Hash is a SHA-256 digest.
type Hash = [sha256.Size]byte

// Domains of the hashes: no value of one kind can pass as one of another.
const (
	chainStartDomain = "writ audit chain start v1\x00"
	chainDomain      = "writ audit chain v1\x00"
	saltedDomain     = "writ audit record v1\x00"
	decisionSeed     = "writ decision seed v1\x00"
	// 15 bytes, so that domain, seed and sequence fit in one SHA-256 block.
	decisionDomain = "writ/decision/1"
)

// ChainStart is h(0) of an epoch.
func ChainStart(s Stream, epoch uint32) Hash {
	return epochHash(chainStartDomain, s, epoch)
}

// ChainNext is h(n), from h(n-1) and the salted hash of record n.
func ChainNext(prev, salted Hash) Hash {
	var b [len(chainDomain) + 2*sha256.Size]byte
	n := copy(b[:], chainDomain)
	n += copy(b[n:], prev[:])
	copy(b[n:], salted[:])
	return sha256.Sum256(b[:])
}

// Hasher hashes records without allocating. The zero Hasher is ready; it is
// not safe for concurrent use.
type Hasher struct {
	h   hash.Hash
	out []byte
}

// Salted is the salted hash of a record, over its bytes as they were written.
func (h *Hasher) Salted(salt [SaltSize]byte, event []byte) Hash {
	if h.h == nil {
		h.h = sha256.New()
	}
	h.h.Reset()
	h.out = append(append(h.out[:0], saltedDomain...), salt[:]...)
	h.h.Write(h.out)
	h.h.Write(event)
	h.out = h.h.Sum(h.out[:0])
	return Hash(h.out)
}

// epochHash hashes the name of an epoch; lengths keep the parts apart.
func epochHash(domain string, s Stream, epoch uint32) Hash {
	b := make([]byte, 0, 256)
	b = append(b, domain...)
	b = appendSized(b, s.SPIFFEID)
	b = appendSized(b, s.Instance)
	b = binary.BigEndian.AppendUint32(b, epoch)
	return sha256.Sum256(b)
}

func appendSized(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// decisionIDSize is 128 bits in base32 without padding.
const decisionIDSize = 26

// DecisionIDs derives the decision ids of one epoch. An id tells nothing to
// those who do not know the stream's instance, and can be derived again by
// those who do.
type DecisionIDs struct{ seed Hash }

// NewDecisionIDs prepares the ids of an epoch.
func NewDecisionIDs(s Stream, epoch uint32) DecisionIDs {
	return DecisionIDs{seed: epochHash(decisionSeed, s, epoch)}
}

// Append appends the id of a sequence: the first 128 bits of a SHA-256, in
// lower-case base32 (RFC 4648 section 6) without padding.
func (d *DecisionIDs) Append(b []byte, sequence uint64) []byte {
	var in [len(decisionDomain) + sha256.Size + 8]byte
	n := copy(in[:], decisionDomain)
	n += copy(in[n:], d.seed[:])
	binary.BigEndian.PutUint64(in[n:], sequence)
	sum := sha256.Sum256(in[:])
	var out [decisionIDSize]byte
	lowerBase32.Encode(out[:], sum[:16])
	return append(b, out[:]...)
}

// At is the id of a sequence.
func (d *DecisionIDs) At(sequence uint64) string {
	return string(d.Append(make([]byte, 0, decisionIDSize), sequence))
}

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
