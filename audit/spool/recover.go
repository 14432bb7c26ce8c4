package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

const (
	segmentSuffix = ".seg"
	damagedPrefix = "damaged-"
	// unfinishedSuffix marks a segment that is being made.
	unfinishedSuffix = ".new"
)

// found is a segment file as it was read back.
type found struct {
	header
	name string
	// last sequence and end of the last whole record.
	last uint64
	end  int
	size int
	// dirty is what a record that was not committed left behind the end.
	dirty  bool
	unused bool
	damage error
}

// parseSegment reads a segment back: everything up to the first frame that is
// not committed or not whole.
func parseSegment(b []byte) found {
	var s found
	s.header, s.unused, s.damage = parseHeader(b)
	if s.unused || s.damage != nil {
		return s
	}
	s.size, s.end, s.last = len(b), headerSize, s.first-1
	for {
		_, event, next, err := frame(b, s.end)
		if errors.Is(err, errEnd) {
			break
		}
		if err == nil {
			if seq, ok := audit.SequenceOf(event); !ok || seq != s.last+1 {
				err = fmt.Errorf("%w: record at offset %d is not sequence %d", errDamaged, s.end, s.last+1)
			}
		}
		if err != nil {
			s.damage = err
			return s
		}
		s.end, s.last = next, s.last+1
	}
	s.dirty = slices.ContainsFunc(b[min(s.end, len(b)):], func(c byte) bool { return c != 0 })
	return s
}

// recovered is what a spool's directory holds.
type recovered struct {
	meta     *meta
	segments []found
	// gaps to record, each of which opens a new epoch.
	gaps []*auditv1.Gap
	// aside are files that cannot be part of the record, unfinished those that
	// never were.
	aside, unfinished []string
	next              uint64
}

// recoverDir reads a spool's directory. It changes nothing.
func recoverDir(dir, stream string) (*recovered, error) {
	r := &recovered{}
	var err error
	r.meta, err = readMeta(dir)
	if err != nil && !errors.Is(err, errDamaged) {
		return nil, err
	}
	metaDamage := err
	if r.meta != nil && r.meta.Stream != stream {
		return nil, fmt.Errorf("spool %s belongs to %s: give %s a directory of its own", dir, r.meta.Stream, stream)
	}
	files, err := r.readSegments(dir)
	if err != nil {
		return nil, err
	}
	if r.meta == nil && len(files) == 0 && metaDamage == nil {
		return r, nil
	}
	if r.meta == nil {
		r.adoptIdentity(stream, files)
		r.gaps = append(r.gaps, &auditv1.Gap{Cause: audit.GapSpoolCorrupt})
	}
	r.order(files)
	r.judge()
	return r, nil
}

func (r *recovered) readSegments(dir string) ([]found, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	var files []found
	for _, e := range entries {
		var n uint64
		name := e.Name()
		if strings.HasSuffix(name, segmentSuffix+unfinishedSuffix) {
			r.unfinished = append(r.unfinished, filepath.Join(dir, name))
			continue
		}
		if !strings.HasSuffix(name, segmentSuffix) || strings.HasPrefix(name, damagedPrefix) {
			continue
		}
		if _, err := fmt.Sscanf(name, "%016x"+segmentSuffix, &n); err != nil {
			continue
		}
		r.next = max(r.next, n+1)
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read spool: %w", err)
		}
		s := parseSegment(b)
		s.name = filepath.Join(dir, name)
		files = append(files, s)
	}
	return files, nil
}

// adoptIdentity rebuilds a lost meta file from what the segments say.
func (r *recovered) adoptIdentity(stream string, files []found) {
	r.meta = &meta{Version: 1, Stream: stream, Instance: uuid.NewString(), Epoch: 1}
	for _, s := range files {
		if !s.unused && s.epoch != 0 {
			r.meta.Instance = uuid.UUID(s.instance).String()
			r.meta.Epoch = max(r.meta.Epoch, s.epoch)
		}
	}
}

// order keeps the segments that continue one another, and sets aside what does
// not belong or follows damage in its epoch.
func (r *recovered) order(files []found) {
	slices.SortFunc(files, func(a, b found) int { return strings.Compare(a.name, b.name) })
	instance := uuid.MustParse(r.meta.Instance)
	broken := make(map[uint32]bool)
	for _, s := range files {
		if !s.unused && s.epoch != 0 && uuid.UUID(s.instance) == instance {
			// A meta file put back from a backup must not repeat an epoch.
			r.meta.Epoch = max(r.meta.Epoch, s.epoch)
		}
	}
	for _, s := range files {
		switch {
		case s.unused:
			// Prepared and never used; the caller removes it.
			r.segments = append(r.segments, s)
			continue
		case s.epoch == 0 || uuid.UUID(s.instance) != instance:
			r.corrupt(s, 0)
			continue
		case broken[s.epoch]:
			r.aside = append(r.aside, s.name)
			continue
		}
		if prev := r.lastOf(s.epoch); prev != nil && s.first != prev.last+1 {
			r.corrupt(s, prev.last+1)
			broken[s.epoch] = true
			continue
		}
		if s.damage != nil {
			broken[s.epoch] = true
			r.gaps = append(r.gaps, &auditv1.Gap{Cause: audit.GapSpoolCorrupt, FirstSequence: s.last + 1})
		}
		r.segments = append(r.segments, s)
	}
}

func (r *recovered) corrupt(s found, first uint64) {
	r.aside = append(r.aside, s.name)
	r.gaps = append(r.gaps, &auditv1.Gap{Cause: audit.GapSpoolCorrupt, FirstSequence: first})
}

func (r *recovered) lastOf(epoch uint32) *found {
	for i := len(r.segments) - 1; i >= 0; i-- {
		if s := &r.segments[i]; !s.unused && s.epoch == epoch {
			return s
		}
	}
	return nil
}

// judge decides whether the epoch can go on.
func (r *recovered) judge() {
	if len(r.gaps) > 0 {
		return
	}
	boot := bootID()
	last := r.lastOf(r.meta.Epoch)
	switch {
	case last == nil || last.last == 0 && r.meta.Epoch > 1:
		// The segments are gone, or the gap event that every epoch but the
		// first begins with was not reached.
		r.gaps = append(r.gaps, &auditv1.Gap{Cause: audit.GapSpoolLost})
	case !r.meta.Clean && r.meta.Boot != boot:
		// The machine died. What it had not yet written is gone, and nothing
		// here tells how much that was.
		r.gaps = append(r.gaps, &auditv1.Gap{Cause: audit.GapSpoolLost, FirstSequence: last.last + 1})
	}
}
