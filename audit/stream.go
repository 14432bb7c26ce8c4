package audit

import (
	"fmt"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit/auditv1"
)

// Stream names one recorder: who writes, and which of its spools.
type Stream struct {
	SPIFFEID string
	// Instance is a UUID kept with the spool, in its canonical form.
	Instance string
}

// NewStream checks both parts.
func NewStream(id, instance string) (Stream, error) {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return Stream{}, fmt.Errorf("stream %q: %w", id, err)
	}
	u, err := uuid.Parse(instance)
	if err != nil || u.String() != instance {
		return Stream{}, fmt.Errorf("stream %s: instance %q is not a UUID", id, instance)
	}
	return Stream{SPIFFEID: parsed.String(), Instance: instance}, nil
}

// Proto is s as a message.
func (s Stream) Proto() *auditv1.Stream {
	return &auditv1.Stream{SpiffeId: s.SPIFFEID, Instance: s.Instance}
}

func (s Stream) String() string { return s.SPIFFEID + "#" + s.Instance }

// Position is how far a stream has come: the last sequence of an epoch, and
// the chain value after it. Sequence 0 is the start of the epoch.
type Position struct {
	Epoch    uint32
	Sequence uint64
	Chain    Hash
}

// Start is the position before the first record of an epoch.
func (s Stream) Start(epoch uint32) Position {
	return Position{Epoch: epoch, Chain: ChainStart(s, epoch)}
}

// Batch is a run of records of one epoch, hashed.
type Batch struct {
	Stream Stream
	Epoch  uint32
	// First is the sequence of Records[0].
	First   uint64
	Records []*auditv1.Record
	// Hashes holds the salted hash of each record.
	Hashes []Hash
	// Prev and Last are the chain before the first and after the last record.
	Prev, Last Hash
}

// Hash fills Hashes, Prev and Last of b for the chain value prev.
func (b *Batch) Hash(prev Hash) error {
	var h Hasher
	b.Prev = prev
	b.Hashes = make([]Hash, len(b.Records))
	for i, r := range b.Records {
		if len(r.Salt) != SaltSize {
			return fmt.Errorf("record %d of %s: salt of %d bytes, want %d", b.First+uint64(i), b.Stream, len(r.Salt), SaltSize)
		}
		b.Hashes[i] = h.Salted([SaltSize]byte(r.Salt), r.Event)
		prev = ChainNext(prev, b.Hashes[i])
	}
	b.Last = prev
	return nil
}
