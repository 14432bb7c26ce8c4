package ledger

import (
	"testing"
	"time"

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
	b.Run("parallel", func(b *testing.B) {
		rec := open(b)
		b.SetParallelism(64)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := rec.Record(ev); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
