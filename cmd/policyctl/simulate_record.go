package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/export"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/policy/simulate"
)

// recordSource hands out records one by one.
type recordSource struct {
	pull   func() (*auditv1.StoredRecord, error, bool)
	closes []func()
}

// rawRecord is a record on its way to a worker, with the memory to read it.
type rawRecord struct {
	stored  *auditv1.StoredRecord
	reading audit.Reading
}

// next implements simulate.Config.Next.
func (s *recordSource) next(r *simulate.Recorded) error {
	stored, err, ok := s.pull()
	switch {
	case !ok:
		return io.EOF
	case err != nil:
		return err
	}
	raw, _ := r.Raw.(*rawRecord)
	if raw == nil {
		raw = new(rawRecord)
		r.Raw = raw
	}
	raw.stored = stored
	return nil
}

func (s *recordSource) close() {
	for _, f := range s.closes {
		f()
	}
}

// records opens the record at name, or the control plane's.
func (a *app) records(ctx context.Context, name string, filter *auditv1.Filter) (*recordSource, error) {
	s := &recordSource{}
	if name == "" {
		return s, a.storedRecords(ctx, filter, s)
	}
	seq, closeFile, err := offlineRecords(ctx, name, filter)
	if err != nil {
		return nil, fmt.Errorf("--record: %w", err)
	}
	next, stop := iter.Pull2(seq)
	s.pull, s.closes = next, []func(){stop, closeFile}
	return s, nil
}

// storedRecords asks the control plane.
func (a *app) storedRecords(ctx context.Context, filter *auditv1.Filter, s *recordSource) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	s.closes = []func(){cancel, func() { conn.Close() }}
	stream, err := auditv1.NewAdminClient(conn).Query(ctx, &auditv1.QueryRequest{Filter: filter})
	if err != nil {
		s.close()
		return rpcError(err)
	}
	s.pull = func() (*auditv1.StoredRecord, error, bool) {
		r, err := stream.Recv()
		if err == io.EOF {
			return nil, nil, false
		}
		if err != nil {
			return nil, rpcError(err), true
		}
		return r, nil, true
	}
	return nil
}

// offlineRecords are those of a ledger's directory or archive, or of an export.
func offlineRecords(ctx context.Context, name string, filter *auditv1.Filter) (iter.Seq2[*auditv1.StoredRecord, error], func(), error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	nothing := func() {}
	if info.IsDir() {
		return ledger.Read(ctx, name, filter), nothing, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	buf := bufio.NewReaderSize(f, 256<<10)
	// A line of an export is an object, and no tar file begins like one.
	if first, err := buf.Peek(1); err == nil && first[0] != '{' {
		f.Close()
		return ledger.Read(ctx, name, filter), nothing, nil
	}
	return func(yield func(*auditv1.StoredRecord, error) bool) {
		for r, err := range export.ReadJSONLines(buf) {
			if err != nil {
				yield(nil, fmt.Errorf("%s: %w", name, err))
				return
			}
			if ledger.Admits(filter, r) && !yield(r, nil) {
				return
			}
		}
	}, func() { f.Close() }, nil
}

// openRecord completes a record that a source handed out.
func openRecord(ctx context.Context, r *simulate.Recorded, known *contents, needsReads bool) {
	raw := r.Raw.(*rawRecord)
	*r = simulate.Recorded{ID: raw.stored.GetDecisionId(), Raw: raw}
	event := raw.stored.GetRecord().GetEvent()
	if len(event) == 0 {
		r.Problem = simulate.Erased
		return
	}
	d := &raw.reading
	if err := d.Read(event); errors.Is(err, audit.ErrNotDecided) {
		r.Problem = simulate.Refused
		return
	} else if err != nil {
		r.Problem, r.Detail = simulate.Malformed, err.Error()
		return
	}
	r.Input, r.Decision, r.Mode, r.Missing = &d.Input, d.Decision, d.Mode, d.Missing
	if needsReads {
		r.Reads = known.reads(ctx, r.Decision.Revision, r.Input.Destination)
	}
}
