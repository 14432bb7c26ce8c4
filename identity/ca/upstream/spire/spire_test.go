package spire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/attest/unix"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/ca/upstream/spire"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/unixsock"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// workloadAPI runs an agent of the issuer, and serves its Workload API.
func workloadAPI(t *testing.T, r *agenttest.Issuer) string {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	cfg := agent.Default()
	cfg.TrustDomain, cfg.ServerAddress, cfg.TrustBundle = agenttest.TrustDomain.Name(), r.Address, r.Bundle
	cfg.DataDir, cfg.Socket = filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "w", "api.sock")
	token := r.Token("/node/n1")
	a, err := agent.New(cfg, agent.Options{Token: func() (string, error) { return token, nil }, Log: log})
	must(t, err)
	attestor := unix.New(unix.Config{Log: log})
	s, err := workload.NewServer(workload.Config{
		Source: a, MaxConnectionsPerUID: 100, MaxStreamsPerUID: 100, Log: log,
		Attest: func(ctx context.Context, p peercred.Peer) ([]string, error) { return attestor.Attest(ctx, p, a.Asked) },
	})
	must(t, err)
	ln, err := unixsock.Listen(cfg.Socket, unixsock.Public())
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(ln) })
	running.Go(func() { _ = a.Run(ctx) })
	t.Cleanup(func() {
		stop()
		s.Stop(context.Background())
		running.Wait()
	})
	<-a.Ready()
	return "unix://" + unixsock.Path(cfg.Socket)
}

// downstream makes the entry of this process.
func downstream(t *testing.T, r *agenttest.Issuer, yes bool) {
	t.Helper()
	id := func(path string) *types.SPIFFEID {
		return &types.SPIFFEID{TrustDomain: agenttest.TrustDomain.Name(), Path: path}
	}
	resp, err := entryv1.NewEntryClient(r.Admin).BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		SpiffeId: id("/nested"), ParentId: id("/node/n1"), Downstream: yes,
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:" + strconv.Itoa(os.Getuid())}},
	}}})
	must(t, err)
	if resp.Results[0].Status.Code != 0 {
		t.Fatal(resp.Results[0].Status)
	}
}

type journal struct{}

func (journal) LoadJournal(context.Context) ([]byte, error) { return nil, nil }
func (journal) SaveJournal(context.Context, []byte) error   { return nil }

func open(t *testing.T, u ca.Upstream) (*ca.CA, error) {
	return ca.Open(t.Context(), ca.Config{
		TrustDomain: agenttest.TrustDomain, Keys: &keys.Memory{}, Journal: journal{}, Upstream: u,
		Emit: func(context.Context, identity.Act) error { return nil },
	})
}

// A CA below a real issuer, by a real agent's Workload API: its SVIDs verify by
// the issuer's roots, its JWT authority is known there, and a taint there has it
// sign by another authority. That is heard of by looking, and by what the agent
// pushes.
func TestNested(t *testing.T) {
	t.Run("polled", func(t *testing.T) { testNested(t, 20*time.Millisecond) })
	t.Run("pushed", func(t *testing.T) { testNested(t, 24*time.Hour) })
}

func testNested(t *testing.T, poll time.Duration) {
	r := agenttest.Start(t, time.Hour)
	downstream(t, r, true)
	u := spire.New(spire.Config{TrustDomain: agenttest.TrustDomain, ServerAddress: r.Address, WorkloadAPI: workloadAPI(t, r), Poll: poll})
	t.Cleanup(func() { must(t, u.Close()) })
	c, err := open(t, u)
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })

	intermediate := signer(t, c)
	above, err := bundlev1.NewBundleClient(r.Admin).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	must(t, err)
	roots := x509.NewCertPool()
	for _, a := range above.X509Authorities {
		cert, err := x509.ParseCertificate(a.Asn1)
		must(t, err)
		roots.AddCert(cert)
	}
	if _, err := intermediate.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Error(err)
	}
	if len(above.JwtAuthorities) != 2 || above.JwtAuthorities[1].KeyId != c.Authorities(ca.JWT)[0].ID {
		t.Errorf("JWT authorities above: %v", above.JwtAuthorities)
	}
	until(t, c, func(b *ca.Bundle) bool { return len(b.JWTAuthorities) == 2 })

	authorities := localauthorityv1.NewLocalAuthorityClient(r.Admin)
	old := hex.EncodeToString(intermediate.AuthorityKeyId)
	prepared, err := authorities.PrepareX509Authority(t.Context(), &localauthorityv1.PrepareX509AuthorityRequest{})
	must(t, err)
	next := prepared.PreparedAuthority.AuthorityId
	_, err = authorities.ActivateX509Authority(t.Context(), &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: next})
	must(t, err)
	_, err = authorities.TaintX509Authority(t.Context(), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
	must(t, err)
	until(t, c, func(b *ca.Bundle) bool { return len(b.Tainted) == 1 })
	if got := ca.KeyID(signer(t, c).AuthorityKeyId); got != next {
		t.Errorf("signed below %s, want %s", got, next)
	}
}

// until waits for a bundle.
func until(t *testing.T, c *ca.CA, ok func(*ca.Bundle) bool) {
	t.Helper()
	for {
		b, changed := c.Bundle()
		if ok(b) {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("the bundle did not come")
		}
	}
}

// signer is the authority in the chain of a new SVID.
func signer(t *testing.T, c *ca.CA) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ticket, err := c.PrepareX509(ca.X509Request{ID: spiffeid.RequireFromPath(agenttest.TrustDomain, "/web"), PublicKey: key.Public()})
	must(t, err)
	chain, err := c.IssueX509(ticket)
	must(t, err)
	if len(chain) != 2 {
		t.Fatalf("a chain of %d", len(chain))
	}
	cert, err := x509.ParseCertificate(chain[1])
	must(t, err)
	return cert
}

// What is wrong on the way up is said.
func TestRefused(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	downstream(t, r, false)
	u := spire.New(spire.Config{TrustDomain: agenttest.TrustDomain, ServerAddress: r.Address, WorkloadAPI: workloadAPI(t, r)})
	t.Cleanup(func() { must(t, u.Close()) })
	if _, err := open(t, u); err == nil || !strings.Contains(err.Error(), "does the entry of this control plane there say downstream?") {
		t.Errorf("without the right: %v", err)
	}
}
