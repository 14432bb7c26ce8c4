package ledger

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// serve serves the admin service of l to one caller.
func serve(t *testing.T, l *Ledger, rec audit.Recorder, actor func(context.Context) (string, error)) auditv1.AdminClient {
	t.Helper()
	s := grpc.NewServer()
	auditv1.RegisterAdminServer(s, NewAdmin(AdminConfig{Ledger: l, Recorder: rec, Actor: actor}))
	lis := bufconn.Listen(1 << 20)
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(lis) })
	conn, err := grpc.NewClient("passthrough:ledger", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); s.Stop(); done.Wait() })
	return auditv1.NewAdminClient(conn)
}

func me(context.Context) (string, error) { return "unix:uid:1000", nil }

func collect[T any](t *testing.T, stream grpc.ServerStreamingClient[T], err error) (out []*T) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
}

func TestAdmin(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	f.append(l, webs, 20)
	client := serve(t, l, l.Recorder(), me)
	ctx := context.Background()

	q, err := client.Query(ctx, &auditv1.QueryRequest{Filter: &auditv1.Filter{PathPrefix: "/item/1"}, Limit: 4})
	if got := collect(t, q, err); len(got) != 4 || got[0].Sequence != 1 {
		t.Errorf("query: %v", got)
	}
	tail, err := client.Tail(ctx, &auditv1.TailRequest{Backlog: 2, Once: true, Filter: &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_DECISION}}})
	if got := collect(t, tail, err); len(got) != 3 || got[0].Record != nil || got[2].Record.GetSequence() != 20 {
		t.Errorf("tail: %v", got)
	}
	st, err := client.Status(ctx, &auditv1.AuditStatusRequest{})
	if err != nil || st.Events < 20 || st.Streams[0].Stream.SpiffeId != webs.SPIFFEID || st.Streams[0].Stored != 20 {
		t.Errorf("status: %v, %v", st, err)
	}
	archive, err := client.Archive(ctx, &auditv1.ArchiveRequest{})
	var tarball bytes.Buffer
	for _, c := range collect(t, archive, err) {
		tarball.Write(c.Data)
	}
	name := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(name, tarball.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(ctx, VerifyConfig{Path: name, Keys: f.cfg.VerifierKey}); err != nil || !r.OK || r.Events != 24 {
		t.Errorf("archive: %+v, %v", r, err)
	}

	// Each read is on record, by whom, and what was asked for.
	var asked []string
	for _, r := range all(t, l, &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_ADMIN}}, 0) {
		ev, err := decode(r.Record.Event)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Action.Actor != "unix:uid:1000" || ev.Action.Verb != "read" {
			t.Errorf("action %v", ev.Action)
		}
		what := ev.Action.ObjectId
		for _, d := range ev.Action.Details {
			what += " " + d.Name + "=" + d.Values[0]
		}
		asked = append(asked, what)
	}
	want := []string{"query path_prefix=/item/1", "tail kind=decision", "status", "archive"}
	if len(asked) != len(want) {
		t.Fatalf("reads on record %q, want %q", asked, want)
	}
	for i := range want {
		if asked[i] != want[i] {
			t.Errorf("read %q, want %q", asked[i], want[i])
		}
	}
}

type failing struct{}

func (failing) Record(*audit.Event) (audit.Receipt, error) { return audit.Receipt{}, audit.ErrFull }

// A read that cannot be recorded, or whose caller is not known, is refused.
func TestAdminRefuses(t *testing.T) {
	f := newFixture(t)
	l := f.open()
	ctx := context.Background()
	stranger := func(context.Context) (string, error) { return "", errors.New("who?") }
	for want, client := range map[codes.Code]auditv1.AdminClient{
		codes.Internal:        serve(t, l, failing{}, me),
		codes.Unauthenticated: serve(t, l, l.Recorder(), stranger),
	} {
		calls := map[string]func() error{
			"status":  func() error { _, err := client.Status(ctx, &auditv1.AuditStatusRequest{}); return err },
			"query":   func() error { s, _ := client.Query(ctx, &auditv1.QueryRequest{}); _, err := s.Recv(); return err },
			"tail":    func() error { s, _ := client.Tail(ctx, &auditv1.TailRequest{}); _, err := s.Recv(); return err },
			"archive": func() error { s, _ := client.Archive(ctx, &auditv1.ArchiveRequest{}); _, err := s.Recv(); return err },
		}
		for name, call := range calls {
			if got := status.Code(call()); got != want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
	}
	s, _ := serve(t, l, l.Recorder(), me).Tail(ctx, &auditv1.TailRequest{Backlog: maxBacklog + 1})
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("backlog: %v", err)
	}
}

// Heads are signed soon after activity, not more often than told, and without
// activity as a heartbeat.
func TestHeadTimes(t *testing.T) {
	f := newFixture(t)
	synctest.Test(t, func(t *testing.T) {
		f.t = t
		f.cfg.HeadInterval, f.cfg.HeadHeartbeat = 2*time.Second, 30*time.Second
		l := f.open()
		last := func() Head { l.headMu.Lock(); defer l.headMu.Unlock(); return l.last }
		opened := last().Time

		time.Sleep(10 * time.Second)
		for range 10 {
			f.append(l, webs, 1)
		}
		synctest.Wait()
		first := last()
		if first.Size == 0 || first.Time.Sub(opened) != 10*time.Second {
			t.Errorf("head of size %d %s after opening, want one at once after 10s", first.Size, first.Time.Sub(opened))
		}
		time.Sleep(2*time.Second + time.Millisecond)
		synctest.Wait()
		if h := last(); h.Size != 10 || h.Time.Sub(first.Time) > 2*time.Second {
			t.Errorf("head of size %d %s after the first, want 10 within 2s", h.Size, h.Time.Sub(first.Time))
		}
		quiet := last().Time
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if d := last().Time.Sub(quiet); d != 30*time.Second {
			t.Errorf("heartbeat after %s, want 30s", d)
		}
		f.close(l)
	})
}

func FuzzSplitHeads(f *testing.F) {
	f.Add([]byte("a\nb\n\n— x y\n\na\nb\n\n— x y\n\n"))
	f.Add([]byte("a\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		heads, rest := splitHeads(b)
		var again []byte
		for _, h := range heads {
			again = append(append(again, h...), '\n')
		}
		if string(append(again, rest...)) != string(b) {
			t.Fatalf("%q is split into %q and %q", b, heads, rest)
		}
	})
}
