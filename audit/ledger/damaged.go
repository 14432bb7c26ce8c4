package ledger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/writ-dev/writ/internal/atomicfile"
)

// damagedPrefix marks files with what was cut out of a segment.
const damagedPrefix = "damaged-"

// isDamage tells what a segment holds from an error of reading it.
func isDamage(err error) bool {
	return errors.Is(err, errTorn) || errors.Is(err, errChecksum) || errors.Is(err, errFormat)
}

// holdsFrame reports whether a whole frame with an entry from index on begins
// anywhere in tail: then what stands before it was not the end.
func holdsFrame(tail []byte, index uint64) bool {
	for i := 0; i+frameHead+9 <= len(tail); i++ {
		n := int64(le.Uint32(tail[i:]))
		payload := tail[i+frameHead:]
		if kind := payload[0]; kind != typeBatch && kind != typeResume || n < 9 || n > int64(len(payload)) {
			continue
		}
		// Each entry takes more than a byte. This keeps chance, and an
		// attacker, from making the search expensive.
		if at := le.Uint64(payload[1:]); at < index || at-index > uint64(len(tail)) {
			continue
		}
		if castagnoli(payload[:n]) == le.Uint32(tail[i+4:]) {
			return true
		}
	}
	return false
}

// cutTail takes away what follows the last whole frame of the last segment.
// The rest of one frame is what a process leaves that was killed, and was never
// acknowledged. Anything else may have been: it is kept in a file of its own,
// and the loss is put on record.
func (l *Ledger) cutTail(f *os.File, ref *segmentRef, end int64, cause error) error {
	tail, err := io.ReadAll(io.NewSectionReader(f, end, ref.size-end))
	if err != nil {
		return err
	}
	name := filepath.Base(ref.name)
	if errors.Is(cause, errTorn) && !holdsFrame(tail, l.work.tree.size()) {
		l.cfg.Log.Warn("an unfinished frame was cut off; it was never acknowledged", "file", name, "bytes", len(tail))
	} else {
		aside, err := setAside(l.cfg.Dir, name, tail)
		if err != nil {
			return fmt.Errorf("set aside damaged records: %w", err)
		}
		l.cfg.Log.Error("damaged records were set aside; they may have been acknowledged", "file", name, "offset", end, "bytes", len(tail), "aside", aside, "error", cause)
		l.enqueue(request{
			events:  [][]byte{l.alarm(fmt.Sprintf("damage after entry %d of %s: %d bytes, which may hold acknowledged records, were set aside in %s", l.work.tree.size(), name, len(tail), aside))},
			reserve: true,
			done: func(_ uint64, err error) {
				if err != nil {
					l.cfg.Log.Error("damage of the ledger is not on record", "error", err)
				}
			},
		})
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	ref.size = end
	return f.Sync()
}

// setAside keeps b in a new file of dir and returns its name.
func setAside(dir, segment string, b []byte) (string, error) {
	f, err := os.CreateTemp(dir, damagedPrefix+segment+"-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close(), atomicfile.SyncDir(dir)); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return filepath.Base(f.Name()), nil
}

// begunInEarnest reports whether a segment whose state cannot be read holds
// more than that: it is written to only once the state is synced.
func begunInEarnest(f *os.File, ref *segmentRef) (bool, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, ref.size))
	if err != nil {
		return false, err
	}
	return holdsFrame(b, ref.index), nil
}
