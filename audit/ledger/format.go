package ledger

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// A segment file is a magic and frames. A frame is the length of its payload
// u32, CRC-32C of the payload u32, payload; all numbers are little endian. The
// first frame of a segment is a state, so that the ledger opens by reading its
// last segment only.
const (
	segmentMagic = "WRITLDG1"
	segmentExt   = ".seg"
	frameHead    = 8
	// maxFrame bounds what a reader believes.
	maxFrame = 64 << 20

	typeState  = 1
	typeBatch  = 2
	typeResume = 3

	recordHead = 4 + audit.SaltSize + len(audit.Hash{})
)

var (
	// errTorn: the file ends inside a frame.
	errTorn = errors.New("the file ends inside a frame")
	// errChecksum: the frame does not match its checksum.
	errChecksum = errors.New("checksum does not match")
	errFormat   = errors.New("malformed")
)

var le = binary.LittleEndian

func castagnoli(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// beginFrame leaves room for the head of a frame; endFrame fills it in.
func beginFrame(b []byte) ([]byte, int) {
	return append(b, make([]byte, frameHead)...), len(b)
}

func endFrame(b []byte, start int) []byte {
	payload := b[start+frameHead:]
	le.PutUint32(b[start:], uint32(len(payload)))
	le.PutUint32(b[start+4:], castagnoli(payload))
	return b
}

// frameReader reads the frames of one segment.
type frameReader struct {
	r *bufio.Reader
	// off is where the next frame begins, size where the segment ends.
	off, size int64
	buf       []byte
}

// newFrameReader reads the segment of size bytes in r. From is 0, or where a
// frame begins.
func newFrameReader(r io.ReaderAt, from, size int64) (*frameReader, error) {
	if from == 0 {
		var magic [len(segmentMagic)]byte
		if _, err := r.ReadAt(magic[:], 0); err != nil || string(magic[:]) != segmentMagic || size < int64(len(magic)) {
			return nil, fmt.Errorf("%w: no segment magic", errFormat)
		}
		from = int64(len(segmentMagic))
	}
	section := io.NewSectionReader(r, from, max(size-from, 0))
	return &frameReader{r: bufio.NewReaderSize(section, 256<<10), off: from, size: size}, nil
}

// next returns a payload that is valid until the next call. After errChecksum
// it is the payload as found, and reading may go on.
func (f *frameReader) next() ([]byte, error) {
	if f.off == f.size {
		return nil, io.EOF
	}
	var head [frameHead]byte
	if f.size-f.off < frameHead {
		return nil, errTorn
	}
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	n := int64(le.Uint32(head[:]))
	if n == 0 || n > maxFrame {
		return nil, fmt.Errorf("%w: frame of %d bytes", errFormat, n)
	}
	if f.size-f.off-frameHead < n {
		return nil, errTorn
	}
	if int64(cap(f.buf)) < n {
		f.buf = make([]byte, n)
	}
	payload := f.buf[:n]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	f.off += frameHead + n
	if castagnoli(payload) != le.Uint32(head[4:]) {
		return payload, errChecksum
	}
	return payload, nil
}

// decoder reads fields and remembers that one was missing.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.bad, d.b = true, nil
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return le.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return le.Uint64(b)
	}
	return 0
}

func (d *decoder) hash() (h audit.Hash) {
	copy(h[:], d.take(len(h)))
	return h
}

func (d *decoder) text() string {
	b := d.take(2)
	if b == nil {
		return ""
	}
	return string(d.take(int(le.Uint16(b))))
}

func appendText(b []byte, s string) []byte {
	return append(le.AppendUint16(b, uint16(len(s))), s...)
}

// stored is one record at rest. One that was erased has an empty event, which
// no recorder writes, and a salt of zeros; its salted hash stays.
type stored struct {
	salt, event []byte
	hash        audit.Hash
}

func (r *stored) erased() bool {
	return len(r.event) == 0 && [audit.SaltSize]byte(r.salt) == [audit.SaltSize]byte{}
}

// batch is a run of records of one stream as it was received.
type batch struct {
	// index of the first record in the tree.
	index uint64
	// received, nanoseconds since the Unix epoch.
	received int64
	stream   audit.Stream
	epoch    uint32
	first    uint64
	prev     audit.Hash
	records  []stored
}

func appendBatchHead(b []byte, f *batch, count int) []byte {
	b = append(b, typeBatch)
	b = le.AppendUint64(b, f.index)
	b = le.AppendUint64(b, uint64(f.received))
	b = le.AppendUint32(b, f.epoch)
	b = le.AppendUint64(b, f.first)
	b = le.AppendUint32(b, uint32(count))
	b = appendText(b, f.stream.SPIFFEID)
	b = appendText(b, f.stream.Instance)
	return append(b, f.prev[:]...)
}

