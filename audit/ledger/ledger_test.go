package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/policy"
)

var (
	domain = spiffeid.RequireTrustDomainFromString("example.org")
	self   = spiffeid.RequireFromString("spiffe://example.org/writ/server")
	webs   = audit.Stream{SPIFFEID: "spiffe://example.org/svc/web", Instance: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}
	apis   = audit.Stream{SPIFFEID: "spiffe://example.org/svc/api", Instance: "6ba7b811-9dad-11d1-80b4-00c04fd430c8"}
)

// fixture is a ledger's configuration and the writers of its streams.
type fixture struct {
	t   testing.TB
	cfg Config
	at  map[audit.Stream]audit.Position
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	dir := t.TempDir()
	signer, vkey, err := LoadSigner(domain, filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, at: make(map[audit.Stream]audit.Position), cfg: Config{
		Dir: filepath.Join(dir, "ledger"), MaxBytes: 64 << 20, TrustDomain: domain, Self: self, Signer: signer, VerifierKey: vkey,
		HeadInterval: time.Hour, HeadHeartbeat: time.Hour,
	}}
}

func (f *fixture) open() *Ledger {
	f.t.Helper()
	l, err := Open(f.cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { l.Close() })
	return l
}

func (f *fixture) close(l *Ledger) {
	f.t.Helper()
	if err := l.Close(); err != nil {
		f.t.Fatal(err)
	}
}

// batch makes the next n records of a stream.
func (f *fixture) batch(s audit.Stream, n int) *audit.Batch {
	f.t.Helper()
	p, ok := f.at[s]
	if !ok {
		p = s.Start(1)
	}
	b := &audit.Batch{Stream: s, Epoch: p.Epoch, First: p.Sequence + 1}
	enc := audit.NewEncoder(nil)
	for i := range n {
		sequence := b.First + uint64(i)
		ev := &audit.Event{
			Kind: auditv1.Kind_KIND_DECISION, Time: time.Unix(1000+int64(sequence), 0), Outcome: auditv1.Outcome(1 + sequence%2),
			Input: &policy.Input{
				Layer: policy.LayerRequest, Source: policy.Source{ID: "spiffe://example.org/svc/client"},
				Destination: policy.Destination{Service: "web"}, Request: policy.Request{Path: fmt.Sprintf("/item/%d", sequence)},
			},
		}
		salt := make([]byte, audit.SaltSize)
		rand.Read(salt)
		b.Records = append(b.Records, &auditv1.Record{Event: audit.AppendSequence(enc.Append(nil, ev), sequence), Salt: salt})
	}
	if err := b.Hash(p.Chain); err != nil {
		f.t.Fatal(err)
	}
	f.at[s] = audit.Position{Epoch: p.Epoch, Sequence: p.Sequence + uint64(n), Chain: b.Last}
	return b
}

func appendBatch(l *Ledger, b *audit.Batch) error {
	done := make(chan error, 1)
	l.Append(b, func(err error) { done <- err })
	return <-done
}

