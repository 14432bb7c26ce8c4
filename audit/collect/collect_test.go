package collect

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
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
