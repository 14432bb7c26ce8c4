package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// plane is a control plane in memory.
type plane struct {
	t         testing.TB
	server    *server.Server
	listener  *bufconn.Listener
	keys      bundle.Keys // of decisions
	publisher *ecdsa.PrivateKey
	admin     policyv1.AdminClient
	config    server.Config

	// progress has a token after a stream took in a message or ended.
	progress chan struct{}

	mu       sync.Mutex
	acts     []identity.Act
	emitFail error
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keysOf(t testing.TB, key *ecdsa.PrivateKey) bundle.Keys {
	t.Helper()
	keys, err := bundle.NewKeys(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func newPlane(t testing.TB, change func(*server.Config)) *plane {
	t.Helper()
	db, err := sqldb.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "writ.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	decision := newKey(t)
	p := &plane{t: t, keys: keysOf(t, decision), publisher: newKey(t), progress: make(chan struct{}, 1)}
	p.config = server.Config{
		DB:          db,
		DecisionKey: decision,
		Publishers:  owners.One(owners.Default, keysOf(t, p.publisher)),
		Emit: func(_ context.Context, act identity.Act) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.emitFail != nil {
				return p.emitFail
			}
			p.acts = append(p.acts, act)
			return nil
		},
		Actor: func(context.Context) string { return "unix:uid:1000" },
		// The transport's word in production; here the client's.
		PeerID: func(ctx context.Context) (spiffeid.ID, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			return spiffeid.FromString(strings.Join(md.Get("peer"), ""))
		},
		Log:   slog.New(slog.DiscardHandler),
		Clock: func() time.Time { return time.Date(2030, 1, 1, 12, 30, 0, 0, time.UTC) },
		// The machine that runs tests may be busy.
		DecisionTimeout: time.Minute,
	}
	if change != nil {
		change(&p.config)
	}
	p.start()
	return p
}

func (p *plane) start() {
	p.t.Helper()
	s, err := server.New(p.t.Context(), p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	p.server = s
	listener := bufconn.Listen(1 << 20) // The next start replaces p.listener.
	p.listener = listener
	g := grpc.NewServer(grpc.MaxRecvMsgSize(server.MaxMessageBytes), grpc.MaxSendMsgSize(server.MaxMessageBytes),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			defer p.advanced()
			return handler(srv, watched{stream, p})
		}))
	s.RegisterAdmin(g)
	s.RegisterDistribution(g)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(listener)
	}()
	p.t.Cleanup(func() {
		s.Close()
		g.Stop()
		<-served
	})
	p.admin = policyv1.NewAdminClient(p.dial(""))
}

func (p *plane) advanced() {
	select {
	case p.progress <- struct{}{}:
	default: // Nobody has looked since the last one.
	}
}

// watched tells when the next message is asked for: the last one is done.
type watched struct {
	grpc.ServerStream
	plane *plane
}

func (w watched) RecvMsg(m any) error {
	w.plane.advanced()
	return w.ServerStream.RecvMsg(m)
}

// await waits until the reports are as wanted.
func (p *plane) await(wanted func([]server.PeerReport) bool) {
	p.t.Helper()
	for !wanted(p.server.Reports()) {
		<-p.progress
	}
}

func (p *plane) dial(peer string) *grpc.ClientConn {
	p.t.Helper()
	listener := p.listener
	conn, err := grpc.NewClient("passthrough:plane",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return streamer(metadata.AppendToOutgoingContext(ctx, "peer", peer), desc, cc, method, opts...)
		}))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return conn
}

