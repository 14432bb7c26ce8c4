package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
)

// A segment file is a header and frames, little endian:
//
//	 0  magic, stored last when the segment is taken into use
//	 8  epoch u32, 4 bytes zero
//	16  sequence of the first record u64
//	24  instance, 16 bytes
//	40  CRC-32C of the 40 bytes before, 4 bytes zero
//	48  events dropped after the last record u64
//	56  1 when the chain is known u32; CRC-32C of the chain u32
//	64  chain value before the first record, 32 bytes
//	128 frames
//
// A frame is: length of the event u32 (stored last; 0 is the end), CRC-32C u32
// of salt and event, salt, event, zeros up to a multiple of 8.
const (
	headerSize  = 128
	frameHead   = 8 + audit.SaltSize
	sequenceLen = 10

	offEpoch    = 8
	offFirst    = 16
	offInstance = 24
	offCRC      = 40
	offDropped  = 48
	offKnown    = 56
	offChain    = 64
)

var magic = [8]byte{'W', 'R', 'I', 'T', 'S', 'P', 'L', '1'}

// crc is CRC-32C; MakeTable returns one shared table for this polynomial.
func crc(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// frameSize is the room that an event takes, its sequence included.
func frameSize(event int) int { return (frameHead + event + 7) &^ 7 }

var (
	errEnd     = errors.New("end of the segment")
	errDamaged = errors.New("damaged")
)

// frame reads the frame at off of a segment's bytes.
func frame(b []byte, off int) (salt, event []byte, next int, err error) {
	if off+frameHead > len(b) {
		return nil, nil, off, errEnd
	}
	n := int(binary.LittleEndian.Uint32(b[off:]))
	if n == 0 {
		return nil, nil, off, errEnd
	}
	if n > audit.MaxEventBytes || off+frameHead+n > len(b) {
		return nil, nil, off, fmt.Errorf("%w: frame of %d bytes at offset %d", errDamaged, n, off)
	}
	body := b[off+8 : off+frameHead+n]
	if crc(body) != binary.LittleEndian.Uint32(b[off+4:]) {
		return nil, nil, off, fmt.Errorf("%w: checksum at offset %d", errDamaged, off)
	}
	return body[:audit.SaltSize], body[audit.SaltSize:], min(off+frameSize(n), len(b)), nil
}

// header is what a segment says of itself.
type header struct {
	epoch      uint32
	first      uint64
	instance   [16]byte
	dropped    uint64
	chain      audit.Hash
	chainKnown bool
}

func (h *header) encode(b []byte) {
	binary.LittleEndian.PutUint32(b[offEpoch:], h.epoch)
	binary.LittleEndian.PutUint64(b[offFirst:], h.first)
	copy(b[offInstance:], h.instance[:])
	var signed [offCRC]byte
	copy(signed[:], magic[:])
	copy(signed[8:], b[8:offCRC])
	binary.LittleEndian.PutUint32(b[offCRC:], crc(signed[:]))
}

// parseHeader reads the header; unused is a segment that was prepared and
// never taken into use.
func parseHeader(b []byte) (h header, unused bool, err error) {
	if len(b) < headerSize {
		return h, false, fmt.Errorf("%w: %d bytes are no segment", errDamaged, len(b))
	}
	if [8]byte(b[:8]) == [8]byte{} {
		return h, true, nil
	}
	if [8]byte(b[:8]) != magic || crc(b[:offCRC]) != binary.LittleEndian.Uint32(b[offCRC:]) {
		return h, false, fmt.Errorf("%w: segment header", errDamaged)
	}
	h.epoch = binary.LittleEndian.Uint32(b[offEpoch:])
	h.first = binary.LittleEndian.Uint64(b[offFirst:])
	h.instance = [16]byte(b[offInstance:])
	h.dropped = binary.LittleEndian.Uint64(b[offDropped:])
	if h.epoch == 0 || h.first == 0 {
		return h, false, fmt.Errorf("%w: segment header", errDamaged)
	}
	if binary.LittleEndian.Uint32(b[offKnown:]) == 1 {
		h.chain = audit.Hash(b[offChain:])
		h.chainKnown = crc(h.chain[:]) == binary.LittleEndian.Uint32(b[offKnown+4:])
	}
	return h, false, nil
}

// segment is an open segment file. end and last move under the spool's lock
// and are read without it.
type segment struct {
	header
	name string
	f    *os.File
	// data is the mapping, nil once sealed.
	data []byte
	end  atomic.Int64
	// last is the sequence of the last record, first-1 when there is none.
	last   atomic.Uint64
	sealed atomic.Bool
}

// createSegment makes a file of size bytes whose room is reserved, so that a
// full disk shows here and not as a fault while recording.
func createSegment(name string, size int64) (*segment, error) {
	// It gets its name when it is whole: a file under that name which is not
	// is damaged.
	f, err := os.OpenFile(name+unfinishedSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	seg := &segment{name: name + unfinishedSuffix, f: f}
	if err := reserve(f, size); err != nil {
		seg.remove()
		return nil, fmt.Errorf("reserve %d bytes for segment %s: %w", size, name, err)
	}
	if err := seg.mmap(size); err != nil {
		seg.remove()
		return nil, err
	}
	// Fault the pages in for writing here rather than on the request path.
	if err := seg.guard(func() {
		for i := 0; i < len(seg.data); i += os.Getpagesize() {
			seg.data[i] = 0
		}
	}); err != nil {
		seg.remove()
		return nil, err
	}
	if err := os.Rename(seg.name, name); err != nil {
		seg.remove()
		return nil, fmt.Errorf("create segment: %w", err)
	}
	seg.name = name
	return seg, nil
}

func reserve(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, 64<<10)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

func (g *segment) mmap(size int64) error {
	data, err := unix.Mmap(int(g.f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map segment %s: %w", g.name, err)
	}
	g.data = data
	return nil
}

// activate takes the segment into use for an epoch, from sequence first.
func (g *segment) activate(h header) error {
	g.header = h
	g.end.Store(headerSize)
	g.last.Store(h.first - 1)
	return g.guard(func() {
		h.encode(g.data)
		atomic.StoreUint64((*uint64)(unsafe.Pointer(&g.data[0])), binary.NativeEndian.Uint64(magic[:]))
	})
}

func (g *segment) fits(event int) bool {
	return g.end.Load()+int64(frameSize(event+sequenceLen)) <= int64(len(g.data))
}

// put commits an event as sequence; there is room.
func (g *segment) put(sequence uint64, salt *[audit.SaltSize]byte, event []byte) {
	n := len(event) + sequenceLen
	off := g.end.Load()
	d := g.data[off : off+int64(frameSize(n))]
	copy(d[8:], salt[:])
	copy(d[frameHead:], event)
	audit.AppendSequence(d[frameHead+len(event):frameHead+len(event)], sequence)
	binary.LittleEndian.PutUint32(d[4:], crc(d[8:frameHead+n]))
	var length [4]byte
	binary.LittleEndian.PutUint32(length[:], uint32(n))
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&d[0])), binary.NativeEndian.Uint32(length[:]))
	g.end.Store(off + int64(len(d)))
	g.last.Store(sequence)
}

