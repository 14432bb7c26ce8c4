package ledger

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// BenchmarkRecorder is an event of the control plane's own, synced before it
// returns; in parallel callers share a sync.
func BenchmarkRecorder(b *testing.B) {
	ev := &audit.Event{
		Kind: auditv1.Kind_KIND_CREDENTIAL, Time: time.Unix(1, 0), Outcome: auditv1.Outcome_OUTCOME_SUCCESS,
		Action: &auditv1.Action{Verb: "issued", Actor: "spiffe://example.org/node/a", Object: "x509-svid", ObjectId: "spiffe://example.org/svc/web"},
	}
	open := func(b *testing.B) audit.Recorder {
		f := newFixture(b)
		f.cfg.MaxBytes = 8 << 30
		return f.open().Recorder()
	}
	b.Run("serial", func(b *testing.B) {
		rec := open(b)
		for b.Loop() {
			if _, err := rec.Record(ev); err != nil {
				b.Fatal(err)
			}
		}
	})
	// 8 callers are the connections of a busy issuer, 128 more than there ever are.
	for _, callers := range []int{8, 128} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			rec := open(b)
			b.SetParallelism(callers / runtime.GOMAXPROCS(0))
			before := cpuTime(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := rec.Record(ev); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
	b.Run("together=500", func(b *testing.B) {
		rec := open(b).(audit.BatchRecorder)
		events := make([]audit.Event, 500)
		for i := range events {
			events[i] = *ev
		}
		before := cpuTime(b)
		for b.Loop() {
			if err := rec.RecordAll(events); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N*len(events)), "cpu-ns/event")
	})
}

// cpuTime is what this process has used: the figure that other load on the
// machine disturbs least.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