func (f *fixture) append(l *Ledger, s audit.Stream, n int) {
	f.t.Helper()
	if err := appendBatch(l, f.batch(s, n)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) verify() *Report {
	f.t.Helper()
	r, err := Verify(context.Background(), VerifyConfig{Path: f.cfg.Dir, Keys: f.cfg.VerifierKey})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) verified(events uint64) {
	f.t.Helper()
	r := f.verify()
	for _, p := range r.Problems {
		f.t.Error(p)
	}
	if r.Events != events {
		f.t.Errorf("%d events, want %d", r.Events, events)
	}
}

func all(t testing.TB, l *Ledger, filter *auditv1.Filter, limit uint64) (list []*auditv1.StoredRecord) {
	t.Helper()
	if err := l.Query(context.Background(), filter, limit, func(r *auditv1.StoredRecord) error { list = append(list, r); return nil }); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestAppendAndReopen(t *testing.T) {
	f := newFixture(t)
	f.cfg.SegmentBytes = 4 << 10
	l := f.open()
	total := uint64(0)
	for i := range 40 {
		f.append(l, webs, 1+i%5)
		f.append(l, apis, 2)
		total += uint64(1+i%5) + 2
		if i%9 == 8 {
			f.close(l)
			f.verified(total)
			l = f.open()
		}
	}
	for s, want := range f.at {
		got, err := l.Resume(s, &auditv1.Hello{Epoch: 1, First: 1, Chain: make([]byte, 32)})
		if err != nil || got != want {
			t.Errorf("%s is at %v, %v, want %v", s, got, err, want)
		}
	}
	list := all(t, l, nil, 0)
	if uint64(len(list)) != total {
		t.Errorf("query: %d records, want %d", len(list), total)
	}
	last := list[len(list)-1]
	ids := audit.NewDecisionIDs(apis, 1)
	if last.DecisionId != ids.At(80) || audit.Hash(last.Chain) != f.at[apis].Chain {
		t.Errorf("last record %v", last)
	}
	if st := l.Status(); st.Events != total || st.Streams[1].Stored != f.at[webs].Sequence {
		t.Errorf("status %v", st)
	}
	f.close(l)
	f.verified(total)
}

func TestStale(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	first := f.batch(webs, 3)
	if err := appendBatch(l, first); err != nil {
		t.Fatal(err)
	}
	skipped := f.batch(webs, 1)
	for name, b := range map[string]*audit.Batch{
		"again":         first,
		"a hole":        f.batch(webs, 1),
		"another chain": {Stream: webs, Epoch: 1, First: 4, Records: skipped.Records, Hashes: skipped.Hashes},
		"earlier epoch": {Stream: webs, Epoch: 0, First: 1, Records: skipped.Records, Hashes: skipped.Hashes},
		"epoch's middle": {Stream: webs, Epoch: 2, First: 2, Records: skipped.Records, Hashes: skipped.Hashes,
			Prev: webs.Start(2).Chain},
	} {
		if err := appendBatch(l, b); !errors.Is(err, ErrStale) {
			t.Errorf("%s: %v, want ErrStale", name, err)
		}
	}
	if err := appendBatch(l, skipped); err != nil {
		t.Error(err)
	}
	f.close(l)
	f.verified(4)
}

// A stream whose past the ledger lacks is taken on, and that is on record.
func TestResumeWithoutPast(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	lost := f.batch(webs, 10)
	hello := &auditv1.Hello{Epoch: 1, First: 11, Last: 12, Chain: lost.Last[:]}
	got, err := l.Resume(webs, hello)
	if want := (audit.Position{Epoch: 1, Sequence: 10, Chain: lost.Last}); err != nil || got != want {
		t.Fatalf("position %v, %v, want %v", got, err, want)
	}
	f.append(l, webs, 2)
	f.close(l)
	l = f.open()
	f.append(l, webs, 1)
	alarms := all(t, l, &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_ALARM}}, 0)
	if len(alarms) != 1 || alarms[0].Stream.SpiffeId != self.String() {
		t.Errorf("alarms %v, want one of the ledger's own", alarms)
	}
	var status *auditv1.StreamStatus
	for _, s := range l.Status().Streams {
		if s.Stream.SpiffeId == webs.SPIFFEID {
			status = s
		}
	}
	if status.GetLost() != 10 {
		t.Errorf("lost %d, want 10", status.GetLost())
	}
	f.close(l)
	f.verified(4)
	if r := f.verify(); !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "sequence 11") }) {
		t.Errorf("notes %q do not tell of it", r.Notes)
	}
}

