package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/bufnet"
	"github.com/writ-dev/writ/internal/sqldb"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// clock is a wall clock that a test moves.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// world is an issuer with real storage and real sockets.
type world struct {
	t      testing.TB
	clock  *clock
	keys   keys.Store
	store  *sqlstore.Store
	ca     *ca.CA
	issuer *issuer.Issuer
	addr   string
	file   string // the database
	admin  *grpc.ClientConn
	// tcp and local are where it listens when that is in memory.
	memory     bool
	tcp, local *bufnet.Listener
	// begin starts it, and again after end has ended it.
	begin, end func()
	stop       context.CancelFunc // ends the issuer's Run

	mu     sync.Mutex
	acts   []identity.Act
	refuse func(identity.Act) bool
}

type option func(*issuer.Config, *ca.Config)

func newWorld(t testing.TB, options ...option) *world {
	t.Helper()
	return startWorld(&world{t: t}, options...)
}

// newWorldInMemory is newWorld without sockets, for bubbles of synctest.
func newWorldInMemory(t testing.TB, options ...option) *world {
	t.Helper()
	return startWorld(&world{t: t, memory: true}, options...)
}

func startWorld(w *world, options ...option) *world {
	t := w.t
	t.Helper()
	w.clock, w.keys = &clock{}, &keys.Memory{}
	ctx := context.WithoutCancel(t.Context())
	w.file = filepath.Join(t.TempDir(), "writ.db")
	w.begin = func() {
		t.Helper()
		db, err := sqldb.OpenSQLite(ctx, w.file)
		must(t, err)
		w.store, err = sqlstore.Open(ctx, db, w.storeConfig(filepath.Dir(w.file)))
		must(t, err)
		caConfig := ca.Config{TrustDomain: td, Keys: w.keys, Journal: w.store, Emit: w.emit, Clock: w.clock.now, Revoked: w.store.Revocations().Now}
		config := issuer.Config{TrustDomain: td, Store: w.store, Emit: w.emit, Clock: w.clock.now, AttestPerSecond: 1e6, AttestBurst: 1e6, SignPerSecond: -1}
		for _, o := range options {
			o(&config, &caConfig)
		}
		w.ca, err = ca.Open(ctx, caConfig)
		must(t, err)
		config.CA = w.ca
		w.issuer, err = issuer.New(config)
		must(t, err)
		done := w.serve()
		w.end = sync.OnceFunc(func() {
			done()
			db.Close()
		})
	}
	w.begin()
	t.Cleanup(func() { w.end() })
	return w
}

// storeConfig is of a store whose key is in dir. What it records is among the acts.
func (w *world) storeConfig(dir string) sqlstore.Config {
	return sqlstore.Config{Clock: w.clock.now, KeyFile: filepath.Join(dir, "registry.key"), Record: func(ctx context.Context, acts []identity.Act) error {
		for _, act := range acts {
			if err := w.emit(ctx, act); err != nil {
				return err
			}
		}
		return nil
	}}
}

// serve opens both listeners; what it returns closes them.
func (w *world) serve() (done func()) {
	w.t.Helper()
	runCtx, stop := context.WithCancel(context.Background())
	w.stop = stop
	tlsServer := grpc.NewServer(w.issuer.ServerOptions()...)
	w.issuer.Register(tlsServer, issuer.TLSCaller)
	adminServer := grpc.NewServer()
	w.issuer.Register(adminServer, func(context.Context) (issuer.Caller, error) { return issuer.LocalCaller(1000), nil })
	tcp, unix := w.listen()
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.issuer.Run(runCtx) })
	wg.Go(func() { _ = tlsServer.Serve(tcp) })
	wg.Go(func() { _ = adminServer.Serve(unix) })
	return func() {
		w.admin.Close()
		stop()
		tlsServer.Stop()
		adminServer.Stop()
		wg.Wait()
	}
}

// listen opens where it is reached, by agents and by administrators.
func (w *world) listen() (tcp, unix net.Listener) {
	w.t.Helper()
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	var err error
	if w.memory {
		w.tcp, w.local = bufnet.Listen(1<<12), bufnet.Listen(1<<16)
		w.addr = "passthrough:issuer"
		local := w.local
		w.admin, err = grpc.NewClient("passthrough:admin", plain, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return local.DialContext(ctx) }))
		must(w.t, err)
		return w.tcp, w.local
	}
	tcp, err = net.Listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	socket := filepath.Join(w.t.TempDir(), "admin.sock")
	unix, err = net.Listen("unix", socket)
	must(w.t, err)
	w.addr = tcp.Addr().String()
	w.admin, err = grpc.NewClient("unix:"+socket, plain)
	must(w.t, err)
	return tcp, unix
}

func (w *world) emit(_ context.Context, act identity.Act) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil && w.refuse(act) {
		return errors.New("the spool is full")
	}
	w.acts = append(w.acts, act)
	return nil
}

func (w *world) refuseActs(refuse func(identity.Act) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = refuse
}

// did returns the acts on an object with a verb.
func (w *world) did(object, verb string) []identity.Act {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []identity.Act
	for _, a := range w.acts {
		if a.Object == object && a.Verb == verb {
			found = append(found, a)
		}
	}
	return found
}

func (w *world) agents() agentv1.AgentClient    { return agentv1.NewAgentClient(w.admin) }
func (w *world) entries() entryv1.EntryClient   { return entryv1.NewEntryClient(w.admin) }
func (w *world) minting() svidv1.SVIDClient     { return svidv1.NewSVIDClient(w.admin) }
func (w *world) bundles() bundlev1.BundleClient { return bundlev1.NewBundleClient(w.admin) }

