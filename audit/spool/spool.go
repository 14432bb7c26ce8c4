package spool

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// OnFull is what happens to an event when there is no room for it.
type OnFull string

// The settings of OnFull.
const (
	// Deny answers audit.ErrFull, and the caller denies.
	Deny OnFull = "deny"
	// Block waits until there is room, or until the spool is closed.
	Block OnFull = "block"
	// Drop answers an empty receipt. How many events were dropped is itself
	// recorded as soon as there is room.
	Drop OnFull = "drop"
)

// Sizes in bytes.
const (
	// MinBytes is the least that MaxBytes may be.
	MinBytes       = 1 << 20
	segmentBytes   = 1 << 20
	minSegments    = 8
	pageSize       = 4 << 10
	maxGapChain    = 16 << 10
	idsAtOnce      = 64
	prepareRetry   = time.Second
	saltBufferSize = 256 * audit.SaltSize
)

// Config is what a spool is opened with.
type Config struct {
	// Dir belongs to one spool and one process. It is made with mode 0700.
	Dir string
	// MaxBytes on disk, at least MinBytes.
	MaxBytes int64
	OnFull   OnFull
	// Stream is the SPIFFE ID under which events are recorded.
	Stream spiffeid.ID
	// Headers and query parameters that may be recorded; see audit.NewPermit.
	AllowHeaders, AllowQuery []string
	// SignGap signs gap events. It is called while recording waits and must
	// not record. Without it, and when it fails, gaps are not signed.
	SignGap audit.SignGap
	// Clock dates gap events; time.Now when nil.
	Clock func() time.Time
	Log   *slog.Logger
}

// Spool is an open spool. It implements audit.Recorder.
type Spool struct {
	cfg         Config
	permit      *audit.Permit
	stream      audit.Stream
	instance    [16]byte
	lock        *os.File
	segmentSize int64
	maxSegments int
	writers     sync.Pool

	// Reader's wait: set by the reader, taken by the recorder that wakes it.
	waiting atomic.Bool
	wake    chan struct{}

	mu   sync.Mutex
	cond sync.Cond
	meta meta
	// segments that hold records, oldest first; the last is active unless
	// sealed. spare is prepared.
	segments []*segment
	spare    *segment
	nextFile uint64
	// gaps to record before anything else.
	gaps    []*auditv1.Gap
	acked   audit.Position
	dropped uint64
	ids     audit.DecisionIDs
	idBlock string
	idFirst uint64
	// prepareErr is why no segment can be prepared; it is retried.
	prepareErr error
	retry      *time.Timer
	// full: an event found no room, and there has been none since.
	full   bool
	failed error
	// turned is closed and replaced when full or failed changes.
	turned chan struct{}
	closed bool
	done   sync.WaitGroup
}

// Open opens the spool in cfg.Dir, or makes one, and continues where the last
// process left off. It fails when another process has the directory, when the
// directory belongs to another SPIFFE ID, and when the disk has no room. What
// is damaged is set aside in files named damaged-*, and the record goes on in
// a new epoch that begins with a gap event.
func Open(cfg Config) (*Spool, error) {
	s, err := newSpool(cfg)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if s.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		for _, g := range s.segments {
			g.close()
		}
		s.lock.Close()
		return nil, fmt.Errorf("open spool %s: %w", cfg.Dir, err)
	}
	s.done.Go(s.prepare)
	return s, nil
}

