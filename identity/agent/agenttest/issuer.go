// Package agenttest runs a real issuer for tests of agents: the one of writd,
// on a loopback port, with SQLite and keys in memory.
package agenttest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/bufnet"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/unixsock"
)

// TrustDomain is the trust domain of every Issuer.
var TrustDomain = spiffeid.RequireTrustDomainFromString("example.org")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Issuer is an issuer as writd runs it.
type Issuer struct {
	Address string
	Bundle  string // file with the trust bundle
	Admin   *grpc.ClientConn
	// Dial connects to an issuer of StartInMemory, which has no Address.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	t     testing.TB
	ahead atomic.Int64 // of the clock, a time.Duration
	// What outlives a restart.
	config issuer.Config
	life   time.Duration
	file   string
	keys   keys.Memory
	listen func() (tcp, local net.Listener)
	stop   func()

	mu sync.Mutex
	// ended are the calls of agents that are over, and sent what was sent to them,
	// since the start; changed is closed when there are more.
	ended   map[string]int
	sent    Sent
	changed chan struct{}
}

// Sent counts what went to agents.
type Sent struct{ Entries, Gone, Bundles int }

// SetClock sets the issuer's clock, which is the tests' at first, ahead by d.
func (r *Issuer) SetClock(d time.Duration) { r.ahead.Store(int64(d)) }

func (r *Issuer) now() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }

// Start runs an issuer whose X509-SVIDs have the given life, until the test
// ends. Without attestors it takes join tokens.
func Start(t testing.TB, life time.Duration, attestors ...server.Attestor) *Issuer {
	t.Helper()
	return StartConfig(t, life, issuer.Config{Attestors: attestors})
}

// StartConfig is Start with a configuration of the issuer, whose limits are those
// of a benchmark where it has none. What it is made of is not for the caller.
func StartConfig(t testing.TB, life time.Duration, config issuer.Config) *Issuer {
	t.Helper()
	r := newIssuer(t, life, config)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	r.Address = "127.0.0.1:0"
	r.listen = func() (net.Listener, net.Listener) {
		tcp, err := net.Listen("tcp", r.Address)
		must(t, err)
		r.Address = tcp.Addr().String()
		local, err := unixsock.Listen(socket)
		must(t, err)
		return tcp, local
	}
	var err error
	r.Admin, err = grpc.NewClient("unix:"+unixsock.Path(socket), impatient, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	r.start()
	return r
}

// StartInMemory is Start without sockets, for tests in a bubble of synctest: a
// goroutine that waits for a socket would hold up the bubble's time.
func StartInMemory(t testing.TB, life time.Duration, attestors ...server.Attestor) *Issuer {
	t.Helper()
	return StartConfigInMemory(t, life, issuer.Config{Attestors: attestors})
}

// StartConfigInMemory is StartConfig without sockets.
func StartConfigInMemory(t testing.TB, life time.Duration, config issuer.Config) *Issuer {
	t.Helper()
	r := newIssuer(t, life, config)
	var tcp, local atomic.Pointer[bufnet.Listener]
	r.Address = "issuer:1"
	r.listen = func() (net.Listener, net.Listener) {
		tcp.Store(bufnet.Listen(1 << 20))
		local.Store(bufnet.Listen(1 << 20))
		return tcp.Load(), local.Load()
	}
	r.Dial = func(ctx context.Context, _ string) (net.Conn, error) { return tcp.Load().DialContext(ctx) }
	var err error
	r.Admin, err = grpc.NewClient("passthrough:admin", impatient, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return local.Load().DialContext(ctx) }))
	must(t, err)
	r.start()
	return r
}

// impatient has clients that find a restarted issuer at once.
var impatient = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, MaxDelay: 10 * time.Millisecond}, MinConnectTimeout: 20 * time.Second,
})

func newIssuer(t testing.TB, life time.Duration, config issuer.Config) *Issuer {
	r := &Issuer{t: t, life: life, config: config, file: filepath.Join(t.TempDir(), "writ.db"), Bundle: filepath.Join(t.TempDir(), "bundle.pem"), ended: map[string]int{}, changed: make(chan struct{})}
	c := &r.config
	c.TrustDomain, c.AttestPerSecond, c.AttestBurst = TrustDomain, 1e6, 1e6
	if c.Emit == nil {
		c.Emit = func(context.Context, identity.Act) error { return nil }
	}
	if c.SignPerSecond == 0 {
		c.SignPerSecond = -1
	}
	t.Cleanup(func() {
		r.stop()
		r.Admin.Close()
	})
	return r
}

