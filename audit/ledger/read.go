package ledger

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/writ-dev/writ/audit/auditv1"
)

// Read hands out the records of a ledger's directory, or of an archive of it,
// that filter admits, in the order in which they were stored. It needs no
// server, and it verifies nothing: Verify does. The last pair holds the error
// that ended it, if one did.
//
// A last frame that is not complete is left out: a ledger in use may be
// writing it.
func Read(ctx context.Context, path string, filter *auditv1.Filter) iter.Seq2[*auditv1.StoredRecord, error] {
	return func(yield func(*auditv1.StoredRecord, error) bool) {
		e, err := openEvidence(path)
		if err != nil {
			yield(nil, err)
			return
		}
		defer e.close()
		s := scanner{filter: filter, f: func(r *auditv1.StoredRecord) error {
			if !yield(r, nil) {
				return errStop
			}
			return nil
		}}
		names := e.segments()
		for i, name := range names {
			r := e.files[name]
			_, err := s.scan(ctx, name, r, 0, r.Size())
			switch {
			case errors.Is(err, errStop):
				return
			case errors.Is(err, errTorn) && i == len(names)-1:
				return
			case err != nil:
				yield(nil, fmt.Errorf("%s: %w", path, err))
				return
			}
		}
	}
}