func newSpool(cfg Config) (*Spool, error) {
	if cfg.Stream.IsZero() {
		return nil, errors.New("open spool: no SPIFFE ID")
	}
	if cfg.MaxBytes < MinBytes {
		return nil, fmt.Errorf("open spool: max_bytes %d, want at least %d", cfg.MaxBytes, MinBytes)
	}
	switch cfg.OnFull {
	case "":
		cfg.OnFull = Deny
	case Deny, Block, Drop:
	default:
		return nil, fmt.Errorf("open spool: on_full %q: want deny, block or drop", cfg.OnFull)
	}
	permit, err := audit.NewPermit(cfg.AllowHeaders, cfg.AllowQuery)
	if err != nil {
		return nil, err
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Spool{cfg: cfg, permit: permit, wake: make(chan struct{}, 1), turned: make(chan struct{})}
	s.cond.L = &s.mu
	s.segmentSize = min(segmentBytes, cfg.MaxBytes/minSegments) &^ (pageSize - 1)
	s.maxSegments = int(cfg.MaxBytes / s.segmentSize)
	s.writers.New = func() any { return &writer{enc: audit.NewEncoder(permit)} }
	return s, nil
}

// load recovers what is on disk and leaves the spool ready to record.
func (s *Spool) load() error {
	r, err := recoverDir(s.cfg.Dir, s.cfg.Stream.String())
	if err != nil {
		return err
	}
	s.nextFile = r.next
	if r.meta == nil {
		s.meta = meta{Version: 1, Stream: s.cfg.Stream.String(), Instance: uuid.NewString(), Epoch: 1}
	} else {
		s.meta = *r.meta
		if len(r.gaps) > 0 {
			s.meta.Epoch++
			s.gaps = r.gaps
		}
	}
	s.instance = uuid.MustParse(s.meta.Instance)
	s.stream = audit.Stream{SPIFFEID: s.meta.Stream, Instance: s.meta.Instance}
	// The epoch must be on disk before anything is recorded in it.
	s.meta.Boot, s.meta.Clean = bootID(), false
	if err := s.meta.write(s.cfg.Dir); err != nil {
		return err
	}
	for _, g := range s.gaps {
		s.cfg.Log.Warn("audit records were lost", "cause", g.Cause, "epoch", s.meta.Epoch)
	}
	for _, name := range r.unfinished {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	if err := s.setAside(r.aside); err != nil {
		return err
	}
	if err := s.openSegments(r.segments); err != nil {
		return err
	}
	s.ids = audit.NewDecisionIDs(s.stream, s.meta.Epoch)
	s.acked.Epoch = s.meta.Epoch
	if len(s.segments) > 0 {
		s.acked.Epoch, s.acked.Sequence = s.segments[0].epoch, s.segments[0].first-1
	}
	if s.active() == nil && len(s.segments) < s.maxSegments {
		// Room is taken now, so that a full disk shows at start.
		if s.spare, err = s.newSegment(); err != nil {
			return err
		}
		return s.take(s.spare)
	}
	return nil
}

// openSegments opens the files found; the last one goes on if it can.
func (s *Spool) openSegments(list []found) error {
	var keep []found
	for i, f := range list {
		// An empty segment is kept only where it alone tells the sequence.
		if f.unused || f.last < f.first && (f.epoch != s.meta.Epoch || hasEpoch(list[:i], f.epoch)) {
			if err := os.Remove(f.name); err != nil {
				return err
			}
			continue
		}
		keep = append(keep, f)
	}
	for i, f := range keep {
		file, err := os.OpenFile(f.name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		g := &segment{header: f.header, name: f.name, f: file}
		g.end.Store(int64(f.end))
		g.last.Store(f.last)
		g.sealed.Store(true)
		s.segments = append(s.segments, g)
		if i != len(keep)-1 || f.epoch != s.meta.Epoch {
			continue
		}
		// Dropped events are counted by the gap event that opens the next
		// segment, so this one takes no more.
		if s.dropped = f.dropped; f.dropped > 0 {
			continue
		}
		if err := g.mmap(int64(f.size)); err != nil {
			return err
		}
		g.sealed.Store(false)
		if f.dirty {
			if err := g.guard(func() { clear(g.data[f.end:]) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func hasEpoch(list []found, epoch uint32) bool {
	return slices.ContainsFunc(list, func(f found) bool { return !f.unused && f.epoch == epoch })
}

// setAside renames files that cannot be part of the record. Those of an
// earlier time make room.
func (s *Spool) setAside(names []string) error {
	if len(names) == 0 {
		return nil
	}
	old, err := filepath.Glob(filepath.Join(s.cfg.Dir, damagedPrefix+"*"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	for _, name := range names {
		to := filepath.Join(s.cfg.Dir, damagedPrefix+filepath.Base(name))
		if err := os.Rename(name, to); err != nil {
			return err
		}
		s.cfg.Log.Error("audit segment set aside", "file", to)
	}
	return nil
}

// active is the segment that is written, nil when there is none.
func (s *Spool) active() *segment {
	if n := len(s.segments); n > 0 && !s.segments[n-1].sealed.Load() {
		return s.segments[n-1]
	}
	return nil
}

// Stream is the name under which the spool records.
func (s *Spool) Stream() audit.Stream { return s.stream }

// Close ends recording and writes everything to disk, so that the epoch goes
// on even after a reboot. It is safe to call twice.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	if s.retry != nil {
		s.retry.Stop()
	}
	s.cond.Broadcast()
	s.mu.Unlock()
	s.done.Wait()
	s.wakeReader()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare != nil {
		s.spare.remove()
		s.spare = nil
	}
	var errs []error
	for _, g := range s.segments {
		g.seal()
		errs = append(errs, g.f.Sync(), g.f.Close())
	}
	if s.meta.Clean = errors.Join(errs...) == nil && s.failed == nil; s.meta.Clean {
		errs = append(errs, s.meta.write(s.cfg.Dir))
	}
	errs = append(errs, s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close spool %s: %w", s.cfg.Dir, err)
	}
	return nil
}

// Status is how a spool stands.
type Status struct {
	Stream audit.Stream
	Epoch  uint32
	// Committed is the last sequence recorded in Epoch.
	Committed uint64
	// Pending records, of all epochs, that no collector has acknowledged.
	Pending uint64
	// Bytes taken on disk, of MaxBytes.
	Bytes, MaxBytes int64
	// Dropped events since the spool was opened, or carried over unreported.
	Dropped uint64
	// Err is why recording is failing, nil when it is not.
	Err error
}

// Status tells how the spool stands.
func (s *Spool) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Stream: s.stream, Epoch: s.meta.Epoch, Dropped: s.dropped,
		Bytes: int64(s.files()) * s.segmentSize, MaxBytes: s.cfg.MaxBytes,
	}
	for _, g := range s.segments {
		last, first := g.last.Load(), g.first
		if g.epoch == s.meta.Epoch {
			st.Committed = last
		}
		if g.epoch == s.acked.Epoch {
			first = max(first, s.acked.Sequence+1)
		}
		if g.epoch >= s.acked.Epoch && last >= first {
			st.Pending += last - first + 1
		}
	}
	st.Err = s.trouble()
	return st
}

// Err is why recording is failing, nil when it is not, and turned is closed when
// that may have become another.
func (s *Spool) Err() (turned <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turned, s.trouble()
}

func (s *Spool) trouble() error {
	switch {
	case s.failed != nil || !s.full:
		return s.failed
	case s.prepareErr != nil:
		return fmt.Errorf("%w: %w", audit.ErrFull, s.prepareErr)
	}
	return audit.ErrFull
}

// setFull notes whether the last event found room. The lock is held.
func (s *Spool) setFull(full bool) {
	if s.full != full {
		s.full = full
		s.turn()
	}
}

// turn wakes those who wait for Err. The lock is held.
func (s *Spool) turn() {
	close(s.turned)
	s.turned = make(chan struct{})
}

func (s *Spool) files() int {
	n := len(s.segments)
	if s.spare != nil {
		n++
	}
	return n
}

// prepare keeps a segment ready, so that recording does not wait for one.
func (s *Spool) prepare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for !s.closed && (s.spare != nil || !s.canPrepare()) {
			s.cond.Wait()
		}
		if s.closed {
			return
		}
		g, err := s.newSegmentUnlocked()
		if s.prepareErr = err; err != nil {
			s.cfg.Log.Error("no room for another audit segment", "error", err)
			s.retry = time.AfterFunc(prepareRetry, func() {
				s.mu.Lock()
				s.prepareErr = nil
				s.mu.Unlock()
				s.cond.Broadcast()
			})
		}
		s.spare = g
		s.setFull(s.full && g == nil)
		if g != nil && s.active() == nil && !s.closed {
			// There is room again: what was lost is recorded now, and not
			// when the next event happens to come.
			if err := s.take(g); err != nil {
				s.cfg.Log.Error("audit gap is not recorded", "error", err)
			}
			s.wakeReader()
		}
		s.cond.Broadcast()
	}
}

func (s *Spool) canPrepare() bool {
	return s.files() < s.maxSegments && s.prepareErr == nil && s.failed == nil
}

// newSegmentUnlocked makes a segment without holding the lock meanwhile.
func (s *Spool) newSegmentUnlocked() (*segment, error) {
	name := s.nextName()
	s.mu.Unlock()
	defer s.mu.Lock()
	return createSegment(name, s.segmentSize)
}

func (s *Spool) newSegment() (*segment, error) { return createSegment(s.nextName(), s.segmentSize) }

func (s *Spool) nextName() string {
	name := filepath.Join(s.cfg.Dir, fmt.Sprintf("%016x%s", s.nextFile, segmentSuffix))
	s.nextFile++
	return name
}

// writer is what one Record call works with.
type writer struct {
	enc   *audit.Encoder
	buf   []byte
	salts [saltBufferSize]byte
	left  int
}

// salt takes 16 fresh random bytes, fetched many at a time.
func (w *writer) salt() *[audit.SaltSize]byte {
	if w.left == 0 {
		// crypto/rand.Reader does not fail; see its documentation.
		_, _ = io.ReadFull(rand.Reader, w.salts[:])
		w.left = len(w.salts) / audit.SaltSize
	}
	w.left--
	return (*[audit.SaltSize]byte)(w.salts[w.left*audit.SaltSize:])
}
