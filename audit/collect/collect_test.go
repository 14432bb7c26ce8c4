package collect

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/audit/spool"
	"github.com/writ-dev/writ/policy"
)

var (
	domain = spiffeid.RequireTrustDomainFromString("example.org")
	self   = spiffeid.RequireFromString("spiffe://example.org/writ/server")
	web    = spiffeid.RequireFromString("spiffe://example.org/svc/web")
)

// collector is a ledger and the gRPC server in front of it.
type collector struct {
	t      testing.TB
	dir    string
	max    int64
	ledger *ledger.Ledger
	vkey   string
	server *Server
	grpc   *grpc.Server
	lis    *bufconn.Listener
	done   sync.WaitGroup
}

func startCollector(t testing.TB, dir string, max int64) *collector {
	t.Helper()
	c := &collector{t: t, dir: dir, max: max}
	signer, vkey, err := ledger.LoadSigner(domain, filepath.Join(filepath.Dir(dir), filepath.Base(dir)+".key"))
	if err != nil {
		t.Fatal(err)
	}
	c.vkey = vkey
	c.ledger, err = ledger.Open(ledger.Config{
		Dir: dir, MaxBytes: max, TrustDomain: domain, Self: self, Signer: signer, VerifierKey: vkey,
	})
	if err != nil {
		t.Fatal(err)
	}
	// The test's stand-in for mTLS: the caller names itself.
	peer := func(ctx context.Context) (spiffeid.ID, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if v := md.Get("peer"); len(v) == 1 {
			return spiffeid.FromString(v[0])
		}
		return spiffeid.ID{}, fmt.Errorf("no peer")
	}
	c.server = NewServer(ServerConfig{Store: c.ledger, PeerID: peer})
	c.grpc = grpc.NewServer()
	auditv1.RegisterIngestServer(c.grpc, c.server)
	c.lis = bufconn.Listen(1 << 20)
	c.done.Go(func() { _ = c.grpc.Serve(c.lis) })
	return c
}

func (c *collector) stop() {
	c.t.Helper()
	c.server.Close()
	c.grpc.Stop()
	c.done.Wait()
	if err := c.ledger.Close(); err != nil {
		c.t.Error(err)
	}
}

func (c *collector) verify() *ledger.Report {
	c.t.Helper()
	r, err := ledger.Verify(context.Background(), ledger.VerifyConfig{Path: c.dir, Keys: c.vkey})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range r.Problems {
		c.t.Error(p)
	}
	return r
}

// dial connects as id to whatever collector current gives.
func dial(t testing.TB, id spiffeid.ID, current func() *collector) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:collector", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return current().lis.DialContext(ctx) }),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return streamer(metadata.AppendToOutgoingContext(ctx, "peer", id.String()), desc, cc, method, opts...)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func openSpool(t testing.TB, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: dir, MaxBytes: 8 << 20, Stream: web, OnFull: spool.Block})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func event(n int) *audit.Event {
	return &audit.Event{Kind: auditv1.Kind_KIND_LIFECYCLE, Time: time.Unix(int64(n), 0), Reason: fmt.Sprint(n)}
}

func record(t testing.TB, s *spool.Spool, n int) {
	t.Helper()
	for i := range n {
		if _, err := s.Record(event(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// ship delivers everything that is in the spool now.
func ship(t testing.TB, s *spool.Spool, c *collector) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Ship(ctx, Config{Conn: dial(t, web, func() *collector { return c }), Spool: s, Flush: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
}

func TestShip(t *testing.T) {
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	s := openSpool(t, t.TempDir())
	defer s.Close()
	record(t, s, 5000)
	ship(t, s, c)
	if st := s.Status(); st.Pending != 0 {
		t.Errorf("pending %d, want 0", st.Pending)
	}
	record(t, s, 10)
	ship(t, s, c)
	c.stop()
	if r := c.verify(); r.Events != 5010 || !r.OK {
		t.Errorf("report %+v, want 5010 events", r)
	}
}

// running is Ship in the background.
type running struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, s *spool.Spool, current func() *collector) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, cancel: cancel, done: make(chan error, 1)}
	conn := dial(t, web, current)
	go func() {
		r.done <- Ship(ctx, Config{Conn: conn, Spool: s, Flush: 30 * time.Second, Heartbeat: 10 * time.Millisecond})
	}()
	return r
}

func (r *running) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Error(err)
	}
}

