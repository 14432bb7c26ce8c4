package sqlstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity/registry"
)

const (
	// CheckTime is how long it takes at most until each row has been read again:
	// nothing tells of what somebody else does to a database.
	CheckTime = 5 * time.Minute
	// rowsRead is how many rows are read at a time.
	rowsRead = 500
)

// RunCheck reads the rows of all entries again and again, a few at a time, and
// withholds those that are not what the issuer left, until ctx ends.
func (s *Store) RunCheck(ctx context.Context) {
	for {
		parts := len(s.index.Entries())/rowsRead + 1
		timer := time.NewTimer(CheckTime / time.Duration(parts+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if _, err := s.checkPart(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "cannot check the entries in the database, trying again", "error", err)
		}
	}
}

// Check reads the rows of all entries again.
func (s *Store) Check(ctx context.Context) error {
	s.mu.Lock()
	s.swept = ""
	s.mu.Unlock()
	for {
		if more, err := s.checkPart(ctx); err != nil || !more {
			return err
		}
	}
}

// checkPart checks the next few, and says whether there are more. With the last
// part the rows are counted too.
func (s *Store) checkPart(ctx context.Context) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.mend(ctx); err != nil {
		return false, err
	}
	s.tell(ctx)
	sqlTx, err := s.view(ctx)
	if err != nil {
		return false, fmt.Errorf("check entries: %w", err)
	}
	defer sqlTx.Rollback()
	t := &Tx{ctx: ctx, s: s, tx: sqlTx}
	st, err := t.state("")
	if err != nil {
		return false, err
	}
	if !s.shared {
		s.checkState(ctx, st)
	} else if err := s.catchUp(t, st); err != nil {
		return false, err
	}
	if s.doubt.Load() != nil {
		return false, nil // nothing is served
	}
	entries := s.index.Entries()
	from, found := slices.BinarySearchFunc(entries, s.swept, func(e *registry.Entry, id string) int { return cmp.Compare(e.ID, id) })
	if found {
		from++
	}
	part := entries[from:min(from+rowsRead, len(entries))]
	if s.swept = ""; from+rowsRead < len(entries) {
		s.swept = part[len(part)-1].ID
	}
	ids := make([]string, len(part))
	for n, e := range part {
		ids[n] = e.ID
	}
	if err := s.checkRows(t, ids); err != nil {
		return false, err
	}
	if s.swept == "" {
		return false, errors.Join(s.checkFacts(t), s.checkCount(t))
	}
	return true, nil
}

// checkRows reads the rows of some IDs again.
func (s *Store) checkRows(t *Tx, ids []string) error {
	for part := range slices.Chunk(ids, rowsRead) {
		found, err := t.rowsWhere(`id IN (`+repeat(`?`, len(part))+`)`, anys(part)...)
		if err != nil {
			return fmt.Errorf("check entries: %w", err)
		}
		s.compare(t.ctx, found, part, false)
	}
	return nil
}

// checkCount looks at all rows if there are more than there are to be, and at the
// rows of what is withheld.
func (s *Store) checkCount(t *Tx) error {
	held := *s.withheld.Load()
	rows := len(s.index.Entries()) + int(s.more.Load())
	var ids []string
	for id, w := range held {
		if ids = append(ids, id); w.Reason != Missing {
			rows++
		}
	}
	var count int
	if err := t.queryRow(`SELECT count(*) FROM registry_entries`).Scan(&count); err != nil {
		return fmt.Errorf("check entries: %w", err)
	}
	if count != rows {
		all, err := t.rowsWhere(`TRUE`)
		if err != nil {
			return fmt.Errorf("check entries: %w", err)
		}
		for _, e := range s.index.Entries() {
			ids = append(ids, e.ID)
		}
		s.compare(t.ctx, all, ids, true)
		return nil
	}
	return s.checkRows(t, ids)
}