// setDropped keeps the count of dropped events where a restart finds it. It
// goes through the file, for the segment is sealed by then.
func (g *segment) setDropped(n uint64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	if _, err := g.f.WriteAt(b[:], offDropped); err != nil {
		return fmt.Errorf("count dropped event in segment %s: %w", g.name, err)
	}
	g.dropped = n
	return nil
}

// setChain keeps the chain value before the first record, through the file
// since the segment may be sealed.
func (g *segment) setChain(chain audit.Hash) error {
	var b [8]byte
	binary.LittleEndian.PutUint32(b[:], 1)
	binary.LittleEndian.PutUint32(b[4:], crc(chain[:]))
	if _, err := g.f.WriteAt(chain[:], offChain); err != nil {
		return fmt.Errorf("keep chain in segment %s: %w", g.name, err)
	}
	if _, err := g.f.WriteAt(b[:], offKnown); err != nil {
		return fmt.Errorf("keep chain in segment %s: %w", g.name, err)
	}
	return nil
}

// seal ends writing.
func (g *segment) seal() {
	if g.data != nil {
		_ = unix.Munmap(g.data)
		g.data = nil
	}
	g.sealed.Store(true)
}

func (g *segment) close() {
	g.seal()
	_ = g.f.Close()
}

func (g *segment) remove() {
	g.close()
	_ = os.Remove(g.name)
}

// guard runs f, which touches the mapping, and turns the fault of a disk that
// fails under it into an error.
func (g *segment) guard(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer g.caught(&err)
	f()
	return nil
}

// caught is deferred by those that touch the mapping.
func (g *segment) caught(err *error) {
	switch r := recover().(type) {
	case nil:
	case interface{ Addr() uintptr }:
		*err = fmt.Errorf("segment %s: the disk failed under the mapping: %v", g.name, r)
	default:
		panic(r)
	}
}
