package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/bufnet"
)

var testTD = spiffeid.RequireTrustDomainFromString("example.org")

func need[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// fake is an issuer in memory that speaks SPIRE's server API over TLS and can
// be made to misbehave. The real one is what real_test.go runs.
type fake struct {
	agentv1.UnimplementedAgentServer
	entryv1.UnimplementedEntryServer
	svidv1.UnimplementedSVIDServer
	bundlev1.UnimplementedBundleServer

	serverID spiffeid.ID
	key      *ecdsa.PrivateKey
	ca       *x509.Certificate
	jwtKey   *ecdsa.PrivateKey

	mu       sync.Mutex
	tokens   map[string]bool
	serial   int64
	active   map[string]int64 // serial in force, by agent ID
	pending  map[string]int64 // renewed and not used yet
	life     time.Duration    // of workloads' X509-SVIDs
	own      time.Duration    // of agents'
	jwtLife  time.Duration
	backdate time.Duration
	entries  []*types.Entry
	// templates are served where there are any at the start.
	templates []*templatev1.Template
	fed       map[string]*types.Bundle
	paged     bool // answer syncs with revisions
	noSync    bool // older than SyncAuthorizedEntries
	noWatch   bool
	deny      types.PermissionDeniedDetails_Reason // what agents' calls are refused with
	fail      map[string]error                     // by method name
	keyID     string                               // of the JWT authority
	twist     func(*svidv1.BatchNewX509SVIDResponse)
	calls     map[string]int
	signedAt  []time.Time
	batches   []batch
	renewals  []time.Duration // what was said to be left, at each
	asked     [][]string      // ids in paged syncs
	changed   chan struct{}
	// missed makes answers to Sync of what is true; nil is an issuer without it.
	missed func(*watchv1.SyncRequest, *watchv1.SyncReply)

	// where it listens now; nil is down
	ln *bufnet.Listener
	gs *grpc.Server
	wg sync.WaitGroup
}

// batch is a request for SVIDs: what for, and what the agent said of it.
type batch struct {
	class   admit.Class
	life    time.Duration
	entries []string
}

func newFake() *fake {
	f := &fake{
		key:    need(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		jwtKey: need(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		tokens: map[string]bool{"token-1": true, "token-2": true}, active: map[string]int64{}, pending: map[string]int64{},
		life: time.Hour, own: time.Hour, jwtLife: 5 * time.Minute, backdate: 10 * time.Second, keyID: "jwt-1",
		fail: map[string]error{}, calls: map[string]int{}, fed: map[string]*types.Bundle{}, changed: make(chan struct{}),
		serverID: spiffeid.RequireFromPath(testTD, "/spire/server"),
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, URIs: []*url.URL{testTD.ID().URL()},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	f.ca = need(x509.ParseCertificate(need(x509.CreateCertificate(rand.Reader, template, template, f.key.Public(), f.key))))
	return f
}

// start makes the issuer answer.
func (f *fake) start() {
	cert := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		key := need(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		f.mu.Lock()
		defer f.mu.Unlock()
		der, _ := f.sign(f.serverID, key.Public(), time.Hour)
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	}
	roots := x509.NewCertPool()
	roots.AddCert(f.ca)
	gs := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: cert, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots, SessionTicketsDisabled: true})),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := f.admit(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := f.admit(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, ss)
		}),
		grpc.WaitForHandlers(true),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return status.Error(codes.Unimplemented, "unknown service") }), // counted above
	)
	agentv1.RegisterAgentServer(gs, f)
	entryv1.RegisterEntryServer(gs, f)
	svidv1.RegisterSVIDServer(gs, f)
	bundlev1.RegisterBundleServer(gs, f)
	if f.templates != nil {
		templatev1.RegisterIssuanceServer(gs, &fakeIssuance{f: f})
	}
	if !f.noWatch {
		watchv1.RegisterEntryWatchServer(gs, &fakeWatch{f: f})
	}
	ln := bufnet.Listen(1 << 20)
	f.mu.Lock()
	f.ln, f.gs = ln, gs
	f.mu.Unlock()
	f.wg.Go(func() { _ = gs.Serve(ln) })
}

// stop makes it unreachable.
func (f *fake) stop() {
	f.mu.Lock()
	gs := f.gs
	f.ln, f.gs = nil, nil
	f.mu.Unlock()
	if gs != nil {
		gs.Stop()
	}
	f.wg.Wait()
}

func (f *fake) dial(ctx context.Context, _ string) (net.Conn, error) {
	f.mu.Lock()
	ln := f.ln
	f.mu.Unlock()
	if ln == nil {
		return nil, fmt.Errorf("connection refused")
	}
	return ln.DialContext(ctx)
}

