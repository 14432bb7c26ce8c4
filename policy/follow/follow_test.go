package follow_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/follow"
	"github.com/writ-dev/writ/policy/policyv1"
)

var orders = spiffeid.RequireFromString("spiffe://example.org/svc/orders")

// plane is a control plane that says what the test tells it to.
type plane struct {
	policyv1.UnimplementedDistributionServer
	slices  chan []byte
	reports chan *policyv1.Report
	// sources is whether the last stream asked for them.
	sources atomic.Bool
}

func (p *plane) Watch(stream grpc.BidiStreamingServer[policyv1.WatchRequest, policyv1.Slice]) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		p.sources.Store(req.WantSources)
		p.reports <- req.Report
		select {
		case data := <-p.slices:
			if data == nil {
				return errors.New("told to hang up")
			}
			if err := stream.Send(&policyv1.Slice{Bundle: data}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

type fixture struct {
	t         *testing.T
	plane     *plane
	key       *ecdsa.PrivateKey
	config    follow.Config
	activated chan *policy.Snapshot
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := bundle.NewKeys(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	x := &fixture{t: t, key: key, plane: &plane{slices: make(chan []byte), reports: make(chan *policyv1.Report, 100)}, activated: make(chan *policy.Snapshot, 10)}
	listener := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	policyv1.RegisterDistributionServer(g, x.plane)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(listener)
	}()
	conn, err := grpc.NewClient("passthrough:plane",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
		<-served
	})
	x.config = follow.Config{
		Conn: conn, Keys: keys, Dir: filepath.Join(t.TempDir(), "policy"), Service: "orders",
		SPIFFEID: func() spiffeid.ID { return orders },
		Report:   func() *policyv1.Report { return &policyv1.Report{Version: "v1"} },
		Activate: func(s *policy.Snapshot) { x.activated <- s },
		Log:      slog.New(slog.DiscardHandler),
	}
	return x
}

func (x *fixture) run() (*follow.Follower, func()) {
	x.t.Helper()
	f, err := follow.New(x.config)
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(x.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Run(ctx)
	}()
	stop := func() { cancel(); <-done }
	x.t.Cleanup(stop)
	return f, stop
}

func (x *fixture) slice(epoch, number uint64, change ...func(*bundle.Slice)) []byte {
	x.t.Helper()
	s := &bundle.Slice{
		Revision: policy.Revision{Epoch: epoch, Number: number, Digest: [32]byte{byte(number)}},
		SPIFFEID: orders, Services: []string{"orders"}, Activated: time.Unix(1, 0),
		Content: bundle.Content{
			{Path: "data.json", Content: []byte(`{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]}}}}`)},
			{Path: "orders.rego", Content: []byte("package services.orders\n\nallow := true\n")},
		},
	}
	for _, f := range change {
		f(s)
	}
	data, err := s.Seal(x.key)
	if err != nil {
		x.t.Fatal(err)
	}
	return data
}

// ofAnother makes it a slice of a workload that is no service.
func ofAnother(s *bundle.Slice) {
	s.SPIFFEID = spiffeid.RequireFromString("spiffe://example.org/svc/x")
	s.Services = nil
	s.Content = bundle.Content{{Path: "data.json", Content: []byte(`{}`)}}
}

// resigned is the slice with another text in a file: what a control plane
// could sign that does not look at what it signs.
func (x *fixture) resigned(sealed []byte, path, text string) []byte {
	x.t.Helper()
	a, err := bundle.ReadArchive(sealed)
	if err != nil {
		x.t.Fatal(err)
	}
	for i := range a.Content {
		if a.Content[i].Path == path {
			a.Content[i].Content = []byte(text)
		}
	}
	signatures, err := a.Content.Sign(x.key, bundle.ScopeSlice)
	if err != nil {
		x.t.Fatal(err)
	}
	data, err := a.Content.Archive(signatures)
	if err != nil {
		x.t.Fatal(err)
	}
	return data
}

func TestFollow(t *testing.T) {
	x := newFixture(t)
	acts := make(chan identity.Act, 20)
	x.config.Emit = func(_ context.Context, act identity.Act) error { acts <- act; return nil }
	f, stop := x.run()
	if r := <-x.plane.reports; r.Revision != nil || r.Service != "orders" || r.Version != "v1" {
		t.Errorf("first report: %v", r)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := func() []byte {
		key := x.key
		x.key = other
		defer func() { x.key = key }()
		return x.slice(1, 99)
	}()
	good := x.slice(1, 5)
	steps := []struct {
		name    string
		data    []byte
		number  uint64 // in force afterwards
		refused string
	}{
		{"first", good, 5, ""},
		{"the same again", good, 5, ""},
		{"newer", x.slice(1, 6), 6, ""},
		{"older number", good, 6, "is not newer than 1.6"},
		{"same number, other content", x.slice(1, 6, func(s *bundle.Slice) { s.Revision.Digest[0] = 77 }), 6, "is not newer than"},
		{"forged", forged, 6, "not trusted here"},
		{"foreign", x.slice(1, 7, ofAnother), 6, "is for spiffe://example.org/svc/x"},
		{"foreign service", x.resigned(x.slice(1, 7), "data.json", `{"writ": {"services": {"orders": {"spiffe_ids": ["spiffe://example.org/svc/x"]}}}}`), 6, "not a service of"},
		{"does not compile", x.slice(1, 8, func(s *bundle.Slice) { s.Content[1].Content = []byte("package services.orders\n\nallow if nothing\n") }), 6, "orders.rego:3"},
		{"heartbeat", []byte{}, 6, "orders.rego:3"},
		{"epoch raised", x.slice(2, 1), 1, ""},
		{"old epoch", x.slice(1, 100), 1, "is not newer than 2.1"},
	}
	for _, step := range steps {
		x.plane.slices <- step.data
		r := <-x.plane.reports
		if recorded := len(acts); recorded != min(len(step.data)*len(step.refused), 1) {
			t.Errorf("%s: %d acts", step.name, recorded)
		}
		for len(acts) > 0 {
			if act := <-acts; act.Verb != "refused" || !act.Failed || act.Reason != r.Refused {
				t.Errorf("%s: act %+v", step.name, act)
			}
		}
		if r.Revision.GetNumber() != step.number || !strings.Contains(r.Refused, step.refused) || (step.refused == "") != (r.Refused == "") {
			t.Errorf("%s: reports %v", step.name, r)
		}
	}
	var numbers []uint64
	for len(x.activated) > 0 {
		numbers = append(numbers, (<-x.activated).Revision.Number)
	}
	if len(numbers) != 3 || numbers[0] != 5 || numbers[1] != 6 || numbers[2] != 1 {
		t.Errorf("activated %v", numbers)
	}
	if f.Revision().Epoch != 2 || f.LastContact().IsZero() {
		t.Errorf("revision %v, contact %v", f.Revision(), f.LastContact())
	}

	// It reconnects, and says what it runs.
	x.plane.slices <- nil
	if r := <-x.plane.reports; r.Revision.GetEpoch() != 2 {
		t.Errorf("after the reconnect: %v", r)
	}
	stop()
}

func TestKeptSlice(t *testing.T) {
	x := newFixture(t)
	_, stop := x.run()
	<-x.plane.reports
	x.plane.slices <- x.slice(1, 5)
	<-x.plane.reports
	<-x.activated
	stop()
	path := filepath.Join(x.config.Dir, "slice.tar.gz")
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	// Without a network: in force before anything is heard.
	offline := x.config
	offline.Conn = refusing{}
	x.config, offline = offline, x.config
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	f, stop := x.run()
	if s := <-x.activated; s.Revision.Number != 5 {
		t.Errorf("kept: %v", s.Revision)
	}
	if !f.LastContact().Equal(old) {
		t.Errorf("last contact %v, want %v", f.LastContact(), old)
	}
	stop()

	// What it remembers holds against the control plane, too.
	x.config = offline
	_, stop = x.run()
	<-x.activated
	if r := <-x.plane.reports; r.Revision.GetNumber() != 5 {
		t.Errorf("reports %v", r)
	}
	x.plane.slices <- x.slice(1, 4)
	if r := <-x.plane.reports; r.Revision.GetNumber() != 5 || r.Refused == "" {
		t.Errorf("older slice: %v", r)
	}
	stop()

	// A kept slice that was tampered with, or is not ours, is not used.
	for name, data := range map[string][]byte{
		"cut off": kept[:len(kept)/2],
		"foreign": x.slice(1, 6, ofAnother),
		"flipped": flip(kept),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, stop := x.run()
		if r := <-x.plane.reports; r.Revision != nil {
			t.Errorf("%s: reports %v", name, r)
		}
		stop()
	}
	if info, err := os.Stat(x.config.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
}

func flip(data []byte) []byte {
	out := bytes.Clone(data)
	out[len(out)/2] ^= 1
	return out
}

// refusing is a connection to nowhere.
type refusing struct{}

func (refusing) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return io.ErrUnexpectedEOF
}

func (refusing) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, io.ErrUnexpectedEOF
}
