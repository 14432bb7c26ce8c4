package ledger

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

func issued(n int) audit.Event {
	return audit.Event{
		Kind: auditv1.Kind_KIND_CREDENTIAL, Time: time.Unix(int64(n), 0), Outcome: auditv1.Outcome_OUTCOME_SUCCESS,
		Action: &auditv1.Action{Verb: "issued", Actor: "spiffe://example.org/node/a", Object: "x509-svid", ObjectId: fmt.Sprintf("spiffe://example.org/svc/%d", n)},
	}
}

// Events that are recorded together are events like others: each has its place
// in the chain and is found, after a restart too, and the evidence verifies.
func TestRecordAll(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	rec := l.Recorder()
	const writers, batches, size = 6, 5, 7
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for b := range batches {
				var events []audit.Event
				for i := range size {
					events = append(events, issued(w<<20|b<<10|i))
				}
				if err := rec.RecordAll(events); err != nil {
					t.Error(err)
				}
				one := issued(w<<20 | b<<10 | size)
				if _, err := rec.Record(&one); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := rec.RecordAll(nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	f.close(l)
	l = f.open()
	found := all(t, l, &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_CREDENTIAL}}, 0)
	if len(found) != writers*batches*(size+1) {
		t.Fatalf("%d events, want %d", len(found), writers*batches*(size+1))
	}
	numbers := make(map[uint64]int64, len(found))
	for _, r := range found {
		var ev auditv1.Event
		if err := proto.Unmarshal(r.Record.Event, &ev); err != nil {
			t.Fatal(err)
		}
		numbers[r.Sequence] = ev.Time / 1e9
	}
	// A batch is not torn apart by others, and keeps its order.
	for sequence, n := range numbers {
		if n&0x3ff != 0 {
			continue
		}
		for k := range int64(size) {
			if got := numbers[sequence+uint64(k)]; got != n+k {
				t.Fatalf("event %d of the batch %x is %x", k, n, got)
			}
		}
	}
	f.close(l)
	if err := rec.RecordAll([]audit.Event{issued(1)}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	f.verified(writers * batches * (size + 1))
}

// One event that is too large, and a ledger that is full, keep all of a batch
// from being recorded.
func TestRecordAllOrNone(t *testing.T) {
	f := newFixture(t)
	f.cfg.MaxBytes = MinBytes
	l := f.open()
	rec := l.Recorder()
	large := issued(2)
	for range 40 {
		large.Action.Details = append(large.Action.Details, &auditv1.Field{Name: "x", Values: []string{strings.Repeat("x", 2000)}})
	}
	large.Gap = &auditv1.Gap{Certificates: [][]byte{make([]byte, audit.MaxEventBytes)}}
	if err := rec.RecordAll([]audit.Event{issued(1), large}); !errors.Is(err, audit.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	var many []audit.Event
	for n := range 20000 {
		many = append(many, issued(n))
	}
	if err := rec.RecordAll(many); !errors.Is(err, audit.ErrFull) {
		t.Errorf("full: %v", err)
	}
	if found := all(t, l, &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_CREDENTIAL}}, 0); len(found) != 0 {
		t.Errorf("%d events of batches that were refused", len(found))
	}
	if err := rec.RecordAll(many[:2]); err != nil {
		t.Errorf("a batch that has room: %v", err)
	}
}