// stored waits until the collector has n records of web.
func (c *collector) stored(n int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	count := 0
	enough := fmt.Errorf("enough")
	filter := &auditv1.Filter{}
	see := func(r *auditv1.StoredRecord) error {
		if r.Stream.SpiffeId == web.String() {
			if count++; count >= n {
				return enough
			}
		}
		return nil
	}
	err := c.ledger.Tail(ctx, &auditv1.TailRequest{Filter: filter, Backlog: 1 << 20}, func() error { return nil }, see)
	if err != enough {
		c.t.Fatalf("%d of %d records: %v", count, n, err)
	}
}

// A record is at the collector as soon as it is committed, not at the next
// tick of anything.
func TestPush(t *testing.T) {
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	s := openSpool(t, t.TempDir())
	defer s.Close()
	r := start(t, s, func() *collector { return c })
	for n := 1; n <= 20; n++ {
		record(t, s, 1)
		c.stored(n)
	}
	r.stop()
	c.stop()
	c.verify()
}

// The collector stops and starts again while records keep coming; none is lost
// or doubled.
func TestCollectorRestarts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	var mu sync.Mutex
	c := startCollector(t, dir, 64<<20)
	current := func() *collector { mu.Lock(); defer mu.Unlock(); return c }
	s := openSpool(t, t.TempDir())
	defer s.Close()
	r := start(t, s, current)
	for i := range 5 {
		record(t, s, 500)
		if i%2 == 0 {
			current().stored(i*500 + 100)
		}
		mu.Lock()
		c.stop()
		c = startCollector(t, dir, 64<<20)
		mu.Unlock()
	}
	current().stored(2500)
	r.stop()
	current().stop()
	if rep := current().verify(); rep.Events != 2500 {
		t.Errorf("%d events, want 2500", rep.Events)
	}
	if st := s.Status(); st.Pending != 0 {
		t.Errorf("pending %d, want 0", st.Pending)
	}
}

