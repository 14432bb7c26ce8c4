package ledger

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/atomicfile"
)

var (
	// ErrStale means that a batch does not continue its stream. The caller
	// asks for the position and begins there.
	ErrStale = errors.New("ledger: batch does not continue the stream")
	// ErrDamaged means that the ledger does not hold what it has signed.
	// Nothing is changed; verify tells what is wrong.
	ErrDamaged = errors.New("ledger: it does not hold what it has signed")
	// ErrTooManyStreams means that a SPIFFE ID has too many recorders.
	ErrTooManyStreams = errors.New("ledger: too many streams of one SPIFFE ID")
)

// Files of a ledger's directory.
const (
	headsFile = "heads"
	keyFile   = "audit.vkey"
	lockName  = "lock"
)

const (
	// MinBytes is the least that Config.MaxBytes may be.
	MinBytes = 1 << 20
	// maxReserve is the most that is kept free for what the control plane
	// itself must still record at the cap: credentials, policy, reads, alarms.
	maxReserve = 1 << 30
	// maxInstances bounds the recorders of one SPIFFE ID: those with a stream
	// and those that have only greeted since the ledger was opened.
	maxInstances = 4096
)

// Config is what a ledger is opened with.
type Config struct {
	// Dir belongs to one process. It is made with mode 0700.
	Dir string
	// MaxBytes on disk, at least MinBytes. At the cap, less a sixteenth (at
	// most 1 GiB) kept for what the owner records, records are refused with
	// audit.ErrFull; nothing is deleted.
	MaxBytes    int64
	TrustDomain spiffeid.TrustDomain
	// Self is the SPIFFE ID under which the ledger's owner records.
	Self spiffeid.ID
	// Signer signs heads, VerifierKey verifies them; see NewSigner.
	Signer      note.Signer
	VerifierKey string
	// SegmentBytes is the size from which a new segment is begun; 64 MiB when 0.
	SegmentBytes int64
	// HeadInterval is the least time between two heads, HeadHeartbeat the most;
	// 2 s and 30 s when 0.
	HeadInterval, HeadHeartbeat time.Duration
	// RetryInterval is how long a ledger without room on its disk waits before it
	// looks for some by itself; 5 s when 0.
	RetryInterval time.Duration
	// Clock is time.Now when nil.
	Clock func() time.Time
	Log   *slog.Logger
}