func TestRecorder(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	rec := l.Recorder()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := rec.Record(&audit.Event{Kind: auditv1.Kind_KIND_CREDENTIAL, Time: time.Unix(1, 0)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	f.close(l)
	l = f.open()
	got, err := l.Recorder().Record(&audit.Event{Kind: auditv1.Kind_KIND_CREDENTIAL})
	if err != nil || got.Sequence != 161 {
		t.Errorf("receipt %v, %v, want sequence 161", got, err)
	}
	if found := all(t, l, &auditv1.Filter{DecisionId: got.DecisionID}, 0); len(found) != 1 || found[0].Sequence != 161 {
		t.Errorf("found %v", found)
	}
	f.close(l)
	if _, err := rec.Record(&audit.Event{}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	f.verified(161)
}

func TestQuery(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	for range 5 {
		f.append(l, webs, 4)
	}
	ids := audit.NewDecisionIDs(webs, 1)
	for name, tc := range map[string]struct {
		filter *auditv1.Filter
		limit  uint64
		want   int
	}{
		"all":            {nil, 0, 20},
		"limit":          {nil, 7, 7},
		"time":           {&auditv1.Filter{From: time.Unix(1003, 0).UnixNano(), To: time.Unix(1006, 0).UnixNano()}, 0, 3},
		"outcome":        {&auditv1.Filter{Outcomes: []auditv1.Outcome{auditv1.Outcome_OUTCOME_DENY}}, 0, 10},
		"kind":           {&auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_GAP}}, 0, 0},
		"source":         {&auditv1.Filter{Source: "spiffe://example.org/svc/client"}, 0, 20},
		"source prefix":  {&auditv1.Filter{Source: "spiffe://example.org/*"}, 0, 20},
		"other source":   {&auditv1.Filter{Source: "spiffe://example.org/"}, 0, 0},
		"destination":    {&auditv1.Filter{Destination: "web"}, 0, 20},
		"no destination": {&auditv1.Filter{Destination: "we"}, 0, 0},
		"path":           {&auditv1.Filter{PathPrefix: "/item/1"}, 0, 11},
		"decision":       {&auditv1.Filter{DecisionId: ids.At(3)}, 0, 1},
	} {
		if got := len(all(t, l, tc.filter, tc.limit)); got != tc.want {
			t.Errorf("%s: %d records, want %d", name, got, tc.want)
		}
	}
}

func TestTail(t *testing.T) {
	f := newFixture(t)
	f.cfg.SegmentBytes = 4 << 10
	l := f.open()
	for range 10 {
		f.append(l, webs, 5)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready := make(chan struct{})
	got := make(chan uint64, 1000)
	done := make(chan error, 1)
	go func() {
		done <- l.Tail(ctx, &auditv1.TailRequest{Backlog: 12}, func() error { close(ready); return nil }, func(r *auditv1.StoredRecord) error {
			got <- r.Sequence
			return nil
		})
	}()
	<-ready
	for range 30 {
		f.append(l, webs, 3)
	}
	for want := uint64(39); want <= 140; want++ {
		if n := <-got; n != want {
			t.Fatalf("sequence %d, want %d", n, want)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("tail ended with %v", err)
	}
	n := 0
	if err := l.Tail(context.Background(), &auditv1.TailRequest{Backlog: 3, Once: true}, func() error { return nil }, func(*auditv1.StoredRecord) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("once: %d records, %v, want 3", n, err)
	}
	go func() {
		done <- l.Tail(context.Background(), &auditv1.TailRequest{}, func() error { return nil }, nil)
	}()
	f.close(l)
	if err := <-done; !errors.Is(err, audit.ErrClosed) {
		t.Errorf("tail of a closed ledger ended with %v", err)
	}
}

func TestHeadsAndArchive(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	f.append(l, webs, 5)
	f.append(l, apis, 5)
	name := filepath.Join(t.TempDir(), "a.tar")
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Archive(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	out.Close()
	f.append(l, webs, 5)
	r, err := Verify(context.Background(), VerifyConfig{Path: name, Keys: f.cfg.VerifierKey})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK || r.Events != 10 || r.Uncovered != 0 || r.LastHead.Size != 10 {
		t.Errorf("report of the archive %+v", r)
	}
	// In use, what follows the last head is not held against it.
	if r := f.verify(); !r.OK || !r.Live || r.Uncovered != 5 {
		t.Errorf("report of the ledger in use %+v", r)
	}
	f.close(l)
	f.verified(15)
}

// Time never goes back in the record, whatever the clock does.
func TestClockGoesBack(t *testing.T) {
	f := newFixture(t)
	now := time.Unix(5000, 0)
	f.cfg.Clock = func() time.Time { return now }
	l := f.open()
	f.append(l, webs, 1)
	f.close(l)
	now = time.Unix(1000, 0)
	l = f.open()
	f.append(l, webs, 1)
	for _, r := range all(t, l, nil, 0) {
		if r.Received != time.Unix(5000, 0).UnixNano() {
			t.Errorf("received %d", r.Received)
		}
	}
	f.close(l)
	f.verified(2)
}

func TestHeadText(t *testing.T) {
	h := Head{Origin: Origin(domain), Size: 12, Root: audit.Hash{1}, Time: time.Unix(1, 5).UTC()}
	if diff := cmp.Diff("writ/audit/example.org\n12\nAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\ntime 1970-01-01T00:00:01.000000005Z\n", h.text()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	got, err := parseHead(h.text())
	if err != nil || got != h {
		t.Errorf("%v, %v, want %v", got, err, h)
	}
}
