package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// errStop ends a scan early.
var errStop = errors.New("stop")

// Query calls f with every record that filter admits, in the order in which
// they were stored, until limit is reached (0 is no limit). What f is given is
// its own.
func (l *Ledger) Query(ctx context.Context, filter *auditv1.Filter, limit uint64, f func(*auditv1.StoredRecord) error) error {
	segments, _ := l.view()
	var n uint64
	s := scanner{filter: filter, f: func(r *auditv1.StoredRecord) error {
		if err := f(r); err != nil {
			return err
		}
		if n++; n == limit {
			return errStop
		}
		return nil
	}}
	for _, ref := range segments {
		if _, err := s.segment(ctx, ref, 0); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
	}
	return nil
}

// Tail calls f with the newest backlog records that filter admits, and then
// with each one as it is stored, until ctx ends or the ledger is closed. ready
// is called once the subscription is in place, before f.
func (l *Ledger) Tail(ctx context.Context, req *auditv1.TailRequest, ready func() error, f func(*auditv1.StoredRecord) error) error {
	filter := req.GetFilter()
	segments, changed := l.view()
	if err := ready(); err != nil {
		return err
	}
	old, err := newest(ctx, segments, filter, int(req.GetBacklog()))
	if err != nil {
		return err
	}
	for _, r := range old {
		if err := f(r); err != nil {
			return err
		}
	}
	if req.GetOnce() {
		return nil
	}
	s := scanner{filter: filter, f: f}
	at := segments[len(segments)-1]
	for {
		if changed == nil {
			return audit.ErrClosed
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		segments, changed = l.view()
		for _, ref := range segments {
			from := int64(0)
			if ref.name < at.name || ref.name == at.name && ref.size == at.size {
				continue
			}
			if ref.name == at.name {
				from = at.size
			}
			if _, err := s.segment(ctx, ref, from); err != nil {
				return err
			}
		}
		at = segments[len(segments)-1]
	}
}

// newest finds the newest n records, from the last segment backwards.
func newest(ctx context.Context, segments []segmentRef, filter *auditv1.Filter, n int) ([]*auditv1.StoredRecord, error) {
	var all []*auditv1.StoredRecord
	for i := len(segments) - 1; i >= 0 && len(all) < n; i-- {
		var here []*auditv1.StoredRecord
		s := scanner{filter: filter, f: func(r *auditv1.StoredRecord) error {
			if here = append(here, r); len(here) > 2*n {
				here = slices.Delete(here, 0, len(here)-n)
			}
			return nil
		}}
		if _, err := s.segment(ctx, segments[i], 0); err != nil {
			return nil, err
		}
		all = append(here, all...)
	}
	return all[max(len(all)-n, 0):], nil
}

// scanner reads records out of segments.
type scanner struct {
	filter *auditv1.Filter
	f      func(*auditv1.StoredRecord) error
	batch  batch
	ids    map[epochName]audit.DecisionIDs
}

type epochName struct {
	stream audit.Stream
	epoch  uint32
}

// segment reads a segment from where a frame begins to its durable end.
func (s *scanner) segment(ctx context.Context, ref segmentRef, from int64) (int64, error) {
	f, err := os.Open(ref.name)
	if err != nil {
		return 0, fmt.Errorf("read ledger: %w", err)
	}
	defer f.Close()
	return s.scan(ctx, filepath.Base(ref.name), f, from, ref.size)
}

// scan reads the records of a segment of size bytes.
func (s *scanner) scan(ctx context.Context, name string, r io.ReaderAt, from, size int64) (int64, error) {
	fr, err := newFrameReader(r, from, size)
	if err != nil {
		return 0, fmt.Errorf("read ledger segment %s: %w", name, err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		at := fr.off
		payload, err := fr.next()
		if err == io.EOF {
			return fr.off, nil
		}
		if err == nil && payload[0] == typeBatch {
			if err = parseBatch(payload, &s.batch); err == nil {
				if err := s.emit(); err != nil {
					return 0, err
				}
			}
		}
		if err != nil {
			return 0, fmt.Errorf("%w: segment %s offset %d: %w", ErrDamaged, name, at, err)
		}
	}
}

// emit hands out the records of the batch that the filter admits.
func (s *scanner) emit() error {
	b := &s.batch
	name := epochName{b.stream, b.epoch}
	ids, ok := s.ids[name]
	if !ok {
		if ids = audit.NewDecisionIDs(b.stream, b.epoch); s.ids == nil {
			s.ids = make(map[epochName]audit.DecisionIDs)
		}
		s.ids[name] = ids
	}
	chain := b.prev
	for i := range b.records {
		r := &b.records[i]
		chain = audit.ChainNext(chain, r.hash)
		sequence := b.first + uint64(i)
		id := ids.At(sequence)
		if !admits(s.filter, id, r.event) {
			continue
		}
		err := s.f(&auditv1.StoredRecord{
			Stream: b.stream.Proto(), Epoch: b.epoch, Sequence: sequence, DecisionId: id, Chain: chain[:], Received: b.received,
			Record: &auditv1.Record{Event: slices.Clone(r.event), Salt: slices.Clone(r.salt)},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Admits reports whether a record passes a filter; nil admits all.
func Admits(f *auditv1.Filter, r *auditv1.StoredRecord) bool {
	return admits(f, r.GetDecisionId(), r.GetRecord().GetEvent())
}

// admits applies a filter. An event that cannot be read passes only where
// nothing is asked of it.
func admits(f *auditv1.Filter, id string, event []byte) bool {
	if f == nil {
		return true
	}
	if f.DecisionId != "" && f.DecisionId != id {
		return false
	}
	if len(f.Kinds) > 0 && !slices.Contains(f.Kinds, audit.KindOf(event)) {
		return false
	}
	if f.From == 0 && f.To == 0 && len(f.Outcomes) == 0 && f.Source == "" && f.Destination == "" && f.PathPrefix == "" {
		return true
	}
	ev, err := decode(event)
	if err != nil {
		return false
	}
	switch {
	case f.From != 0 && ev.Time < f.From,
		f.To != 0 && ev.Time >= f.To,
		len(f.Outcomes) > 0 && !slices.Contains(f.Outcomes, ev.Outcome),
		!matches(f.Source, ev.GetSource().GetId()),
		!matches(f.Destination, ev.GetDestination().GetService()) && !matches(f.Destination, ev.GetDestination().GetId()),
		!strings.HasPrefix(ev.GetRequest().GetPath(), f.PathPrefix):
		return false
	}
	return true
}

func matches(pattern, s string) bool {
	if pattern == "" {
		return true
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(s, prefix)
	}
	return pattern == s
}

func decode(event []byte) (*auditv1.Event, error) {
	ev := new(auditv1.Event)
	if err := proto.Unmarshal(event, ev); err != nil {
		return nil, fmt.Errorf("read event: %w", err)
	}
	return ev, nil
}