// Restart stops the issuer and starts it again from what it keeps. In between, when
// agents cannot reach it, administrators can: that is when meanwhile runs.
func (r *Issuer) Restart(meanwhile func()) {
	r.t.Helper()
	r.stop()
	listen := r.listen
	serve := make(chan struct{})
	r.listen = func() (net.Listener, net.Listener) {
		tcp, local := listen()
		return &lateListener{Listener: tcp, serve: serve}, local
	}
	defer close(serve)
	r.start()
	r.listen = listen
	if meanwhile != nil {
		meanwhile()
	}
}

// lateListener accepts nobody until serve is closed.
type lateListener struct {
	net.Listener
	serve chan struct{}
}

func (l *lateListener) Accept() (net.Conn, error) {
	<-l.serve
	return l.Listener.Accept()
}

// Calls is how many calls of a method by agents, as in SyncAuthorizedEntries, have
// ended since the issuer was last started.
func (r *Issuer) Calls(method string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended[method]
}

// Await waits until n calls of a method have ended.
func (r *Issuer) Await(method string, n int) {
	for {
		r.mu.Lock()
		ended, changed := r.ended[method], r.changed
		r.mu.Unlock()
		if ended >= n {
			return
		}
		<-changed
	}
}

// Sent is what agents were sent since the issuer was last started.
func (r *Issuer) Sent() Sent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

func (r *Issuer) note(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Issuer) observed() []grpc.ServerOption {
	end := func(full string) { r.note(func() { r.ended[full[strings.LastIndexByte(full, '/')+1:]]++ }) }
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			defer end(info.FullMethod)
			resp, err := next(ctx, req)
			if _, ok := resp.(*types.Bundle); ok && err == nil {
				r.note(func() { r.sent.Bundles++ })
			}
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			defer end(info.FullMethod)
			return next(srv, &observedStream{ss, r})
		}),
	}
}

type observedStream struct {
	grpc.ServerStream
	r *Issuer
}

func (s *observedStream) SendMsg(m any) error {
	s.r.note(func() {
		switch m := m.(type) {
		case *entryv1.SyncAuthorizedEntriesResponse:
			s.r.sent.Entries += len(m.Entries)
		case *watchv1.SyncReply:
			s.r.sent.Entries += len(m.Changed)
			s.r.sent.Gone += len(m.Gone)
			s.r.sent.Bundles += len(m.Federated)
			if m.Bundle != nil {
				s.r.sent.Bundles++
			}
		}
	})
	return s.ServerStream.SendMsg(m)
}

func (r *Issuer) start() {
	t := r.t
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	db, err := sqldb.OpenSQLite(ctx, r.file)
	must(t, err)
	store, err := sqlstore.Open(ctx, db, sqlstore.Config{Clock: r.now, KeyFile: filepath.Join(filepath.Dir(r.file), "registry.key"), Record: func(context.Context, []identity.Act) error { return nil }})
	must(t, err)
	authority, err := ca.Open(ctx, ca.Config{TrustDomain: TrustDomain, Keys: &r.keys, Journal: store, Emit: r.config.Emit, Clock: r.now, X509SVIDLife: r.life, Revoked: store.Revocations().Now})
	must(t, err)
	config := r.config
	config.Store, config.CA, config.Clock = store, authority, r.now
	iss, err := issuer.New(config)
	must(t, err)
	r.note(func() {
		clear(r.ended)
		r.sent = Sent{}
	})
	tlsServer := grpc.NewServer(append(iss.ServerOptions(), r.observed()...)...)
	adminServer := grpc.NewServer(config.Tracer.ServerOptions()...)
	iss.Register(tlsServer, issuer.TLSCaller)
	iss.Register(adminServer, func(context.Context) (issuer.Caller, error) { return issuer.LocalCaller(0), nil })
	runCtx, stop := context.WithCancel(ctx)
	tcp, local := r.listen()
	var wg sync.WaitGroup
	wg.Go(func() { _ = iss.Run(runCtx) })
	wg.Go(func() { _ = tlsServer.Serve(tcp) })
	wg.Go(func() { _ = adminServer.Serve(local) })
	r.stop = func() {
		stop()
		tlsServer.Stop()
		adminServer.Stop()
		wg.Wait()
		db.Close()
	}
	bundle, _ := authority.Bundle()
	must(t, os.WriteFile(r.Bundle, bundle.PEM(), 0o600))
}

