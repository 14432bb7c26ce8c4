package workload

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/unixsock"
)

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// authority signs SVIDs of one trust domain.
type authority struct {
	td     spiffeid.TrustDomain
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	jwtKey *ecdsa.PrivateKey
	bundle *Bundle
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func newAuthority(td spiffeid.TrustDomain) *authority {
	a := &authority{td: td, key: newKey(), jwtKey: newKey()}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test"}},
		URIs: []*url.URL{td.ID().URL()}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key))))
	a.bundle = must(NewBundle(td, []*x509.Certificate{a.cert}, map[string]crypto.PublicKey{"k1": a.jwtKey.Public()}))
	return a
}

func (a *authority) identity(serial int64, path, hint string) *Identity {
	key := newKey()
	id := spiffeid.RequireFromPath(a.td, path)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), URIs: []*url.URL{id.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return &Identity{
		EntryID: path, ID: id, Hint: hint,
		Chain: must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)),
		Key:   must(x509.MarshalPKCS8PrivateKey(key)),
	}
}

// token signs claims as they are, with header k=v pairs beside kid.
func (a *authority) token(claims map[string]any, header map[jose.HeaderKey]any) string {
	opts := (&jose.SignerOptions{ExtraHeaders: header}).WithHeader("kid", "k1")
	signer := must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: a.jwtKey}, opts))
	return must(jwt.Signed(signer).Claims(claims).Serialize())
}

// memory is a Source that a test sets.
type memory struct {
	ca *authority

	mu      sync.Mutex
	grant   Grant
	err     error
	changed chan struct{}
	lookups int
	looked  *sync.Cond
}

func newMemory(ca *authority, ids ...*Identity) *memory {
	m := &memory{ca: ca, grant: Grant{Identities: ids, Bundle: ca.bundle}, changed: make(chan struct{})}
	m.looked = sync.NewCond(&m.mu)
	return m
}

// setAndWait returns when a stream has seen the change.
func (m *memory) setAndWait(change func(g *Grant)) {
	m.mu.Lock()
	before := m.lookups
	m.mu.Unlock()
	m.set(change)
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.lookups == before {
		m.looked.Wait()
	}
}

func (m *memory) set(change func(g *Grant)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.grant)
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) Lookup(context.Context, []string) (Grant, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.looked != nil {
		m.lookups++
		m.looked.Broadcast()
	}
	return m.grant, m.changed, m.err
}

func (m *memory) Hold(uint32, bool) Hold { return m }

func (m *memory) Release() {}

func (m *memory) JWTSVID(_ context.Context, uid uint32, id *Identity, audience []string) (string, error) {
	if slices.Contains(audience, "too many") && uid == uint32(os.Getuid()) {
		return "", ErrTooMany
	}
	if m.ca == nil {
		return "", errors.New("secret reason")
	}
	now := time.Now()
	return m.ca.token(map[string]any{"sub": id.ID.String(), "aud": audience, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}, nil), nil
}

// serve starts a Server on a socket of its own and returns the socket.
func serve(t *testing.T, source Source, change ...func(*Config)) (*Server, string) {
	t.Helper()
	c := Config{
		Source:               source,
		Attest:               func(context.Context, peercred.Peer) ([]string, error) { return []string{"unix:uid:0"}, nil },
		MaxConnectionsPerUID: 100, MaxStreamsPerUID: 100,
		Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&c)
	}
	s, err := NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "w", "api.sock")
	ln, err := unixsock.Listen(path, unixsock.Public())
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { s.Serve(ln) })
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Stop(ctx)
		serving.Wait()
	})
	return s, unixsock.Path(path)
}

// raw connects without the conveniences of go-spiffe.
func raw(t *testing.T, socket string) workloadpb.SpiffeWorkloadAPIClient {
	t.Helper()
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return workloadpb.NewSpiffeWorkloadAPIClient(cc)
}

func secured(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, securityHeader, "true")
}