// sources is a policy whose orders service allows a method.
func sources(method string) bundle.Content {
	return bundle.Content{
		{Path: "data.json", Content: []byte(`{"writ": {"services": {
			"orders": {"spiffe_ids": ["spiffe://example.org/svc/orders"]},
			"payments": {"spiffe_ids": ["spiffe://example.org/svc/payments"]}}}}`)},
		{Path: "orders.rego", Content: []byte(fmt.Sprintf("package services.orders\n\nallow contains \"method\" if input.request.method == %q\n", method))},
		{Path: "orders_test.rego", Content: []byte(fmt.Sprintf("package orders_test\n\ntest_method if data.services.orders.allow[\"method\"] with input as {\"request\": {\"method\": %q}}\n", method))},
		{Path: "payments.rego", Content: []byte("package services.payments\n\nallow := true\n")},
	}
}

func (p *plane) bundle(c bundle.Content, key *ecdsa.PrivateKey) []byte {
	p.t.Helper()
	var signatures []byte
	if key != nil {
		var err error
		if signatures, err = c.Sign(key, bundle.ScopeSources); err != nil {
			p.t.Fatal(err)
		}
	}
	data, err := c.Archive(signatures)
	if err != nil {
		p.t.Fatal(err)
	}
	return data
}

func (p *plane) push(c bundle.Content) *policyv1.PushResponse {
	p.t.Helper()
	resp, err := p.admin.Push(p.t.Context(), &policyv1.PushRequest{Bundle: p.bundle(c, p.publisher), Message: "m"})
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

func request(service, method string) *policy.Input {
	return &policy.Input{
		Direction:   policy.Inbound,
		Layer:       policy.LayerRequest,
		Source:      policy.Source{ID: "spiffe://example.org/svc/web", TrustDomain: "example.org", Path: "/svc/web", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: service},
		Request:     policy.Request{Protocol: policy.HTTP, Method: method, Path: "/", ContentLength: -1},
		Time:        time.Date(2030, 1, 1, 12, 30, 0, 0, time.UTC),
	}
}

func verdict(d policy.Decider, in *policy.Input) policy.Verdict {
	var out policy.Decision
	d.Decide(context.Background(), in, &out)
	return out.Verdict
}

func TestPushListShowRollback(t *testing.T) {
	p := newPlane(t, nil)
	ctx := t.Context()
	if v := verdict(p.server, request("orders", "GET")); v != policy.Deny {
		t.Errorf("without a policy: %v", v)
	}
	if _, err := p.admin.Show(ctx, &policyv1.ShowRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("show without a policy: %v", err)
	}

	first := p.push(sources("GET"))
	if first.Revision.GetNumber() != 1 || first.Revision.GetEpoch() != 1 || first.Unchanged || first.Tests.GetPassed() != 1 {
		t.Errorf("first push: %v", first)
	}
	if again := p.push(sources("GET")); !again.Unchanged || again.Revision.GetNumber() != 1 {
		t.Errorf("same content: %v", again)
	}
	second := p.push(sources("POST"))
	if second.Revision.GetNumber() != 2 {
		t.Errorf("second push: %v", second)
	}
	if g, w := verdict(p.server, request("orders", "GET")), policy.Deny; g != w {
		t.Errorf("GET in revision 2: %v", g)
	}

	back, err := p.admin.Rollback(ctx, &policyv1.RollbackRequest{Number: 1, Message: "too strict"})
	if err != nil {
		t.Fatal(err)
	}
	if back.Revision.Number != 3 || string(back.Revision.Digest) != string(first.Revision.Digest) {
		t.Errorf("rollback: %v", back)
	}
	if g := verdict(p.server, request("orders", "GET")); g != policy.Allow {
		t.Errorf("GET after the rollback: %v", g)
	}

	list, err := p.admin.List(ctx, &policyv1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range list.Revisions {
		got = append(got, fmt.Sprintf("%d active=%v of=%d by %s: %s signed=%v tests=%d", r.Revision.Number, r.Active, r.RollbackOf, r.Author, r.Message, r.KeyId != "", r.Tests.Passed))
	}
	want := []string{
		"3 active=true of=1 by unix:uid:1000: too strict signed=true tests=1",
		"2 active=false of=0 by unix:uid:1000: m signed=true tests=1",
		"1 active=false of=0 by unix:uid:1000: m signed=true tests=1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	show, err := p.admin.Show(ctx, &policyv1.ShowRequest{Number: 2})
	if err != nil || len(show.Files) != 4 || show.Files[1].Path != "orders.rego" {
		t.Errorf("show: %v, %v", show, err)
	}

	var verbs []string
	for _, act := range p.acts {
		verbs = append(verbs, act.Kind+" "+act.Verb+" "+act.ObjectID[:min(3, len(act.ObjectID))])
	}
	if diff := cmp.Diff([]string{"policy activated 1.1", "policy activated 1.2", "policy rolled back 1.3"}, verbs); diff != "" {
		t.Errorf("acts (-want +got):\n%s", diff)
	}

	// A restart finds what was in force.
	p.start()
	if g := p.server.Active(); g == nil || g.Revision.Number != 3 {
		t.Errorf("after a restart: %+v", g)
	}
}

func TestPushRefuses(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	typo := sources("GET")
	typo[1].Content = []byte("package services.orders\n\nallow if input.request.metod == \"GET\"\n")
	failing := sources("GET")
	failing[2].Content = []byte("package orders_test\n\ntest_no if data.services.orders.allow[\"method\"] with input as {\"request\": {\"method\": \"PUT\"}}\n")
	tests := []struct {
		name   string
		bundle []byte
		want   string
	}{
		{"unsigned", p.bundle(sources("PUT"), nil), "signature: the bundle is not signed"},
		{"other key", p.bundle(sources("PUT"), newKey(t)), "which is not trusted here"},
		{"type", p.bundle(typo, p.publisher), `orders.rego:3:10: type: undefined ref: input.request.metod: did you mean "method"?`},
		{"test", p.bundle(failing, p.publisher), "orders_test.rego:3:1: test: test_no failed"},
		{"garbage", []byte("x"), "parse: the bundle is not a readable tar.gz"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(p.acts)
			resp, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: tt.bundle})
			if err != nil {
				t.Fatal(err)
			}
			if resp.Revision != nil || len(resp.Problems) == 0 {
				t.Fatalf("got %v", resp)
			}
			q := resp.Problems[0]
			text := policy.Problem{File: q.File, Line: int(q.Line), Column: int(q.Column), Code: q.Code, Message: q.Message}.String()
			if !strings.Contains(text, tt.want) {
				t.Errorf("got %q, want %q", text, tt.want)
			}
			if len(p.acts) != before+1 || !p.acts[before].Failed {
				t.Errorf("the attempt is not on record: %+v", p.acts[before:])
			}
		})
	}
	if a := p.server.Active(); a.Revision.Number != 1 {
		t.Errorf("in force is %v", a.Revision)
	}
	resp, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("PUT"), p.publisher), DryRun: true})
	if err != nil || resp.Revision != nil || len(resp.Problems) != 0 || resp.Tests.GetPassed() != 1 {
		t.Errorf("dry run: %v, %v", resp, err)
	}
	if a := p.server.Active(); a.Revision.Number != 1 {
		t.Errorf("a dry run activated %v", a.Revision)
	}
}