// A spool that opened a new epoch delivers the old one first.
func TestEpochs(t *testing.T) {
	dir := t.TempDir()
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	s := openSpool(t, dir)
	record(t, s, 100)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Without its identity a spool cannot tell what it lost.
	if err := os.Remove(filepath.Join(dir, "meta.json")); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, dir)
	defer s.Close()
	record(t, s, 10)
	ship(t, s, c)
	c.stop()
	rep := c.verify()
	if rep.Events != 111 || len(rep.Streams) != 1 || rep.Streams[0].Epoch != 2 || rep.Streams[0].Gaps != 1 {
		t.Errorf("report %+v, want 100 records, a gap and 10 records", rep)
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// A spool put back from a copy repeats sequences; the collector's record wins,
// and what was recorded since is set aside, counted and stated.
func TestSpoolPutBack(t *testing.T) {
	dir, old := t.TempDir(), filepath.Join(t.TempDir(), "old")
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	s := openSpool(t, dir)
	record(t, s, 50)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	copyDir(t, dir, old)
	s = openSpool(t, dir)
	record(t, s, 50)
	ship(t, s, c)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openSpool(t, old)
	defer s.Close()
	record(t, s, 70)
	ship(t, s, c)
	record(t, s, 5)
	ship(t, s, c)
	c.stop()
	rep := c.verify()
	if st := rep.Streams[0]; rep.Events != 106 || st.Epoch != 2 || st.Gaps != 1 || st.Lost != 120 {
		t.Errorf("report %+v, want 100 records, a gap of 120 and 5 records", rep)
	}
}

// A ledger made anew takes a stream on where its spool begins.
func TestLedgerLost(t *testing.T) {
	dir := t.TempDir()
	c := startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	s := openSpool(t, dir)
	defer s.Close()
	// Enough that acknowledged segments were freed.
	for range 3000 {
		if _, err := s.Record(&audit.Event{Kind: auditv1.Kind_KIND_LIFECYCLE, Reason: strings.Repeat("x", 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	ship(t, s, c)
	c.stop()
	c.verify()
	c = startCollector(t, filepath.Join(t.TempDir(), "ledger"), 64<<20)
	record(t, s, 5)
	ship(t, s, c)
	lost := uint64(0)
	for _, st := range c.ledger.Status().Streams {
		lost += st.Lost
	}
	c.stop()
	rep := c.verify()
	if lost == 0 || len(rep.Notes) == 0 {
		t.Errorf("lost %d, report %+v: the loss is not on record", lost, rep)
	}
	for _, st := range rep.Streams {
		if st.SPIFFEID == web.String() && (st.Sequence != 3005 || st.Records+lost != 3005) {
			t.Errorf("stream %+v, lost %d, want 3005 in all", st, lost)
		}
	}
}

// At the cap the spool keeps what the collector refuses, and its own setting
// of on_full applies.
func TestLedgerFull(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	c := startCollector(t, dir, ledger.MinBytes)
	s, err := spool.Open(spool.Config{Dir: t.TempDir(), MaxBytes: 1 << 20, Stream: web, OnFull: spool.Deny})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var mu sync.Mutex
	current := func() *collector { mu.Lock(); defer mu.Unlock(); return c }
	r := start(t, s, current)
	n := uint64(0)
	for {
		_, err := s.Record(&audit.Event{Kind: auditv1.Kind_KIND_LIFECYCLE, Reason: strings.Repeat("x", 1000)})
		if err == nil {
			n++
			continue
		}
		if _, err := current().ledger.Err(); err != nil {
			break
		}
	}
	mu.Lock()
	c.stop()
	c = startCollector(t, dir, 64<<20)
	mu.Unlock()
	current().stored(int(n))
	r.stop()
	current().stop()
	current().verify()
}

// What cannot be delivered in the time of the flush stays, and is said.
func TestFlushEnds(t *testing.T) {
	s := openSpool(t, t.TempDir())
	defer s.Close()
	record(t, s, 3)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	conn, err := grpc.NewClient("passthrough:nowhere", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return nil, net.ErrClosed }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := Ship(ctx, Config{Conn: conn, Spool: s, Flush: 50 * time.Millisecond}); err == nil || !strings.Contains(err.Error(), "3 are kept") {
		t.Errorf("error %v, want one that tells of 3 records", err)
	}
}

// BenchmarkIngest is the way of an event from the spool over gRPC into the
// ledger, synced: one operation is one event.
func BenchmarkIngest(b *testing.B) {
	c := startCollector(b, filepath.Join(b.TempDir(), "ledger"), 16<<30)
	s, err := spool.Open(spool.Config{Dir: b.TempDir(), MaxBytes: 64 << 20, Stream: web, OnFull: spool.Block})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	conn := dial(b, web, func() *collector { return c })
	ev := &audit.Event{
		Kind: auditv1.Kind_KIND_DECISION, Time: time.Unix(1700000000, 0), Outcome: auditv1.Outcome_OUTCOME_ALLOW, Mode: policy.Enforce, Enforced: true,
		Input: &policy.Input{
			Direction: policy.Inbound, Layer: policy.LayerRequest,
			Source:      policy.Source{ID: "spiffe://example.org/svc/a", TrustDomain: "example.org", Path: "/svc/a", Authn: policy.AuthnMTLS, Serial: make([]byte, 16)},
			Destination: policy.Destination{Service: "web", ID: web.String(), Port: 8443},
			Request:     policy.Request{Protocol: policy.HTTP, Method: "GET", Host: "web.local", Path: "/v1/orders/12345"},
			Connection:  policy.Connection{PeerIP: "127.0.0.1", PeerPort: 50123, TLSVersion: "1.3", SNI: "web", ALPN: "h2"},
		},
		Decision: &policy.Decision{Verdict: policy.Allow, Tier: policy.ServiceAllow, Rules: []policy.Rule{{ID: "web-reads", File: "services/web.rego", Line: 12}}},
	}
	b.ReportAllocs()
	b.ResetTimer()
	go func() { done <- Ship(ctx, Config{Conn: conn, Spool: s, Flush: time.Minute}) }()
	for range b.N {
		if _, err := s.Record(ev); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	c.stop()
}
