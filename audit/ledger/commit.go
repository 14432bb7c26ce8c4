package ledger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/atomicfile"
)

// groupBytes is how much one sync may cover.
const groupBytes = 8 << 20

// request is something to commit: a batch, a resume, or events of the
// ledger's own stream that lack their sequences.
type request struct {
	batch  *audit.Batch
	resume *resume
	events [][]byte
	// the owner's events may use the reserve.
	reserve bool
	done    func(sequence uint64, err error)
}

// outcome is what a request will be told once it is durable.
type outcome struct {
	done     func(uint64, error)
	sequence uint64
	err      error
}

// commitLoop writes what is queued: many requests, one sync.
func (l *Ledger) commitLoop() {
	var buf []byte
	var out []outcome
	for {
		r, ok := l.next()
		if !ok {
			return
		}
		// Those who are about to queue go first, if there are any: on a busy
		// machine this is what lets many share a sync, on an idle one it is free.
		runtime.Gosched()
		buf, out = buf[:0], out[:0]
		for {
			var o outcome
			buf, o = l.stage(buf, r)
			out = append(out, o)
			more := false
			if len(buf) < groupBytes {
				select {
				case r, more = <-l.queue:
				default:
				}
			}
			if !more {
				break
			}
		}
		err := l.commit(buf)
		for _, o := range out {
			o.done(o.sequence, errors.Join(o.err, err))
		}
		if cap(buf) > 2*groupBytes {
			buf = nil
		}
	}
}

// stage applies a request to the work state and appends its frame. A request
// that is refused leaves both as they were.
func (l *Ledger) stage(buf []byte, r request) ([]byte, outcome) {
	o := outcome{done: r.done}
	if o.err = l.failure(); o.err != nil {
		return buf, o
	}
	if o.err = l.room(len(buf)+r.size(), r.reserve); o.err != nil {
		return l.stageAlarm(buf, "ledger is full: it acknowledges nothing more until its cap is raised"), o
	}
	// Time never goes back, even when the clock does.
	received := max(l.cfg.Clock().UnixNano(), l.work.received)
	if r.resume != nil {
		f := *r.resume
		if p := l.work.streams[f.stream]; !p.before(f.at) {
			o.err = ErrStale
			return buf, o
		}
		f.index, f.received = l.work.tree.size(), received
		var start int
		buf, start = beginFrame(buf)
		buf = endFrame(appendResume(buf, &f), start)
		l.work.resume(&f)
		l.touched = append(l.touched, f.stream)
		l.alarmed = false
		return l.stageAlarm(buf, fmt.Sprintf("records of %s before epoch %d sequence %d are missing", f.stream, f.at.Epoch, f.at.Sequence+1)), o
	}
	b := r.batch
	if b == nil {
		b = l.ownBatch(r.events)
		o.sequence = b.First
	}
	p, err := l.work.check(b.Stream, b.Epoch, b.First, b.Prev)
	if err != nil {
		o.err = err
		return buf, o
	}
	head := batch{index: l.work.tree.size(), received: received, stream: b.Stream, epoch: b.Epoch, first: b.First, prev: b.Prev}
	var start int
	buf, start = beginFrame(buf)
	buf = appendBatchHead(buf, &head, len(b.Records))
	var leaf []byte
	for i, rec := range b.Records {
		buf = appendStored(buf, rec, &b.Hashes[i])
		p.Sequence++
		p.Chain = audit.ChainNext(p.Chain, b.Hashes[i])
		p.lost += lostBy(rec.Event)
		leaf = leafOf(leaf[:0], p.start, p.Sequence, received, b.Hashes[i], p.Chain)
		l.work.tree.add(leaf)
	}
	l.work.streams[b.Stream], l.work.received = p, received
	l.touched = append(l.touched, b.Stream)
	return endFrame(buf, start), o
}

// stageAlarm records an alarm of the ledger's own, once per cause, from the
// reserve.
func (l *Ledger) stageAlarm(buf []byte, reason string) []byte {
	if l.alarmed {
		return buf
	}
	l.alarmed = true
	buf, _ = l.stage(buf, request{events: [][]byte{l.alarm(reason)}, reserve: true})
	return buf
}