func TestAllowUnsigned(t *testing.T) {
	p := newPlane(t, func(c *server.Config) { c.AllowUnsigned = true })
	resp, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("GET"), nil)})
	if err != nil || resp.Revision.GetNumber() != 1 {
		t.Errorf("unsigned: %v, %v", resp, err)
	}
	resp, err = p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("PUT"), newKey(t))})
	if err != nil || len(resp.Problems) == 0 {
		t.Errorf("a signature that does not verify: %v, %v", resp, err)
	}
}

func TestNothingHappensOffTheRecord(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	p.emitFail = errors.New("disk full")
	if _, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("PUT"), p.publisher)}); status.Code(err) != codes.Internal {
		t.Errorf("push: %v", err)
	}
	if _, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 1}); err == nil {
		t.Error("rollback went through")
	}
	if a := p.server.Active(); a.Revision.Number != 1 {
		t.Errorf("in force is %v", a.Revision)
	}
	list, err := p.admin.List(t.Context(), &policyv1.ListRequest{})
	if err != nil || len(list.Revisions) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestBrokenGlassIsAnAlarm(t *testing.T) {
	p := newPlane(t, nil)
	c := sources("GET")
	c[0].Content = []byte(strings.TrimSuffix(string(c[0].Content), "}}") + `, "break_glass": {"b1": {"service": "orders",
		"source_ids": ["spiffe://example.org/svc/web"], "granted": "2030-01-01T12:00:00Z", "expires": "2030-01-01T13:00:00Z",
		"approvers": ["ann", "bob"], "ticket": "T1"}}}}`)
	if resp := p.push(c); resp.Revision == nil {
		t.Fatal(resp.Problems)
	}
	if n := len(p.acts); n != 2 || p.acts[1].Kind != identity.ActAlarm || p.acts[1].ObjectID != "b1" {
		t.Errorf("acts: %+v", p.acts)
	}
	if v := verdict(p.server, request("orders", "DELETE")); v != policy.Allow {
		t.Errorf("broken glass: %v", v)
	}
}

