package ledger

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/writ-dev/writ/audit"
)

// tree is the right edge of the Merkle tree (RFC 6962 section 2.1) over all
// entries.
type tree struct{ r *compact.Range }

func factory() *compact.RangeFactory {
	return &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
}

func newTree() tree { return tree{factory().NewEmptyRange(0)} }

func restoreTree(size uint64, hashes [][]byte) (tree, error) {
	r, err := factory().NewRange(0, size, hashes)
	if err != nil {
		return tree{}, fmt.Errorf("restore tree: %w", err)
	}
	return tree{r}, nil
}

func (t tree) size() uint64 { return t.r.End() }

// hashes is a copy that later additions do not change.
func (t tree) hashes() [][]byte { return slices.Clone(t.r.Hashes()) }

func (t tree) clone() tree {
	// The hashes are those of a valid range of this size.
	c, err := restoreTree(t.size(), t.hashes())
	if err != nil {
		panic(err)
	}
	return c
}

func (t tree) add(leaf []byte) {
	// Append fails only for a range that does not begin where this one ends.
	if err := t.r.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
		panic(err)
	}
}

func (t tree) root() (h audit.Hash) {
	if t.size() == 0 {
		return audit.Hash(rfc6962.DefaultHasher.EmptyRoot())
	}
	root, err := t.r.GetRootHash(nil)
	if err != nil {
		// It fails only for a range that does not begin at 0.
		panic(err)
	}
	return audit.Hash(root)
}

const (
	recordLeaf = "writ ledger record v1\x00"
	resumeLeaf = "writ ledger resume v1\x00"
)

// leafOf is what the tree holds of a record: which one it is, when it arrived,
// and its salted hash. The event is not in it, so that one can be erased.
func leafOf(b []byte, start audit.Hash, sequence uint64, received int64, salted, chain audit.Hash) []byte {
	b = append(append(b, recordLeaf...), start[:]...)
	b = binary.BigEndian.AppendUint64(b, sequence)
	b = binary.BigEndian.AppendUint64(b, uint64(received))
	b = append(b, salted[:]...)
	return append(b, chain[:]...)
}

func leafOfResume(b []byte, f *resume) []byte {
	start := audit.ChainStart(f.stream, f.at.Epoch)
	b = append(append(b, resumeLeaf...), start[:]...)
	b = binary.BigEndian.AppendUint64(b, f.at.Sequence)
	b = binary.BigEndian.AppendUint64(b, uint64(f.received))
	return append(b, f.at.Chain[:]...)
}

func sortedStreams[V any](m map[audit.Stream]V) []audit.Stream {
	return slices.SortedFunc(maps.Keys(m), func(a, b audit.Stream) int {
		return cmp.Or(cmp.Compare(a.SPIFFEID, b.SPIFFEID), cmp.Compare(a.Instance, b.Instance))
	})
}
