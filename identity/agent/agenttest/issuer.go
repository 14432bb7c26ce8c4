// Package agenttest runs a real issuer for tests of agents: the one of writd,
// on a loopback port, with SQLite and keys in memory.
package agenttest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
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

	t testing.TB
}

// Start runs an issuer whose X509-SVIDs have the given life, until the test
// ends. Without attestors it takes join tokens.
func Start(t testing.TB, life time.Duration, attestors ...server.Attestor) *Issuer {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	local, err := unixsock.Listen(socket)
	must(t, err)
	r := &Issuer{t: t, Address: tcp.Addr().String()}
	r.Admin, err = grpc.NewClient("unix:"+unixsock.Path(socket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	r.serve(life, tcp, local, attestors...)
	return r
}

// StartInMemory is Start without sockets, for tests in a bubble of synctest: a
// goroutine that waits for a socket would hold up the bubble's time.
func StartInMemory(t testing.TB, life time.Duration, attestors ...server.Attestor) *Issuer {
	t.Helper()
	tcp, local := bufconn.Listen(1<<20), bufconn.Listen(1<<20)
	r := &Issuer{t: t, Address: "issuer:1", Dial: func(ctx context.Context, _ string) (net.Conn, error) { return tcp.DialContext(ctx) }}
	var err error
	r.Admin, err = grpc.NewClient("passthrough:admin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return local.DialContext(ctx) }))
	must(t, err)
	r.serve(life, tcp, local, attestors...)
	return r
}

func (r *Issuer) serve(life time.Duration, tcp, local net.Listener, attestors ...server.Attestor) {
	t := r.t
	t.Helper()
	ctx := t.Context()
	db, err := sqldb.OpenSQLite(ctx, filepath.Join(t.TempDir(), "writ.db"))
	must(t, err)
	t.Cleanup(func() { db.Close() })
	store, err := sqlstore.Open(ctx, db, time.Now)
	must(t, err)
	emit := func(context.Context, identity.Act) error { return nil }
	authority, err := ca.Open(ctx, ca.Config{TrustDomain: TrustDomain, Keys: &keys.Memory{}, Journal: store, Emit: emit, X509SVIDLife: life})
	must(t, err)
	iss, err := issuer.New(issuer.Config{TrustDomain: TrustDomain, Store: store, CA: authority, Emit: emit, AttestPerSecond: 1e6, AttestBurst: 1e6, SignPerSecond: -1, Attestors: attestors})
	must(t, err)
	tlsServer, adminServer := grpc.NewServer(iss.ServerOptions()...), grpc.NewServer()
	iss.Register(tlsServer, issuer.TLSCaller)
	iss.Register(adminServer, func(context.Context) (issuer.Caller, error) { return issuer.LocalCaller(0), nil })
	runCtx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = iss.Run(runCtx) })
	wg.Go(func() { _ = tlsServer.Serve(tcp) })
	wg.Go(func() { _ = adminServer.Serve(local) })
	r.Bundle = filepath.Join(t.TempDir(), "bundle.pem")
	t.Cleanup(func() {
		r.Admin.Close()
		stop()
		tlsServer.Stop()
		adminServer.Stop()
		wg.Wait()
	})
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

// Delete removes an entry.
func (r *Issuer) Delete(entryID string) {
	r.t.Helper()
	_, err := entryv1.NewEntryClient(r.Admin).BatchDeleteEntry(r.t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{entryID}})
	must(r.t, err)
}

func id(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: TrustDomain.Name(), Path: path}
}
