package spool

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

var web = spiffeid.RequireFromString("spiffe://example.org/svc/web")

func config(dir string) Config {
	return Config{Dir: dir, MaxBytes: MinBytes, Stream: web, Clock: func() time.Time { return time.Unix(1, 0) }}
}

func open(t testing.TB, cfg Config) *Spool {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func closeSpool(t testing.TB, s *Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func note(text string) *audit.Event {
	return &audit.Event{Kind: auditv1.Kind_KIND_LIFECYCLE, Time: time.Unix(1, 0), Reason: text}
}

func record(t testing.TB, s *Spool, n int) {
	t.Helper()
	for i := range n {
		if _, err := s.Record(note(fmt.Sprint(i))); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

// read is what a collector would get: every record held of every epoch, in
// order, its chain checked.
type read struct {
	Epoch    uint32
	Sequence uint64
	Kind     auditv1.Kind
	Reason   string
	Gap      string
	Count    uint64
}

func readAll(t testing.TB, s *Spool) []read {
	t.Helper()
	var out []read
	for epoch := uint32(0); ; {
		r, err := s.Reader(epoch)
		if err != nil {
			t.Fatal(err)
		}
		if r == nil {
			return out
		}
		chain := r.chain
		for {
			b, err := r.Next(100, 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			if b == nil {
				break
			}
			again := audit.Batch{Stream: b.Stream, Epoch: b.Epoch, First: b.First, Records: b.Records}
			if err := again.Hash(chain); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(again.Hashes, b.Hashes); diff != "" || again.Prev != b.Prev || again.Last != b.Last {
				t.Fatalf("chain of batch at %d differs", b.First)
			}
			chain = b.Last
			for i, rec := range b.Records {
				var ev auditv1.Event
				if err := proto.Unmarshal(rec.Event, &ev); err != nil {
					t.Fatal(err)
				}
				if ev.Sequence != b.First+uint64(i) {
					t.Fatalf("sequence %d at place %d", ev.Sequence, b.First+uint64(i))
				}
				out = append(out, read{b.Epoch, ev.Sequence, ev.Kind, ev.Reason, ev.Gap.GetCause(), ev.Gap.GetCount()})
			}
		}
		epoch = r.Position().Epoch + 1
	}
}

// contiguous checks that the records of each epoch are without holes, and
// returns how many there are in the last one.
func contiguous(t testing.TB, list []read) (last uint64) {
	t.Helper()
	epoch := uint32(0)
	for _, r := range list {
		if r.Epoch != epoch {
			epoch, last = r.Epoch, r.Sequence-1
		}
		if last++; r.Sequence != last {
			t.Fatalf("epoch %d: sequence %d, want %d", r.Epoch, r.Sequence, last)
		}
	}
	return last
}

func TestRecordAndRestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	ids := audit.NewDecisionIDs(s.Stream(), 1)
	for i := range uint64(1000) {
		got, err := s.Record(note("a"))
		if err != nil {
			t.Fatal(err)
		}
		if want := (audit.Receipt{Sequence: i + 1, DecisionID: ids.At(i + 1)}); got != want {
			t.Fatalf("receipt %v, want %v", got, want)
		}
	}
	stream := s.Stream()
	closeSpool(t, s)
	if _, err := s.Record(note("late")); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}

	s = open(t, config(dir))
	if s.Stream() != stream {
		t.Errorf("stream %v, want %v", s.Stream(), stream)
	}
	got, err := s.Record(note("b"))
	if err != nil || got.Sequence != 1001 {
		t.Errorf("receipt %v, %v, want sequence 1001", got, err)
	}
	if n := contiguous(t, readAll(t, s)); n != 1001 {
		t.Errorf("%d records, want 1001", n)
	}
	if st := s.Status(); st.Pending != 1001 || st.Committed != 1001 || st.Epoch != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, config(dir))
	if _, err := Open(config(dir)); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second Open: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	closeSpool(t, open(t, config(dir)))
	for name, change := range map[string]func(*Config){
		"another SPIFFE ID": func(c *Config) { c.Stream = spiffeid.RequireFromString("spiffe://example.org/svc/other") },
		"too small":         func(c *Config) { c.MaxBytes = MinBytes - 1 },
		"on_full":           func(c *Config) { c.OnFull = "wait" },
		"authorization":     func(c *Config) { c.AllowHeaders = []string{"authorization"} },
		"no SPIFFE ID":      func(c *Config) { c.Stream = spiffeid.ID{} },
	} {
		cfg := config(dir)
		change(&cfg)
		if s, err := Open(cfg); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// fill records until the spool refuses.
func fill(t *testing.T, s *Spool) (n int) {
	t.Helper()
	for {
		_, err := s.Record(note(strings.Repeat("x", 1000)))
		if errors.Is(err, audit.ErrFull) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

// acknowledge lets the spool go of everything up to what a collector read.
func acknowledge(t *testing.T, s *Spool) {
	t.Helper()
	r, err := s.Reader(0)
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, err := r.Next(1000, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			break
		}
	}
	s.Acknowledge(r.Position())
}

func TestFullDeny(t *testing.T) {
	s := open(t, config(t.TempDir()))
	n := fill(t, s)
	if n < 700 || n > 1100 {
		t.Errorf("%d records of about 1 KiB in 1 MiB", n)
	}
	if st := s.Status(); st.Bytes > MinBytes || !errors.Is(st.Err, audit.ErrFull) {
		t.Errorf("status %+v", st)
	}
	acknowledge(t, s)
	if got, err := s.Record(note("again")); err != nil || got.Sequence != uint64(n+1) {
		t.Errorf("after room: %v, %v, want sequence %d", got, err, n+1)
	}
}

func TestFullBlock(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.OnFull = Block
	s := open(t, cfg)
	const n = 3000
	done := make(chan error, 1)
	go func() {
		for range n {
			if _, err := s.Record(note(strings.Repeat("x", 1000))); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if st := s.Status(); st.Committed != n {
				t.Errorf("committed %d, want %d", st.Committed, n)
			}
			return
		default:
			acknowledge(t, s)
		}
	}
}

func TestCloseEndsBlock(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.OnFull = Block
	s := open(t, cfg)
	var blocked sync.WaitGroup
	var err error
	blocked.Go(func() {
		for err == nil {
			_, err = s.Record(note(strings.Repeat("x", 1000)))
		}
	})
	for !errors.Is(s.Status().Err, audit.ErrFull) {
	}
	closeSpool(t, s)
	blocked.Wait()
	if !errors.Is(err, audit.ErrClosed) {
		t.Errorf("error %v, want ErrClosed", err)
	}
}

func signer(t *testing.T) audit.SignGap {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(web.String())
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{u}}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return audit.SignGapWith(key, []*x509.Certificate{c})
}

func TestFullDrop(t *testing.T) {
	dir := t.TempDir()
	cfg := config(dir)
	cfg.OnFull, cfg.SignGap = Drop, signer(t)
	s := open(t, cfg)
	kept := 0
	for {
		got, err := s.Record(note(strings.Repeat("x", 1000)))
		if err != nil {
			t.Fatal(err)
		}
		if got == (audit.Receipt{}) {
			break
		}
		kept++
	}
	for range 9 {
		// A small event would still fit, but would hide the gap before it.
		if got, err := s.Record(note("small")); err != nil || got.Sequence != 0 {
			t.Fatalf("receipt %v, %v, want none", got, err)
		}
	}
	if st := s.Status(); st.Dropped != 10 {
		t.Errorf("dropped %d, want 10", st.Dropped)
	}
	// The count survives the process.
	closeSpool(t, s)
	s = open(t, cfg)
	acknowledge(t, s)
	if got, err := s.Record(note("after")); err != nil || got.Sequence != uint64(kept+2) {
		t.Fatalf("receipt %v, %v, want sequence %d", got, err, kept+2)
	}
	all := readAll(t, s)
	contiguous(t, all)
	want := []read{
		{1, uint64(kept + 1), auditv1.Kind_KIND_GAP, "", audit.GapDrop, 10},
		{1, uint64(kept + 2), auditv1.Kind_KIND_LIFECYCLE, "after", "", 0},
	}
	if diff := cmp.Diff(want, all[len(all)-2:]); diff != "" {
		t.Errorf("end of the record (-want +got):\n%s", diff)
	}
	r, err := s.Reader(1)
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, err := r.Next(1, 1)
		if err != nil || b == nil {
			t.Fatalf("no gap found: %v", err)
		}
		var ev auditv1.Event
		if err := proto.Unmarshal(b.Records[0].Event, &ev); err != nil {
			t.Fatal(err)
		}
		if ev.Gap != nil {
			if err := audit.CheckGap(s.Stream(), 1, ev.Sequence, ev.Gap); err != nil {
				t.Error(err)
			}
			return
		}
	}
}

func TestReaderSeeks(t *testing.T) {
	dir := t.TempDir()
	s := open(t, config(dir))
	for range 400 {
		if _, err := s.Record(note(strings.Repeat("x", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Reader(0)
	if err != nil {
		t.Fatal(err)
	}
	at := []audit.Position{r.Position()}
	for {
		b, err := r.Next(37, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			break
		}
		at = append(at, r.Position())
	}
	last := at[len(at)-1]
	if last.Sequence != 400 {
		t.Fatalf("read up to %d, want 400", last.Sequence)
	}
	s.Acknowledge(at[5])
	closeSpool(t, s)
	s = open(t, config(dir))
	for _, p := range at[5:] {
		r, err := s.Reader(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Seek(p); err != nil {
			t.Errorf("seek %d: %v", p.Sequence, err)
		}
	}
	for name, p := range map[string]audit.Position{
		"beyond":        {Epoch: 1, Sequence: 401, Chain: last.Chain},
		"another chain": {Epoch: 1, Sequence: 400},
		"another epoch": {Epoch: 2},
	} {
		r, err := s.Reader(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Seek(p); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
	r, err = s.Reader(0)
	if err != nil {
		t.Fatal(err)
	}
	if h := r.Hello(); h.First <= 1 || h.Last != 400 {
		t.Fatalf("hello %v: nothing was freed", h)
	}
	if err := r.Seek(audit.Position{Epoch: 1}); !errors.Is(err, ErrBehind) {
		t.Errorf("behind: %v, want ErrBehind", err)
	}
}

func TestAbandon(t *testing.T) {
	s := open(t, config(t.TempDir()))
	record(t, s, 7)
	if err := s.Abandon(audit.Position{Epoch: 3, Sequence: 9}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Record(note("on"))
	if err != nil {
		t.Fatal(err)
	}
	ids := audit.NewDecisionIDs(s.Stream(), 4)
	if want := (audit.Receipt{Sequence: 2, DecisionID: ids.At(2)}); got != want {
		t.Errorf("receipt %v, want %v", got, want)
	}
	want := []read{{4, 1, auditv1.Kind_KIND_GAP, "", audit.GapSpoolLost, 7}, {4, 2, auditv1.Kind_KIND_LIFECYCLE, "on", "", 0}}
	if diff := cmp.Diff(want, readAll(t, s)); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

func TestConcurrent(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.MaxBytes = 32 << 20
	s := open(t, cfg)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]uint64{}
	for range 8 {
		wg.Go(func() {
			for range 500 {
				got, err := s.Record(note("c"))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[got.DecisionID] = got.Sequence
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := contiguous(t, readAll(t, s)); n != 4000 || len(seen) != 4000 {
		t.Errorf("%d records, %d ids, want 4000", n, len(seen))
	}
}
