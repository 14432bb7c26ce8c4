package server

import (
	"runtime"
	"strings"
	"testing"

	"github.com/writ-dev/writ/policy/policyv1"
)

// TestReportsAreSmall: what is kept of a report does not hold the report.
func TestReportsAreSmall(t *testing.T) {
	kept := make([]*policyv1.Report, 64)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range kept {
		long := strings.Repeat("x", 1<<20)
		kept[i] = bounded(&policyv1.Report{Service: long, Refused: long, NotEnforced: []string{long}})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d reports take %d bytes", len(kept), grown)
	}
	for _, r := range kept {
		if len(r.Service) != maxReportText {
			t.Fatalf("%d bytes of service are kept", len(r.Service))
		}
	}
}