// TestGlassIsNotBrokenAhead: neither by a push nor by a rollback.
func TestGlassIsNotBrokenAhead(t *testing.T) {
	var ahead atomic.Int64 // The server reads the clock in goroutines of its own.
	p := newPlane(t, func(c *server.Config) {
		clock := c.Clock
		c.Clock = func() time.Time { return clock().Add(time.Duration(ahead.Load())) }
	})
	c := sources("GET")
	c[0].Content = []byte(strings.TrimSuffix(string(c[0].Content), "}}") + `, "break_glass": {"b1": {"service": "orders",
		"source_ids": ["spiffe://example.org/svc/web"], "granted": "2030-01-01T13:30:00Z", "expires": "2030-01-01T14:00:00Z",
		"approvers": ["ann", "bob"], "ticket": "T1"}}}}`)
	ahead.Add(-int64(time.Second))
	resp := p.push(c)
	if resp.Revision != nil || len(resp.Problems) != 1 || resp.Problems[0].File != "data.json" || resp.Problems[0].Line != 4 ||
		!strings.Contains(resp.Problems[0].Message, "break_glass.b1.granted: more than 1h0m0s ahead") {
		t.Errorf("push: %v", resp)
	}
	ahead.Add(int64(time.Second))
	if resp := p.push(c); resp.Revision == nil {
		t.Errorf("an hour ahead: %v", resp.Problems)
	}
	p.push(sources("POST"))
	ahead.Add(-int64(time.Second))
	if _, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 1}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("rollback: %v", err)
	}
}

func TestAdminDecide(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	p.push(sources("POST"))
	input, err := policy.EncodeInput(request("orders", "GET"))
	if err != nil {
		t.Fatal(err)
	}
	now, err := p.admin.Decide(t.Context(), &policyv1.DecideRequest{Input: input})
	if err != nil || now.Verdict != "deny" || now.Tier != "default-deny" {
		t.Errorf("now: %v, %v", now, err)
	}
	then, err := p.admin.Decide(t.Context(), &policyv1.DecideRequest{Input: input, Number: 1})
	if err != nil || then.Verdict != "allow" || then.Revision.Number != 1 || then.Rules[0].File != "orders.rego" || then.Rules[0].Line != 3 {
		t.Errorf("revision 1: %v, %v", then, err)
	}
	if _, err := p.admin.Decide(t.Context(), &policyv1.DecideRequest{Input: []byte(`{"versio": 1}`)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("bad input: %v", err)
	}
	if _, err := p.admin.Decide(t.Context(), &policyv1.DecideRequest{Input: input, Number: 9}); status.Code(err) != codes.NotFound {
		t.Errorf("no such revision: %v", err)
	}
}