func (c *Config) check() error {
	if c.MaxBytes < MinBytes {
		return fmt.Errorf("max_bytes %d, want at least %d", c.MaxBytes, MinBytes)
	}
	if c.Signer == nil || c.Self.IsZero() || c.TrustDomain.IsZero() {
		return errors.New("signer, SPIFFE ID and trust domain are needed")
	}
	if want := Origin(c.TrustDomain); c.Signer.Name() != want {
		return fmt.Errorf("signer is named %q, want %q", c.Signer.Name(), want)
	}
	if _, err := Keys(c.VerifierKey); err != nil {
		return err
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 64 << 20
	}
	if c.HeadInterval == 0 {
		c.HeadInterval = 2 * time.Second
	}
	if c.HeadHeartbeat == 0 {
		c.HeadHeartbeat = 30 * time.Second
	}
	if c.RetryInterval == 0 {
		c.RetryInterval = 5 * time.Second
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// segmentRef is a segment and how much of it is durable.
type segmentRef struct {
	name  string
	index uint64
	size  int64
}

// Ledger is an open ledger, safe for concurrent use.
type Ledger struct {
	cfg   Config
	keys  note.Verifiers
	lock  *os.File
	own   audit.Stream
	queue chan request
	stop  chan struct{}
	done  sync.WaitGroup

	// work belongs to the committer: the state with what is being written.
	work *state
	file *os.File
	// touched are the streams that differ between work and durable; alarmed
	// that the present cause for alarm is on record.
	touched []audit.Stream
	alarmed bool
	// retry fires when room on the disk is to be looked for again, since when
	// there has been none; both are zero where there is room.
	retry  <-chan time.Time
	lacked time.Time
	// rotateAt is the size at which a segment is to be begun for which there was no
	// room, 0 where there is none.
	rotateAt int64

	// closing is held for reading while something is queued.
	closing sync.RWMutex
	closed  bool

	mu sync.Mutex
	// durable is what was synced.
	durable  state
	segments []segmentRef
	seen     map[audit.Stream]seen
	failed   error
	full     bool
	// noRoom is why the last write was refused, noHead why the last head was not
	// kept; nil where it was.
	noRoom, noHead error
	// turned is closed and replaced when Err may have become another.
	turned chan struct{}
	// changed is closed and replaced after each commit.
	changed  chan struct{}
	activity chan struct{}

	headMu    sync.Mutex
	heads     *os.File
	headBytes int64
	// last is the newest head, if there is one that the audit key signed.
	last     Head
	haveHead bool
}

// seen is what a recorder last said of itself.
type seen struct {
	committed uint64
	at        time.Time
}

// Open opens the ledger in cfg.Dir, or makes one. What a crash left unfinished
// at the end is cut off; it was never acknowledged. It returns ErrDamaged when
// a signed head is not matched, or entries have no head at all.
func Open(cfg Config) (*Ledger, error) {
	l, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", cfg.Dir, err)
	}
	return l, nil
}

func open(cfg Config) (_ *Ledger, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	l := &Ledger{
		cfg: cfg, queue: make(chan request, 256), stop: make(chan struct{}),
		changed: make(chan struct{}), turned: make(chan struct{}), activity: make(chan struct{}, 1), seen: make(map[audit.Stream]seen),
	}
	l.keys, _ = Keys(cfg.VerifierKey)
	if l.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.closeFiles()
		}
	}()
	if err := l.openHeads(); err != nil {
		return nil, err
	}
	_ = os.Remove(filepath.Join(cfg.Dir, probeFile)) // of a crash, if there is one
	if err := l.load(); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(cfg.Dir, keyFile), []byte(cfg.VerifierKey+"\n"), 0o600); err != nil {
		return nil, err
	}
	l.own = audit.Stream{SPIFFEID: cfg.Self.String(), Instance: uuid.UUID(l.work.id).String()}
	l.durable.streams = maps.Clone(l.work.streams)
	l.publish()
	// What a crash left without a head is signed at once; and a new ledger has
	// one before it takes a record.
	if _, err := l.signHead(); err != nil {
		return nil, err
	}
	l.done.Go(l.commitLoop)
	l.done.Go(l.headLoop)
	return l, nil
}

// Close commits what is queued, signs a final head, and closes the ledger.
func (l *Ledger) Close() error {
	l.closing.Lock()
	if l.closed {
		l.closing.Unlock()
		return nil
	}
	l.closed = true
	close(l.queue)
	close(l.stop)
	l.closing.Unlock()
	l.done.Wait()
	err := l.failure()
	if err == nil {
		_, err = l.signHead()
	}
	l.mu.Lock()
	close(l.changed)
	l.changed = nil
	l.mu.Unlock()
	if err := errors.Join(err, l.closeFiles()); err != nil {
		return fmt.Errorf("close ledger %s: %w", l.cfg.Dir, err)
	}
	return nil
}

