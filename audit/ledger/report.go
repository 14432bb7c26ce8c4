package ledger

import (
	"fmt"
	"time"
)

// Kind names what is wrong with evidence.
type Kind string

// The kinds of Problem.
const (
	// Altered: the bytes of a record are not those that were recorded.
	Altered Kind = "altered"
	// Missing: records were taken out.
	Missing Kind = "missing"
	// Added: a record stands where none belongs.
	Added Kind = "added"
	// Reordered: records stand in another order than they were stored in.
	Reordered Kind = "reordered"
	// Truncated: a signed head covers more than there is.
	Truncated Kind = "truncated"
	// Rewritten: everything fits together, but not with what was signed.
	Rewritten Kind = "rewritten"
	// Uncovered: records after the last signed head. The ledger did not stop
	// cleanly, or they were added.
	Uncovered Kind = "uncovered"
	// BadHead: a head is not signed by the key, or contradicts another.
	BadHead Kind = "head"
	// BadGap: the signature of a gap event does not verify.
	BadGap Kind = "gap"
)

// Problem is one thing found, and where. What is not known is left out.
type Problem struct {
	Kind     Kind   `json:"kind"`
	SPIFFEID string `json:"spiffe_id,omitempty"`
	Instance string `json:"instance,omitempty"`
	Epoch    uint32 `json:"epoch,omitempty"`
	// Sequence of the first record concerned, and how many records are.
	Sequence uint64 `json:"sequence,omitempty"`
	Count    uint64 `json:"count,omitempty"`
	// Time of the record, or of the last one before it that is in place.
	Time *time.Time `json:"time,omitempty"`
	// Index of the entry in the ledger.
	Index  uint64 `json:"index"`
	File   string `json:"file,omitempty"`
	Detail string `json:"detail"`
}

func (p Problem) String() string {
	s := string(p.Kind) + ": " + p.Detail
	if p.SPIFFEID != "" {
		s += fmt.Sprintf("\n  stream %s (instance %s) epoch %d sequence %d", p.SPIFFEID, p.Instance, p.Epoch, p.Sequence)
		if p.Count > 1 {
			s += fmt.Sprintf("-%d", p.Sequence+p.Count-1)
		}
	}
	if p.Time != nil {
		s += "\n  time " + p.Time.Format(time.RFC3339Nano)
	}
	if p.File != "" {
		s += fmt.Sprintf("\n  file %s, entry %d", p.File, p.Index)
	}
	return s
}

// HeadReport is a signed head as a report shows it.
type HeadReport struct {
	Size uint64    `json:"size"`
	Root []byte    `json:"root"`
	Time time.Time `json:"time"`
}

// StreamReport is what evidence holds of one stream.
type StreamReport struct {
	SPIFFEID string `json:"spiffe_id"`
	Instance string `json:"instance"`
	Epoch    uint32 `json:"epoch"`
	Sequence uint64 `json:"sequence"`
	Records  uint64 `json:"records"`
	// Gaps are the stream's own statements that it lost records, Lost their
	// count as far as known.
	Gaps uint64 `json:"gaps"`
	Lost uint64 `json:"lost"`
}

// Report is what verification found.
type Report struct {
	OK      bool   `json:"ok"`
	Entries uint64 `json:"entries"`
	Events  uint64 `json:"events"`
	// Erased are those of Events of which only the hash is left. The signed
	// heads still cover them; who erased them, and why, they do not tell.
	Erased  uint64         `json:"erased,omitempty"`
	Streams []StreamReport `json:"streams"`
	// Heads that verify, and the last of them: evidence is complete up to its
	// time, and nothing in it says what came after.
	Heads    int         `json:"heads"`
	LastHead *HeadReport `json:"last_head,omitempty"`
	// Live is true when the directory is in use; what follows the last head
	// is then still to be signed.
	Live bool `json:"live"`
	// Uncovered entries follow the last head.
	Uncovered uint64    `json:"uncovered"`
	Problems  []Problem `json:"problems"`
	// Notes are no fault of the evidence: losses that are on record, gaps
	// without a signature, pauses between heads.
	Notes []string `json:"notes"`
}
