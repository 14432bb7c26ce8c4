package spool

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// A collector further on in the same epoch has what this spool holds of it, or
// the two have parted at a place that nobody knows: no count is stated.
func TestAbandonBehindCollector(t *testing.T) {
	s := open(t, config(t.TempDir()))
	record(t, s, 5)
	if err := s.Abandon(audit.Position{Epoch: 1, Sequence: 8}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Record(note("on")); err != nil {
		t.Fatal(err)
	}
	want := []read{{2, 1, auditv1.Kind_KIND_GAP, "", audit.GapSpoolLost, 0}, {2, 2, auditv1.Kind_KIND_LIFECYCLE, "on", "", 0}}
	if diff := cmp.Diff(want, readAll(t, s)); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

// What is dropped while the spool holds no segment is counted by a gap too.
func TestDropWithoutSegment(t *testing.T) {
	s := open(t, config(t.TempDir()))
	s.mu.Lock()
	for _, g := range s.segments {
		g.remove()
	}
	s.segments = nil
	for range 3 {
		if _, err := s.drop(); err != nil {
			t.Error(err)
		}
	}
	s.mu.Unlock()
	if _, err := s.Record(note("on")); err != nil {
		t.Fatal(err)
	}
	want := []read{{1, 1, auditv1.Kind_KIND_GAP, "", audit.GapDrop, 3}, {1, 2, auditv1.Kind_KIND_LIFECYCLE, "on", "", 0}}
	if diff := cmp.Diff(want, readAll(t, s)); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}
