package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"os"

	"google.golang.org/protobuf/proto"

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

func (s *recordSource) next(r *simulate.Recorded) error {
	stored, err, ok := s.pull()
	switch {
	case !ok:
		return io.EOF
	case err != nil:
		return err
	}
	r.Raw = stored
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

// readRecord reads the input and the decision of an event.
func readRecord(r *simulate.Recorded, event []byte) error {
	ev := new(auditv1.Event)
	if err := proto.Unmarshal(event, ev); err != nil {
		return fmt.Errorf("read event: %w", err)
	}
	var err error
	if r.Input, r.Missing, err = audit.InputOf(ev); err != nil {
		return err
	}
	d, err := audit.DecisionOf(ev)
	if err != nil {
		return err
	}
	r.Decision, r.Mode = *d, modeOf(ev.Mode)
	return nil
}
