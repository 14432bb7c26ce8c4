package sqlstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"github.com/writ-dev/writ/internal/atomicfile"
)

// memory is a file of what this process has seen of the registry: frames of
//
//	length  4 bytes, of what follows the checksum
//	CRC-32C 4 bytes, of the same
//	revision 8 bytes
//	entries: length of the ID 2 bytes, ID, 1 and the digest or 0 if it ended
//
// numbers big-endian, after a line that names version and key. A frame that was
// not written whole ends it. It is written anew when it has grown to twice what it
// began with, and not synced in between: who cuts the power, cuts what it says.
type memory struct {
	path   string
	file   *os.File
	began  int64
	length int64
	broken bool
}

const (
	memoryHeader = "writ registry seen 1 "
	// memoryGrowth is how much is appended at least before it is written anew.
	memoryGrowth = 4 << 20
	maxFrame     = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// readMemory reads what was seen of the registry with that key; nothing, where
// there is no file, or one of another key.
func readMemory(path, keyID string) (was seen, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return was, nil
	} else if err != nil {
		return was, fmt.Errorf("read what was seen of the registry: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16)
	header, err := r.ReadString('\n')
	if errors.Is(err, io.EOF) || err == nil && header != memoryHeader+keyID+"\n" {
		return was, nil
	}
	was.entries = map[string]digest{}
	for {
		payload, err := readFrame(r)
		if errors.Is(err, io.EOF) || errors.Is(err, errFrame) {
			return was, nil
		} else if err != nil {
			return was, fmt.Errorf("read what was seen of the registry: %s: %w", path, err)
		}
		was.revision = binary.BigEndian.Uint64(payload)
		for rest := payload[8:]; len(rest) > 0; {
			var id string
			var d *digest
			if id, d, rest, err = readSeen(rest); err != nil {
				return was, nil
			}
			if d == nil {
				delete(was.entries, id)
			} else {
				was.entries[id] = *d
			}
		}
	}
}

var errFrame = errors.New("not a whole frame")

func readFrame(r io.Reader) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errFrame
	} else if err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 8 || length > maxFrame {
		return nil, errFrame
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(r, payload); errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return nil, errFrame
	} else if err != nil {
		return nil, err
	}
	if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		return nil, errFrame
	}
	return payload, nil
}

func readSeen(b []byte) (id string, d *digest, rest []byte, err error) {
	if len(b) < 2 {
		return "", nil, nil, errFrame
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n+1 {
		return "", nil, nil, errFrame
	}
	id, kind, b := string(b[:n]), b[n], b[n+1:]
	if kind == 0 {
		return id, nil, b, nil
	}
	if len(b) < len(d) {
		return "", nil, nil, errFrame
	}
	return id, (*digest)(b[:len(d)]), b[len(d):], nil
}

func beginFrame(revision uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 8, 64), revision)
}

func appendSeen(frame []byte, id string, d *digest) []byte {
	frame = binary.BigEndian.AppendUint16(frame, uint16(len(id)))
	frame = append(frame, id...)
	if d == nil {
		return append(frame, 0)
	}
	return append(append(frame, 1), d[:]...)
}

func endFrame(frame []byte) []byte {
	payload := frame[8:]
	binary.BigEndian.PutUint32(frame, uint32(len(payload)))
	binary.BigEndian.PutUint32(frame[4:], crc32.Checksum(payload, castagnoli))
	return frame
}

// rewrite makes the file be of that set of entries.
func (m *memory) rewrite(keyID string, revision uint64, entries iter.Seq2[string, digest]) error {
	m.broken = true // until it is there
	if m.file != nil {
		if err := m.file.Close(); err != nil {
			return err
		}
		m.file = nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(m.path), ".seen-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	w := bufio.NewWriterSize(tmp, 1<<16)
	_, err = w.WriteString(memoryHeader + keyID + "\n")
	frame := beginFrame(revision)
	for id, d := range entries {
		if frame = appendSeen(frame, id, &d); len(frame) > 1<<16 {
			_, werr := w.Write(endFrame(frame))
			err, frame = errors.Join(err, werr), beginFrame(revision)
		}
	}
	_, werr := w.Write(endFrame(frame))
	err = errors.Join(err, werr, w.Flush(), tmp.Sync())
	if err == nil {
		err = os.Rename(tmp.Name(), m.path)
	}
	if err == nil {
		err = atomicfile.SyncDir(filepath.Dir(m.path))
	}
	if err != nil {
		return errors.Join(err, tmp.Close())
	}
	info, err := tmp.Stat()
	if err != nil {
		return errors.Join(err, tmp.Close())
	}
	m.file, m.began, m.length, m.broken = tmp, info.Size(), info.Size(), false
	return nil
}

// add appends a frame. After an error nothing is appended any more: what comes
// after a hole would not be true.
func (m *memory) add(frame []byte) error {
	if m.broken {
		return nil
	}
	n, err := m.file.Write(endFrame(frame))
	m.length += int64(n)
	m.broken = err != nil
	return err
}

func (m *memory) grown() bool { return m.length > m.began+max(m.began, memoryGrowth) }

func (m *memory) close() error {
	if m == nil || m.file == nil {
		return nil
	}
	f := m.file
	m.file, m.broken = nil, true
	return f.Close()
}

// remember notes what was committed, here or elsewhere.
func (s *Store) remember(revision uint64, entries map[string]*digest) {
	if s.memory == nil || s.memory.broken {
		return
	}
	frame := beginFrame(revision)
	for id, d := range entries {
		frame = appendSeen(frame, id, d)
	}
	if err := s.memory.add(frame); err != nil {
		s.cfg.Log.Error("cannot note what was seen of the registry: what happens to the database from now on may not be found at the next start", "file", s.memory.path, "error", err)
	} else if s.memory.grown() {
		s.rewriteMemory(revision)
	}
}

// rewriteMemory notes all that is to be there.
func (s *Store) rewriteMemory(revision uint64) {
	if s.memory == nil {
		return
	}
	if err := s.memory.rewrite(s.key.id, revision, s.allExpected()); err != nil {
		s.cfg.Log.Error("cannot note what was seen of the registry: what happens to the database from now on may not be found at the next start", "file", s.memory.path, "error", err)
	}
}
