package ledger

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/writ-dev/writ/audit/auditv1"
)

func collectRecords(t *testing.T, path string, f *auditv1.Filter, limit int) []*auditv1.StoredRecord {
	t.Helper()
	var all []*auditv1.StoredRecord
	for r, err := range Read(context.Background(), path, f) {
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, r); len(all) == limit {
			break
		}
	}
	return all
}

// A directory in use, and an archive, give what a query gives.
func TestRead(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	for range 20 {
		if err := appendBatch(l, f.batch(webs, 3)); err != nil {
			t.Fatal(err)
		}
	}
	filter := &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_DECISION}}
	var want []*auditv1.StoredRecord
	if err := l.Query(context.Background(), filter, 0, func(r *auditv1.StoredRecord) error { want = append(want, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(want) != 60 {
		t.Fatalf("%d records, want 60", len(want))
	}
	archive := filepath.Join(t.TempDir(), "a.tar")
	w, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Archive(context.Background(), w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, path := range []string{f.cfg.Dir, archive} {
		if diff := cmp.Diff(want, collectRecords(t, path, filter, 0), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-query +read):\n%s", path, diff)
		}
		if got := collectRecords(t, path, filter, 7); len(got) != 7 {
			t.Errorf("%d records, want to end after 7", len(got))
		}
	}
	f.close(l)

	// A frame that is being written is not there yet; one that is damaged is
	// an error.
	segments, err := filepath.Glob(filepath.Join(f.cfg.Dir, "*"+segmentExt))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	last := segments[len(segments)-1]
	b, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(last, b[:len(b)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	if got := collectRecords(t, f.cfg.Dir, filter, 0); len(got) == 0 || len(got) >= 60 {
		t.Errorf("%d records before the torn frame", len(got))
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(last, b, 0o600); err != nil {
		t.Fatal(err)
	}
	failed := false
	for _, err := range Read(context.Background(), f.cfg.Dir, filter) {
		failed = failed || err != nil
	}
	if !failed {
		t.Error("a damaged ledger is read without an error")
	}
}