func (l *Ledger) closeFiles() error {
	var errs []error
	for _, f := range []*os.File{l.file, l.heads, l.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Append commits b and then calls done once, in the order of the calls, from
// another goroutine; it must not block. done gets nil when b is durable,
// ErrStale when it does not continue its stream, audit.ErrFull at the cap.
func (l *Ledger) Append(b *audit.Batch, done func(error)) {
	l.enqueue(request{batch: b, done: func(_ uint64, err error) { done(err) }})
}

func (l *Ledger) enqueue(r request) {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		r.done(0, audit.ErrClosed)
		return
	}
	l.queue <- r
}

// Resume returns where a recorder goes on. A stream whose past is not here,
// though it is no longer in its spool either, is taken on at the first record
// that the spool holds, and the loss is put on record.
func (l *Ledger) Resume(s audit.Stream, h *auditv1.Hello) (audit.Position, error) {
	if h.Epoch == 0 || h.First == 0 || len(h.Chain) != len(audit.Hash{}) {
		return audit.Position{}, fmt.Errorf("resume %s: %w: hello", s, errFormat)
	}
	l.mu.Lock()
	p, known := l.durable.streams[s]
	n := 0
	if _, greeted := l.seen[s]; !known && !greeted {
		for other := range l.durable.streams {
			if other.SPIFFEID == s.SPIFFEID {
				n++
			}
		}
		for other := range l.seen {
			if _, stored := l.durable.streams[other]; !stored && other.SPIFFEID == s.SPIFFEID {
				n++
			}
		}
	}
	l.mu.Unlock()
	switch {
	case n >= maxInstances:
		return audit.Position{}, fmt.Errorf("resume %s: %w", s, ErrTooManyStreams)
	case known && (h.Epoch < p.Epoch || h.Epoch == p.Epoch && h.First <= p.Sequence+1):
		return p.Position, nil
	case h.First == 1:
		return s.Start(h.Epoch), nil
	}
	at := audit.Position{Epoch: h.Epoch, Sequence: h.First - 1, Chain: audit.Hash(h.Chain)}
	if err := l.adopt(s, at); err != nil {
		return audit.Position{}, fmt.Errorf("resume %s: %w", s, err)
	}
	return at, nil
}

// adopt records that a stream goes on without its past.
func (l *Ledger) adopt(s audit.Stream, at audit.Position) error {
	l.cfg.Log.Error("records of a stream are not in this ledger and no longer in its spool", "stream", s.String(), "epoch", at.Epoch, "up_to", at.Sequence)
	result := make(chan error, 1)
	l.enqueue(request{resume: &resume{stream: s, at: at}, done: func(_ uint64, err error) { result <- err }})
	return <-result
}

// Seen notes how far a recorder says it has come.
func (l *Ledger) Seen(s audit.Stream, committed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[s] = seen{committed: committed, at: l.cfg.Clock()}
}

// Status tells what the ledger holds, how far behind each stream is, and when
// the last head was signed.
func (l *Ledger) Status() *auditv1.AuditStatusResponse {
	l.headMu.Lock()
	lastHead, headBytes := l.last.Time, l.headBytes
	l.headMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	st := &auditv1.AuditStatusResponse{
		Events: l.durable.tree.size(), Bytes: uint64(l.bytesLocked() + headBytes), MaxBytes: uint64(l.cfg.MaxBytes),
		LastHead: lastHead.UnixNano(),
	}
	for _, name := range sortedStreams(l.durable.streams) {
		p, said := l.durable.streams[name], l.seen[name]
		s := &auditv1.StreamStatus{
			Stream: name.Proto(), Epoch: p.Epoch, Stored: p.Sequence,
			Committed: max(p.Sequence, said.committed), Lost: p.lost,
		}
		if !said.at.IsZero() {
			s.LastSeen = said.at.UnixNano()
		}
		st.Streams = append(st.Streams, s)
	}
	return st
}

// Err is why nothing can be recorded, nil when it can: audit.ErrFull at the cap and
// where the disk has no room, or the error of a disk that failed. turned is closed
// when that may have become another. Only a lack of room on the disk, and of a head,
// ends by itself; the rest lasts until the ledger is opened again.
func (l *Ledger) Err() (turned <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed != nil:
		err = l.failed
	case l.full:
		err = fmt.Errorf("%w: the ledger in %s is at its cap of %d bytes: raise audit_max_bytes", audit.ErrFull, l.cfg.Dir, l.cfg.MaxBytes)
	case l.noRoom != nil:
		err = l.noRoom
	default:
		err = l.noHead
	}
	return l.turned, err
}

// turn wakes those who wait for Err to become another. Hold mu.
func (l *Ledger) turn() {
	close(l.turned)
	l.turned = make(chan struct{})
}

func (l *Ledger) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

func (l *Ledger) bytesLocked() (n int64) {
	for _, s := range l.segments {
		n += s.size
	}
	return n
}

// view is what is durable, and a channel that is closed when there is more, nil
// when the ledger is closed.
func (l *Ledger) view() ([]segmentRef, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]segmentRef(nil), l.segments...), l.changed
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("in use by another process: %w", err)
	}
	return f, nil
}