func appendStored(b []byte, r *auditv1.Record, hash *audit.Hash) []byte {
	b = le.AppendUint32(b, uint32(len(r.Event)))
	b = append(b, r.Salt...)
	b = append(b, hash[:]...)
	return append(b, r.Event...)
}

// parseBatch reads a batch into f, which points into payload afterwards. On an
// error f holds what could be read.
func parseBatch(payload []byte, f *batch) error {
	d := decoder{b: payload}
	d.take(1)
	*f = batch{records: f.records[:0]}
	f.index, f.received = d.u64(), int64(d.u64())
	f.epoch, f.first = d.u32(), d.u64()
	count := d.u32()
	f.stream = audit.Stream{SPIFFEID: d.text(), Instance: d.text()}
	f.prev = d.hash()
	for range count {
		if d.bad {
			break
		}
		n := d.u32()
		r := stored{salt: d.take(audit.SaltSize), hash: d.hash()}
		if n > audit.MaxEventBytes {
			d.bad = true
			break
		}
		if r.event = d.take(int(n)); !d.bad {
			f.records = append(f.records, r)
		}
	}
	if d.bad || len(d.b) != 0 || count == 0 || f.first == 0 || f.epoch == 0 || f.first+uint64(count) < f.first {
		return fmt.Errorf("%w: batch", errFormat)
	}
	return nil
}

// resume says that a stream goes on at a position whose past this ledger does
// not hold: it was restored from a copy, or made anew.
type resume struct {
	index    uint64
	received int64
	stream   audit.Stream
	at       audit.Position
}

func appendResume(b []byte, f *resume) []byte {
	b = append(b, typeResume)
	b = le.AppendUint64(b, f.index)
	b = le.AppendUint64(b, uint64(f.received))
	b = le.AppendUint32(b, f.at.Epoch)
	b = le.AppendUint64(b, f.at.Sequence)
	b = appendText(b, f.stream.SPIFFEID)
	b = appendText(b, f.stream.Instance)
	return append(b, f.at.Chain[:]...)
}

func parseResume(payload []byte) (resume, error) {
	d := decoder{b: payload}
	d.take(1)
	f := resume{index: d.u64(), received: int64(d.u64())}
	f.at.Epoch, f.at.Sequence = d.u32(), d.u64()
	f.stream = audit.Stream{SPIFFEID: d.text(), Instance: d.text()}
	f.at.Chain = d.hash()
	if d.bad || len(d.b) != 0 || f.at.Epoch == 0 {
		return f, fmt.Errorf("%w: resume", errFormat)
	}
	return f, nil
}

// state is everything needed to go on from the start of a segment.
type state struct {
	id       [16]byte
	received int64
	tree     tree
	streams  map[audit.Stream]position
}

// position is how far a stream has come, and how many of its records are known
// to be lost.
type position struct {
	audit.Position
	lost uint64
	// start is the name of the epoch in leaves.
	start audit.Hash
}

func appendState(b []byte, s *state) []byte {
	b = append(b, typeState)
	b = append(b, s.id[:]...)
	b = le.AppendUint64(b, s.tree.size())
	b = le.AppendUint64(b, uint64(s.received))
	hashes := s.tree.hashes()
	b = le.AppendUint32(b, uint32(len(hashes)))
	for _, h := range hashes {
		b = append(b, h...)
	}
	b = le.AppendUint32(b, uint32(len(s.streams)))
	for _, name := range sortedStreams(s.streams) {
		p := s.streams[name]
		b = appendText(b, name.SPIFFEID)
		b = appendText(b, name.Instance)
		b = le.AppendUint32(b, p.Epoch)
		b = le.AppendUint64(b, p.Sequence)
		b = append(b, p.Chain[:]...)
		b = le.AppendUint64(b, p.lost)
	}
	return b
}

func parseState(payload []byte) (*state, error) {
	bad := fmt.Errorf("%w: state", errFormat)
	if len(payload) == 0 || payload[0] != typeState {
		return nil, bad
	}
	d := decoder{b: payload[1:]}
	s := &state{streams: make(map[audit.Stream]position)}
	copy(s.id[:], d.take(16))
	size := d.u64()
	s.received = int64(d.u64())
	n := d.u32()
	if d.bad || n > 64 {
		return nil, bad
	}
	hashes := make([][]byte, n)
	for i := range hashes {
		h := d.hash()
		hashes[i] = h[:]
	}
	for range d.u32() {
		if d.bad {
			return nil, bad
		}
		name := audit.Stream{SPIFFEID: d.text(), Instance: d.text()}
		p := position{Position: audit.Position{Epoch: d.u32(), Sequence: d.u64(), Chain: d.hash()}, lost: d.u64()}
		p.start = audit.ChainStart(name, p.Epoch)
		s.streams[name] = p
	}
	if d.bad || len(d.b) != 0 {
		return nil, bad
	}
	var err error
	if s.tree, err = restoreTree(size, hashes); err != nil {
		return nil, fmt.Errorf("%w: %v", bad, err)
	}
	return s, nil
}
