package registry

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// digestVersion begins what a digest is of. Whoever adds a field to Entry that
// decides something adds it to appendCanonical and changes this.
const digestVersion = "writ registry entry 1\n"

// Digest is SHA-256 of everything that the entry is, the ID, the revision and the
// time of its making included. It is on record with each act that makes, changes
// or ends an entry. The entry is normalized.
func (e *Entry) Digest() [sha256.Size]byte {
	var buf [1024]byte
	return sha256.Sum256(e.appendCanonical(buf[:0]))
}

// appendCanonical appends the one encoding of an entry: the fields in the order
// below; numbers as 8 bytes, big-endian; text after its length; a list after
// its number of items; lives in seconds and times in Unix seconds, 0 for none.
func (e *Entry) appendCanonical(doc []byte) []byte {
	number := func(n int64) { doc = binary.BigEndian.AppendUint64(doc, uint64(n)) }
	text := func(s string) {
		number(int64(len(s)))
		doc = append(doc, s...)
	}
	list := func(items []string) {
		number(int64(len(items)))
		for _, s := range items {
			text(s)
		}
	}
	flag := func(set bool) {
		if set {
			doc = append(doc, 1)
		} else {
			doc = append(doc, 0)
		}
	}
	doc = append(doc, digestVersion...)
	text(e.ID)
	text(e.SPIFFEID.String())
	text(e.ParentID.String())
	number(int64(len(e.Selectors)))
	for _, s := range e.Selectors {
		text(s.Type)
		text(s.Value)
	}
	number(int64(e.X509SVIDTTL / time.Second))
	number(int64(e.JWTSVIDTTL / time.Second))
	list(e.FederatesWith)
	list(e.DNSNames)
	flag(e.Admin)
	flag(e.Downstream)
	flag(e.StoreSVID)
	text(e.Hint)
	number(unixOrZero(e.ExpiresAt))
	number(e.RevisionNumber)
	number(unixOrZero(e.CreatedAt))
	return doc
}