// with changes the issuer and tells those who watch.
func (f *fake) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

// admit is the issuer's authorization.
func (f *fake) admit(ctx context.Context, full string) error {
	method := full[strings.LastIndexByte(full, '/')+1:]
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[method]++
	if err := f.fail[method]; err != nil {
		return err
	}
	if method == "AttestAgent" || method == "GetBundle" {
		return nil
	}
	reason := f.deny
	p, _ := peer.FromContext(ctx)
	certs := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates
	if len(certs) == 0 {
		reason = types.PermissionDeniedDetails_AGENT_NOT_ATTESTED
	} else {
		id, serial := certs[0].URIs[0].String(), certs[0].SerialNumber.Int64()
		if f.pending[id] == serial {
			f.active[id] = serial
		}
		switch {
		case reason != 0:
		case !time.Now().Before(certs[0].NotAfter):
			reason = types.PermissionDeniedDetails_AGENT_EXPIRED
		case f.active[id] != serial:
			reason = types.PermissionDeniedDetails_AGENT_NOT_ACTIVE
		}
	}
	if reason == 0 {
		return nil
	}
	return need(status.New(codes.PermissionDenied, "agent refused").WithDetails(&types.PermissionDeniedDetails{Reason: reason})).Err()
}

// sign makes an X509-SVID. The lock is held.
func (f *fake) sign(id spiffeid.ID, key crypto.PublicKey, life time.Duration) ([]byte, int64) {
	f.serial++
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(f.serial), URIs: []*url.URL{id.URL()},
		NotBefore: now.Add(-f.backdate), NotAfter: now.Add(life), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return need(x509.CreateCertificate(rand.Reader, template, f.ca, key, f.key)), f.serial
}

func (f *fake) signCSR(id spiffeid.ID, csr []byte, life time.Duration) (*types.X509SVID, int64, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil || req.CheckSignature() != nil || len(req.URIs) > 0 {
		return nil, 0, status.Error(codes.InvalidArgument, "bad CSR")
	}
	der, serial := f.sign(id, req.PublicKey, life)
	return &types.X509SVID{CertChain: [][]byte{der}, Id: pb(id), ExpiresAt: time.Now().Add(life).Unix()}, serial, nil
}

func pb(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

func (f *fake) AttestAgent(stream agentv1.Agent_AttestAgentServer) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	token := string(req.GetParams().GetData().GetPayload())
	if req.GetParams().GetData().GetType() != "join_token" || !f.tokens[token] {
		return status.Error(codes.PermissionDenied, "join token was not accepted")
	}
	delete(f.tokens, token)
	id := spiffeid.RequireFromPath(testTD, "/spire/agent/join_token/"+token)
	svid, serial, err := f.signCSR(id, req.GetParams().GetParams().GetCsr(), f.own)
	if err != nil {
		return err
	}
	f.active[id.String()] = serial
	return stream.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Result_{Result: &agentv1.AttestAgentResponse_Result{Svid: svid}}})
}

func (f *fake) RenewAgent(ctx context.Context, req *agentv1.RenewAgentRequest) (*agentv1.RenewAgentResponse, error) {
	_, life := admit.Stated(ctx, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renewals = append(f.renewals, life)
	p, _ := peer.FromContext(ctx)
	id := need(spiffeid.FromURI(p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].URIs[0]))
	svid, serial, err := f.signCSR(id, req.GetParams().GetCsr(), f.own)
	if err != nil {
		return nil, err
	}
	f.pending[id.String()] = serial
	return &agentv1.RenewAgentResponse{Svid: svid}, nil
}

func (f *fake) PostStatus(context.Context, *agentv1.PostStatusRequest) (*agentv1.PostStatusResponse, error) {
	return &agentv1.PostStatusResponse{}, nil
}

func (f *fake) GetBundle(context.Context, *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &types.Bundle{
		TrustDomain: testTD.Name(), X509Authorities: []*types.X509Certificate{{Asn1: f.ca.Raw}},
		JwtAuthorities: []*types.JWTKey{{KeyId: f.keyID, PublicKey: need(x509.MarshalPKIXPublicKey(f.jwtKey.Public()))}}, SequenceNumber: 1,
	}, nil
}

func (f *fake) GetFederatedBundle(_ context.Context, req *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.fed[req.TrustDomain]; b != nil {
		return b, nil
	}
	return nil, status.Error(codes.NotFound, "no such bundle")
}

func (f *fake) GetAuthorizedEntries(context.Context, *entryv1.GetAuthorizedEntriesRequest) (*entryv1.GetAuthorizedEntriesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &entryv1.GetAuthorizedEntriesResponse{Entries: slices.Clone(f.entries)}, nil
}

