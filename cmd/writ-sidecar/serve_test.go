package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/collect"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/audit/spool"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/proxy"
	"github.com/writ-dev/writ/proxy/admin"
)

var web = spiffeid.RequireFromString("spiffe://example.org/svc/web")

// fill records until there is no room, and leaves the spool to the next.
func fill(t *testing.T, dir string) {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: dir, MaxBytes: spool.MinBytes, OnFull: spool.Deny, Stream: web})
	if err != nil {
		t.Fatal(err)
	}
	ev := audit.Event{Kind: auditv1.Kind_KIND_LIFECYCLE, Time: time.Unix(1, 0), Reason: "r"}
	for err == nil {
		_, err = s.Record(&ev)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// startSidecar runs a sidecar over the spool in dir, whose collector is
// reached by dial.
func startSidecar(t *testing.T, dir string, onFull spool.OnFull, dial func(context.Context) (net.Conn, error)) (s *sidecar, stop func() error) {
	t.Helper()
	cfg := proxy.Default()
	cfg.TrustDomain, cfg.Service, cfg.Drain = "example.org", "web", 0
	cfg.Upstreams = []proxy.Upstream{{Name: "orders", Listen: "127.0.0.1:0", Address: "127.0.0.1:1", SPIFFEID: "spiffe://example.org/svc/orders", Protocol: "http"}}
	s = &sidecar{cfg: cfg, log: slog.New(slog.DiscardHandler), id: web, decided: make(chan struct{})}
	close(s.decided)
	var err error
	if s.spool, err = spool.Open(spool.Config{Dir: dir, MaxBytes: spool.MinBytes, OnFull: onFull, Stream: web}); err != nil {
		t.Fatal(err)
	}
	s.conn, err = grpc.NewClient("passthrough:collector", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	metrics := admin.NewMetrics()
	ca := testpki.New(t, "example.org")
	s.proxy, err = proxy.New(proxy.Options{Config: cfg, Source: testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle()), Recorder: s.spool, Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	if s.admin, err = admin.Listen(admin.Config{Addr: "127.0.0.1:0", Metrics: metrics, Waiting: s.proxy.Waiting, Log: s.log}); err != nil {
		t.Fatal(err)
	}
	if err := s.proxy.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	return s, func() error {
		cancel()
		err := <-done
		if cerr := s.close(); err == nil {
			err = cerr
		}
		return err
	}
}

// A spool that is full, and whose collector is away, neither keeps the sidecar
// from starting nor from stopping.
func TestFullSpoolWithoutCollector(t *testing.T) {
	for _, onFull := range []spool.OnFull{spool.Deny, spool.Block} {
		t.Run(string(onFull), func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir)
			_, stop := startSidecar(t, dir, onFull, func(context.Context) (net.Conn, error) { return nil, errors.New("nobody is there") })
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A spool that the last process left full is emptied by the next one.
func TestFullSpoolDrainsAfterRestart(t *testing.T) {
	for _, onFull := range []spool.OnFull{spool.Deny, spool.Block} {
		t.Run(string(onFull), func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir)
			s, stop := startSidecar(t, dir, onFull, startCollector(t))
			for s.spool.Status().Pending > 2 {
				wait(t)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// wait lets others run before the next look, until the test's time is up.
func wait(t *testing.T) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(5 * time.Millisecond):
	}
}

// startCollector gives the way to a collector with a ledger of its own.
func startCollector(t *testing.T) func(context.Context) (net.Conn, error) {
	t.Helper()
	dir := t.TempDir()
	signer, vkey, err := ledger.LoadSigner(web.TrustDomain(), filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(ledger.Config{
		Dir: filepath.Join(dir, "ledger"), TrustDomain: web.TrustDomain(), Self: spiffeid.RequireFromString("spiffe://example.org/writ/server"),
		MaxBytes: 64 << 20, Signer: signer, VerifierKey: vkey,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := collect.NewServer(collect.ServerConfig{Store: l, PeerID: func(context.Context) (spiffeid.ID, error) { return web, nil }})
	g := grpc.NewServer()
	auditv1.RegisterIngestServer(g, server)
	lis := bufconn.Listen(1 << 20)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(lis)
	}()
	t.Cleanup(func() {
		server.Close()
		g.Stop()
		<-served
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return lis.DialContext
}
