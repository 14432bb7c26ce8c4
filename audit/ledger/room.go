package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
)

// A disk without room refuses records and does not end the ledger. Whoever records
// next finds out whether there is room again; and so that this does not depend on
// anybody, since those who see that a control plane is not healthy send it nothing,
// the committer looks too.

const (
	// probeFile is what the committer writes to see whether there is room.
	probeFile = "room"
	// probeBytes is how much room is worth going on with: what is left of a last
	// page would be full with the next record.
	probeBytes = 64 << 10
)

// next waits for a request, and looks for room where there was none.
func (l *Ledger) next() (request, bool) {
	for {
		select {
		case r, ok := <-l.queue:
			return r, ok
		case <-l.retry:
			l.lookForRoom()
		}
	}
}

// lack notes that the disk had no room, and returns what is answered.
func (l *Ledger) lack(cause error) error {
	err := fmt.Errorf("%w: no room on the disk of %s: %w", audit.ErrFull, l.cfg.Dir, cause)
	if l.retry = time.After(l.cfg.RetryInterval); l.lacked.IsZero() {
		l.lacked = l.cfg.Clock()
		l.cfg.Log.Error("no room on the disk of the audit ledger, nothing is acknowledged until there is", "dir", l.cfg.Dir, "error", cause)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noRoom == nil {
		defer l.turn()
	}
	l.noRoom = err
	return err
}

// regain ends what lack began, and puts it on record.
func (l *Ledger) regain() {
	since := l.lacked
	if since.IsZero() {
		return
	}
	l.retry, l.lacked = nil, time.Time{}
	l.mu.Lock()
	l.noRoom = nil
	l.turn()
	l.mu.Unlock()
	l.cfg.Log.Warn("there is room on the disk of the audit ledger again", "dir", l.cfg.Dir, "since", since)
	reason := "the disk of the ledger had no room since " + since.UTC().Format(time.RFC3339) + ", and records were refused"
	buf, _ := l.stage(nil, request{events: [][]byte{l.alarm(reason)}, reserve: true})
	if err := l.commit(buf); err != nil {
		l.cfg.Log.Error("it is not on record that the ledger had no room", "error", err)
	}
}

func (l *Ledger) lookForRoom() {
	err := l.failure()
	if err == nil {
		err = probe(filepath.Join(l.cfg.Dir, probeFile))
	}
	if err != nil {
		l.retry = time.After(l.cfg.RetryInterval)
		return
	}
	l.regain()
}

// probe writes a file of probeBytes, and removes it.
func probe(file string) error {
	err := os.WriteFile(file, make([]byte, probeBytes), 0o600)
	return errors.Join(err, os.Remove(file))
}

// keptHead notes whether a head could be kept: records without one are not evidence.
func (l *Ledger) keptHead(err error) {
	if err != nil {
		l.cfg.Log.Error("no head was signed", "error", err)
		err = fmt.Errorf("no head was signed, in %s: %w", l.cfg.Dir, err)
		if errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: %w", audit.ErrFull, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if (l.noHead == nil) != (err == nil) {
		defer l.turn()
	}
	l.noHead = err
}