func (l *Ledger) alarm(reason string) []byte {
	return audit.NewEncoder(nil).Append(nil, &audit.Event{
		Kind: auditv1.Kind_KIND_ALARM, Time: l.cfg.Clock(), Outcome: auditv1.Outcome_OUTCOME_FAILURE, Reason: reason,
		Action: &auditv1.Action{Verb: "alarmed", Actor: l.cfg.Self.String(), Object: "audit", ObjectId: "ledger"},
	})
}

func (r *request) size() int {
	n := 512
	for _, event := range r.events {
		n += recordHead + len(event)
	}
	if r.batch != nil {
		for _, rec := range r.batch.Records {
			n += recordHead + len(rec.Event)
		}
	}
	return n
}

// ownBatch gives events of the ledger's own stream their places.
func (l *Ledger) ownBatch(events [][]byte) *audit.Batch {
	p, ok := l.work.streams[l.own]
	if !ok {
		p.Position = l.own.Start(1)
	}
	salts := make([]byte, audit.SaltSize*len(events))
	// crypto/rand.Read does not fail; see its documentation.
	_, _ = rand.Read(salts)
	b := &audit.Batch{Stream: l.own, Epoch: p.Epoch, First: p.Sequence + 1, Records: make([]*auditv1.Record, len(events))}
	for i, event := range events {
		salt := salts[i*audit.SaltSize : (i+1)*audit.SaltSize : (i+1)*audit.SaltSize]
		b.Records[i] = &auditv1.Record{Event: audit.AppendSequence(event, b.First+uint64(i)), Salt: salt}
	}
	// The salts have their size, and nothing else fails.
	if err := b.Hash(p.Chain); err != nil {
		panic(err)
	}
	return b
}

// room keeps the ledger under its cap.
func (l *Ledger) room(n int, reserve bool) error {
	l.headMu.Lock()
	used := l.headBytes + int64(n)
	l.headMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	used += l.bytesLocked()
	full := used > l.cfg.MaxBytes-min(l.cfg.MaxBytes/16, maxReserve)
	if full && !l.full {
		l.cfg.Log.Error("the audit ledger is full and acknowledges nothing more: raise its cap", "max_bytes", l.cfg.MaxBytes)
		l.alarmed = false
	}
	if full && !l.full {
		l.full = true
		l.turn()
	}
	if l.full && (!reserve || used > l.cfg.MaxBytes) {
		return audit.ErrFull
	}
	return nil
}

// commit makes the staged frames durable and publishes them.
func (l *Ledger) commit(buf []byte) error {
	if len(buf) == 0 {
		return nil
	}
	ref := l.segments[len(l.segments)-1]
	if _, err := l.file.Write(buf); err != nil {
		return l.undo(ref.size, err)
	}
	if err := unix.Fdatasync(int(l.file.Fd())); err != nil {
		// What reached the disk is unknown, and a second sync would not tell.
		return l.fail(fmt.Errorf("sync ledger: %w", err))
	}
	l.mu.Lock()
	l.segments[len(l.segments)-1].size = ref.size + int64(len(buf))
	size := l.segments[len(l.segments)-1].size
	l.mu.Unlock()
	l.publish()
	l.regain()
	if size >= max(l.cfg.SegmentBytes, l.rotateAt) {
		// Whatever becomes of it, what was staged is durable.
		l.rotateAt = 0
		switch err := l.rotate(); {
		case errors.Is(err, unix.ENOSPC):
			// The old segment goes on, and has the next try a little later.
			l.rotateAt = size + l.cfg.SegmentBytes/16
			l.cfg.Log.Warn("no room for another segment of the audit ledger", "dir", l.cfg.Dir, "error", err)
		case err != nil:
			_ = l.fail(err)
		}
	}
	return nil
}

// undo takes back a write that found no room.
func (l *Ledger) undo(size int64, cause error) error {
	cause = fmt.Errorf("write ledger: %w", cause)
	if !errors.Is(cause, unix.ENOSPC) {
		return l.fail(cause)
	}
	if err := l.file.Truncate(size); err != nil {
		return l.fail(errors.Join(cause, err))
	}
	if _, err := l.file.Seek(size, io.SeekStart); err != nil {
		return l.fail(errors.Join(cause, err))
	}
	l.mu.Lock()
	l.work.tree, l.work.received = l.durable.tree.clone(), l.durable.received
	l.work.streams = maps.Clone(l.durable.streams)
	l.mu.Unlock()
	l.touched = l.touched[:0]
	return l.lack(cause)
}