// Token makes a join token for the node that has the alias.
func (r *Issuer) Token(alias string) string {
	r.t.Helper()
	tok, err := agentv1.NewAgentClient(r.Admin).CreateJoinToken(r.t.Context(), &agentv1.CreateJoinTokenRequest{AgentId: id(alias)})
	must(r.t, err)
	return tok.Value
}

// Node makes an entry that names nodes: the agents with the selector.
func (r *Issuer) Node(path, kind, value string) {
	r.t.Helper()
	e := &types.Entry{SpiffeId: id(path), ParentId: id("/spire/server"), Selectors: []*types.Selector{{Type: kind, Value: value}}}
	resp, err := entryv1.NewEntryClient(r.Admin).BatchCreateEntry(r.t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	must(r.t, err)
	if resp.Results[0].Status.Code != 0 {
		r.t.Fatal(resp.Results[0].Status)
	}
}

// Create makes an entry with unix selectors and returns its id.
func (r *Issuer) Create(path, parent string, selectors ...string) string {
	r.t.Helper()
	e := &types.Entry{SpiffeId: id(path), ParentId: id(parent)}
	for _, s := range selectors {
		e.Selectors = append(e.Selectors, &types.Selector{Type: "unix", Value: s})
	}
	resp, err := entryv1.NewEntryClient(r.Admin).BatchCreateEntry(r.t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	must(r.t, err)
	if resp.Results[0].Status.Code != 0 {
		r.t.Fatal(resp.Results[0].Status)
	}
	return resp.Results[0].Entry.Id
}

// SetHint changes an entry.
func (r *Issuer) SetHint(entryID, hint string) {
	r.t.Helper()
	r.update(&types.Entry{Id: entryID, Hint: hint}, &types.EntryMask{Hint: true})
}

// SetJWTLife changes how long JWT-SVIDs of an entry live.
func (r *Issuer) SetJWTLife(entryID string, life time.Duration) {
	r.t.Helper()
	r.update(&types.Entry{Id: entryID, JwtSvidTtl: int32(life.Seconds())}, &types.EntryMask{JwtSvidTtl: true})
}

func (r *Issuer) update(e *types.Entry, mask *types.EntryMask) {
	r.t.Helper()
	resp, err := entryv1.NewEntryClient(r.Admin).BatchUpdateEntry(r.t.Context(), &entryv1.BatchUpdateEntryRequest{
		Entries: []*types.Entry{e}, InputMask: mask,
	})
	must(r.t, err)
	if resp.Results[0].Status.Code != 0 {
		r.t.Fatal(resp.Results[0].Status)
	}
}

// Template makes a template and returns it.
func (r *Issuer) Template(pattern, parent string, selectors ...string) *templatev1.Template {
	r.t.Helper()
	t := &templatev1.Template{SpiffeId: TrustDomain.IDString() + pattern, ParentId: TrustDomain.IDString() + parent, Selectors: selectors}
	resp, err := r.templates().Create(r.t.Context(), &templatev1.CreateRequest{Template: t})
	must(r.t, err)
	return resp.Template
}

// UpdateTemplate changes a template and returns it.
func (r *Issuer) UpdateTemplate(t *templatev1.Template) *templatev1.Template {
	r.t.Helper()
	resp, err := r.templates().Update(r.t.Context(), &templatev1.UpdateRequest{Template: t})
	must(r.t, err)
	return resp.Template
}

// DeleteTemplate removes a template.
func (r *Issuer) DeleteTemplate(id string) {
	r.t.Helper()
	_, err := r.templates().Delete(r.t.Context(), &templatev1.DeleteRequest{Id: id})
	must(r.t, err)
}

func (r *Issuer) templates() templatev1.AdminClient { return templatev1.NewAdminClient(r.Admin) }

// Delete removes an entry.
func (r *Issuer) Delete(entryID string) {
	r.t.Helper()
	_, err := entryv1.NewEntryClient(r.Admin).BatchDeleteEntry(r.t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{entryID}})
	must(r.t, err)
}

func id(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: TrustDomain.Name(), Path: path}
}