func (f *fake) SyncAuthorizedEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	f.mu.Lock()
	entries, paged, noSync := slices.Clone(f.entries), f.paged, f.noSync
	f.mu.Unlock()
	switch {
	case noSync:
		return status.Error(codes.Unimplemented, "unknown method")
	case len(first.Ids) > 0 || !first.OutputMask.GetRevisionNumber():
		return status.Error(codes.InvalidArgument, "bad first message")
	case !paged || len(entries) == 0:
		return stream.Send(&entryv1.SyncAuthorizedEntriesResponse{Entries: entries})
	}
	for i, e := range entries { // pages of one
		rev := &entryv1.EntryRevision{Id: e.Id, RevisionNumber: e.RevisionNumber, CreatedAt: e.CreatedAt}
		if err := stream.Send(&entryv1.SyncAuthorizedEntriesResponse{EntryRevisions: []*entryv1.EntryRevision{rev}, More: i < len(entries)-1}); err != nil {
			return err
		}
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		f.mu.Lock()
		f.asked = append(f.asked, req.Ids)
		f.mu.Unlock()
		for i, id := range req.Ids {
			resp := &entryv1.SyncAuthorizedEntriesResponse{More: i < len(req.Ids)-1}
			for _, e := range entries {
				if e.Id == id {
					resp.Entries = append(resp.Entries, e)
				}
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
	}
}

func (f *fake) BatchNewX509SVID(ctx context.Context, req *svidv1.BatchNewX509SVIDRequest) (*svidv1.BatchNewX509SVIDResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signedAt = append(f.signedAt, time.Now())
	b := batch{}
	b.class, b.life = admit.Stated(ctx, -1)
	for _, p := range req.Params {
		b.entries = append(b.entries, p.EntryId)
	}
	f.batches = append(f.batches, b)
	resp := &svidv1.BatchNewX509SVIDResponse{}
	for _, p := range req.Params {
		result := &svidv1.BatchNewX509SVIDResponse_Result{Status: &types.Status{Code: int32(codes.NotFound), Message: "entry not found"}}
		for _, e := range f.entries {
			if e.Id != p.EntryId {
				continue
			}
			svid, _, err := f.signCSR(spiffeid.RequireFromPath(testTD, e.SpiffeId.Path), p.Csr, f.life)
			if err != nil {
				return nil, err
			}
			result = &svidv1.BatchNewX509SVIDResponse_Result{Status: &types.Status{}, Svid: svid}
		}
		resp.Results = append(resp.Results, result)
	}
	if f.twist != nil {
		f.twist(resp)
	}
	return resp, nil
}

func (f *fake) NewJWTSVID(_ context.Context, req *svidv1.NewJWTSVIDRequest) (*svidv1.NewJWTSVIDResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.entries {
		if e.Id != req.EntryId {
			continue
		}
		now := time.Now()
		id := spiffeid.RequireFromPath(testTD, e.SpiffeId.Path)
		signer := need(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: f.jwtKey}, (&jose.SignerOptions{}).WithHeader("kid", f.keyID)))
		token := need(jwt.Signed(signer).Claims(map[string]any{
			"sub": id.String(), "aud": req.Audience, "iat": now.Unix(), "exp": now.Add(f.jwtLife).Unix(),
		}).Serialize())
		return &svidv1.NewJWTSVIDResponse{Svid: &types.JWTSVID{Token: token, Id: pb(id), IssuedAt: now.Unix(), ExpiresAt: now.Add(f.jwtLife).Unix()}}, nil
	}
	return nil, status.Error(codes.NotFound, "entry not found")
}

type fakeWatch struct {
	watchv1.UnimplementedEntryWatchServer
	f *fake
}

func (w *fakeWatch) Watch(_ *watchv1.WatchRequest, stream grpc.ServerStreamingServer[watchv1.Change]) error {
	for revision := uint64(1); ; revision++ {
		w.f.mu.Lock()
		changed := w.f.changed
		w.f.mu.Unlock()
		if err := stream.Send(&watchv1.Change{Revision: revision}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// fakeIssuance tells of templates and signs nothing.
type fakeIssuance struct {
	templatev1.UnimplementedIssuanceServer
	f *fake
}

func (s *fakeIssuance) Authorized(req *templatev1.AuthorizedRequest, stream templatev1.Issuance_AuthorizedServer) error {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	digest := []byte(fmt.Sprint(s.f.templates))
	if bytes.Equal(req.Digest, digest) {
		return stream.Send(&templatev1.AuthorizedResponse{Digest: digest, Unchanged: true})
	}
	s.f.calls["Authorized in full"]++
	return stream.Send(&templatev1.AuthorizedResponse{Templates: s.f.templates, Digest: digest})
}