// token makes a join token, with an alias unless it is empty.
func (w *world) token(alias string) string {
	w.t.Helper()
	req := &agentv1.CreateJoinTokenRequest{}
	if alias != "" {
		req.AgentId = &types.SPIFFEID{TrustDomain: td.Name(), Path: alias}
	}
	tok, err := w.agents().CreateJoinToken(w.t.Context(), req)
	must(w.t, err)
	return tok.Value
}

// create makes entries and returns them.
func (w *world) create(entries ...*types.Entry) []*types.Entry {
	w.t.Helper()
	resp, err := w.entries().BatchCreateEntry(w.t.Context(), &entryv1.BatchCreateEntryRequest{Entries: entries})
	must(w.t, err)
	var made []*types.Entry
	for _, r := range resp.Results {
		if codes.Code(r.Status.Code) != codes.OK {
			w.t.Fatalf("create entry: %v", r.Status)
		}
		made = append(made, r.Entry)
	}
	return made
}

func (w *world) deleteEntry(id string) {
	w.t.Helper()
	resp, err := w.entries().BatchDeleteEntry(w.t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{id}})
	must(w.t, err)
	if resp.Results[0].Status.Code != 0 || resp.Results[0].Id != id {
		w.t.Fatalf("delete entry: %v", resp.Results[0])
	}
}

func entry(path, parent string, selectors ...string) *types.Entry {
	e := &types.Entry{SpiffeId: id(path), ParentId: id(parent)}
	for _, s := range selectors {
		e.Selectors = append(e.Selectors, &types.Selector{Type: "unix", Value: s})
	}
	return e
}

func id(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: td.Name(), Path: path} }

// agent is a client as an agent has it.
type agent struct {
	w    *world
	id   spiffeid.ID
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	conn *grpc.ClientConn
	says []string // application protocols beside h2
	from net.IP   // of the loopback network; nil is any
}

// join attests with a token.
func (w *world) join(token string) *agent {
	w.t.Helper()
	a, err := w.tryJoin(token)
	must(w.t, err)
	return a
}

func (w *world) tryJoin(token string) (*agent, error) {
	conn := w.dial(nil)
	defer conn.Close()
	key := newKey(w.t)
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(w.t.Context())
	if err != nil {
		return nil, err
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token)},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr(w.t, key, "")},
	}}})
	if err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	a := &agent{w: w}
	a.adopt(resp.GetResult().GetSvid(), key)
	w.t.Cleanup(func() { a.conn.Close() })
	return a, nil
}

// adopt takes an SVID over and connects with it.
func (a *agent) adopt(svid *types.X509SVID, key *ecdsa.PrivateKey) {
	a.w.t.Helper()
	cert, err := x509.ParseCertificate(svid.GetCertChain()[0])
	must(a.w.t, err)
	a.id = spiffeid.RequireFromURI(cert.URIs[0])
	a.key, a.cert = key, cert
	if a.conn != nil {
		a.conn.Close()
	}
	a.conn = a.w.dial(a)
}

// dial connects to the issuer listener, with an agent's SVID or without.
func (w *world) dial(a *agent) *grpc.ClientConn {
	w.t.Helper()
	options := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(w.clientTLS(a)))}
	if w.memory {
		tcp := w.tcp
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return tcp.DialContext(ctx) }))
	}
	if a != nil && a.from != nil {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: a.from}}
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }))
	}
	conn, err := grpc.NewClient(w.addr, options...)
	must(w.t, err)
	return conn
}

func (w *world) clientTLS(a *agent) *tls.Config {
	bundle, _ := w.issuer.Bundle()
	config := &tls.Config{
		InsecureSkipVerify: true, // verified below, by SPIFFE ID instead of host name
		NextProtos:         []string{"h2"},
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0]
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://example.org/spire/server" {
				return errors.New("not the issuer")
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: bundle.Pool(), CurrentTime: w.clock.now()})
			return err
		},
	}
	if a != nil {
		config.NextProtos = append(slices.Clone(a.says), "h2")
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}}
	}
	return config
}

func (a *agent) agents() agentv1.AgentClient     { return agentv1.NewAgentClient(a.conn) }
func (a *agent) entries() entryv1.EntryClient    { return entryv1.NewEntryClient(a.conn) }
func (a *agent) svids() svidv1.SVIDClient        { return svidv1.NewSVIDClient(a.conn) }
func (a *agent) watch() watchv1.EntryWatchClient { return watchv1.NewEntryWatchClient(a.conn) }
func (a *agent) bundles() bundlev1.BundleClient  { return bundlev1.NewBundleClient(a.conn) }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// csr makes a request with a URI, or without one if it is empty.
func csr(t testing.TB, key *ecdsa.PrivateKey, uri string) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	if uri != "" {
		u, err := url.Parse(uri)
		must(t, err)
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	must(t, err)
	return der
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode checks the code of an error from the wire.
func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Fatalf("got %v, want code %v", err, want)
	}
}

// wantDenied checks a denial and its reason.
func wantDenied(t testing.TB, err error, want types.PermissionDeniedDetails_Reason) {
	t.Helper()
	wantCode(t, err, codes.PermissionDenied)
	for _, d := range status.Convert(err).Details() {
		if details, ok := d.(*types.PermissionDeniedDetails); ok {
			if details.Reason != want {
				t.Fatalf("denied for %v, want %v", details.Reason, want)
			}
			return
		}
	}
	t.Fatalf("denial %v has no details, want %v", err, want)
}

// keyIDOf is the authority ID of a certificate.
func keyIDOf(t testing.TB, der []byte) string {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return ca.KeyID(cert.SubjectKeyId)
}