// fail ends recording until the ledger is opened again.
func (l *Ledger) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = err
		l.turn()
		l.cfg.Log.Error("audit ledger failed", "error", err)
	}
	return l.failed
}

// publish shows readers and the head signer what is durable now.
func (l *Ledger) publish() {
	l.mu.Lock()
	l.durable.id, l.durable.received, l.durable.tree = l.work.id, l.work.received, l.work.tree.clone()
	for _, name := range l.touched {
		l.durable.streams[name] = l.work.streams[name]
	}
	l.touched = l.touched[:0]
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	select {
	case l.activity <- struct{}{}:
	default:
	}
}

// rotate begins a segment. Where there is no room for it the old one stays.
func (l *Ledger) rotate() error {
	old := l.file
	if err := l.newSegment(); err != nil {
		return err
	}
	if err := old.Close(); err != nil {
		return fmt.Errorf("close segment: %w", err)
	}
	return nil
}

// newSegment begins a segment with the present state.
func (l *Ledger) newSegment() error {
	index := l.work.tree.size()
	name := filepath.Join(l.cfg.Dir, segmentName(index))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("begin segment: %w", err)
	}
	buf, start := beginFrame([]byte(segmentMagic))
	buf = endFrame(appendState(buf, l.work), start)
	_, err = f.Write(buf)
	if err = errors.Join(err, f.Sync(), atomicfile.SyncDir(l.cfg.Dir)); err != nil {
		return fmt.Errorf("begin segment: %w", errors.Join(err, f.Close(), os.Remove(name)))
	}
	l.file = f
	l.mu.Lock()
	l.segments = append(l.segments, segmentRef{name: name, index: index, size: int64(len(buf))})
	l.mu.Unlock()
	return nil
}

// headLoop signs a head soon after activity, and now and then without.
func (l *Ledger) headLoop() {
	t := time.NewTimer(l.cfg.HeadHeartbeat)
	defer t.Stop()
	signed := time.Now()
	for {
		select {
		case <-l.stop:
			return
		case <-l.activity:
			t.Reset(max(l.cfg.HeadInterval-time.Since(signed), 0))
			continue
		case <-t.C:
		}
		if l.roomForHead() {
			_, err := l.signHead()
			l.keptHead(err)
		}
		signed = time.Now()
		t.Reset(l.cfg.HeadHeartbeat)
	}
}

// roomForHead ends the heartbeat when the reserve is used up. The heads of an
// archive and of a stop are signed even then.
func (l *Ledger) roomForHead() bool {
	l.headMu.Lock()
	used := l.headBytes
	l.headMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return used+l.bytesLocked() < l.cfg.MaxBytes
}

// covered is what a head covers, and how much of the file of heads tells so.
type covered struct {
	segments  []segmentRef
	headBytes int64
	at        time.Time
}

// signHead signs what is durable, appends the head to the file of heads, and
// returns what it covers.
func (l *Ledger) signHead() (covered, error) {
	l.headMu.Lock()
	defer l.headMu.Unlock()
	l.mu.Lock()
	c := covered{segments: slices.Clone(l.segments)}
	h := Head{Origin: Origin(l.cfg.TrustDomain), Size: l.durable.tree.size(), Root: l.durable.tree.root(), Time: l.cfg.Clock().UTC()}
	l.mu.Unlock()
	if h.Time.Before(l.last.Time) {
		h.Time = l.last.Time
	}
	b, err := h.sign(l.cfg.Signer)
	if err != nil {
		return covered{}, err
	}
	b = append(b, '\n')
	_, err = l.heads.Write(b)
	if err = errors.Join(err, l.heads.Sync()); err != nil {
		// Whatever part of it was written must not stand before the next one.
		_, seek := l.heads.Seek(l.headBytes, io.SeekStart)
		return covered{}, fmt.Errorf("keep head: %w", errors.Join(err, l.heads.Truncate(l.headBytes), seek))
	}
	l.headBytes += int64(len(b))
	l.last, l.haveHead = h, true
	c.headBytes, c.at = l.headBytes, h.Time
	return c, nil
}
