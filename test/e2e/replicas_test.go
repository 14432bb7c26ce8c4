package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/writ-dev/writ/internal/pgtest"
	"github.com/writ-dev/writ/test/programs"
)

// TestReplicas runs three control planes on one PostgreSQL database and kills
// each in turn, without warning, while agents have SVIDs signed and join: a
// client that goes on to the next replica never fails, and no token is used
// twice.
func TestReplicas(t *testing.T) {
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	c := startReplicas(t, 3)
	ctx := t.Context()
	alias := spiffeid.RequireFromString("spiffe://example.org/node/n")
	token, err := c.server(0).JoinToken(ctx, alias)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := c.server(1).Entry(alias, "/svc/web", "unix:uid:1")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := c.server(1).CreateEntries(ctx, entry)
	if err != nil {
		t.Fatal(err)
	}
	// Who joined at one is known at the others at once.
	node, err := c.server(2).Attest(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	loaded, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	var signed, joined atomic.Int64
	for n := range 6 {
		load.Go(func() {
			if err := c.sign(loaded, node, ids[0], n, &signed); err != nil {
				t.Errorf("signing: %v", err)
				stop()
			}
		})
	}
	load.Go(func() {
		if err := c.join(loaded, &joined); err != nil {
			t.Errorf("joining: %v", err)
			stop()
		}
	})
	for n := range 3 {
		// Each with and without the others, until something was done in both.
		c.progress(t, loaded, &signed, &joined)
		c.kill(n)
		c.progress(t, loaded, &signed, &joined)
		c.start(t, n)
	}
	stop()
	load.Wait()
	t.Logf("%d SVIDs, %d agents", signed.Load(), joined.Load())
}

type replicas struct {
	configs []programs.ServerConfig

	mu      sync.Mutex
	servers []*programs.Server
}

func startReplicas(t *testing.T, count int) *replicas {
	t.Helper()
	dsn := pgtest.New(t).Database(t)
	dir, err := os.MkdirTemp("", "writ-ha") // Sockets want short paths.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ports, err := programs.FreePorts(2 * count)
	if err != nil {
		t.Fatal(err)
	}
	c := &replicas{servers: make([]*programs.Server, count)}
	for n := range count {
		c.configs = append(c.configs, programs.ServerConfig{
			Path: filepath.Join(bin, "writd"), Dir: filepath.Join(dir, fmt.Sprint(n)), TrustDomain: "example.org",
			IssuerPort: ports[2*n], ControlPort: ports[2*n+1],
			// The life of an authority also says how long a new one waits.
			More: fmt.Sprintf("roles: [issuer, audit]\nreplica: r%d\nca_ttl: 36s\nsvid_ttl: 15s\nattest_rate: 1000\ndatabase:\n  postgres: %q\n  registry_key_file: %s\n", n, dsn, filepath.Join(dir, "registry.key")),
		})
	}
	c.start(t, 0)
	var starting sync.WaitGroup
	for n := 1; n < count; n++ {
		starting.Go(func() { c.start(t, n) })
	}
	starting.Wait()
	t.Cleanup(func() {
		for n := range c.configs {
			c.kill(n)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return c
}

func (c *replicas) start(t *testing.T, n int) {
	t.Helper()
	s, err := programs.StartWritd(t.Context(), c.configs[n])
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(c.configs[n].Dir, "log"))
		t.Errorf("replica %d: %v\n%s", n, err, text)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[n] = s
}

func (c *replicas) kill(n int) {
	if s := c.server(n); s != nil {
		s.Kill()
		s.Issuer.Close()
	}
}

func (c *replicas) server(n int) *programs.Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers[n]
}

// progress waits until more was signed, and more joined.
func (c *replicas) progress(t *testing.T, ctx context.Context, signed, joined *atomic.Int64) {
	t.Helper()
	s, j := signed.Load(), joined.Load()
	eventually(t, 20*time.Second, func() error {
		if ctx.Err() == nil && (signed.Load() < s+50 || joined.Load() < j+2) {
			return errors.New("no progress")
		}
		return nil
	})
}

// sign has SVIDs signed, one after the other, by whichever replica answers,
// until ctx ends. An error is an SVID that no replica signed.
func (c *replicas) sign(ctx context.Context, node *programs.Node, entry string, first int, done *atomic.Int64) error {
	bundle, err := c.server(0).Bundle(ctx)
	if err != nil {
		return err
	}
	issuer := spiffeid.RequireFromString("spiffe://example.org/spire/server")
	var clients []svidv1.SVIDClient
	for _, config := range c.configs {
		creds := grpccredentials.MTLSClientCredentials(node.SVID, bundle, tlsconfig.AuthorizeID(issuer))
		// A replica that is back is not kept waiting by gRPC's pauses.
		quick := grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}})
		conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", config.IssuerPort), grpc.WithTransportCredentials(creds), quick)
		if err != nil {
			return err
		}
		defer conn.Close()
		clients = append(clients, svidv1.NewSVIDClient(conn))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	req := &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: entry, Csr: csr}}}
	for n := first; ctx.Err() == nil; n++ {
		var failures []error
		for tried := range clients {
			replica := (n + tried) % len(clients)
			limited, cancel := context.WithTimeout(ctx, 5*time.Second)
			resp, err := clients[replica].BatchNewX509SVID(limited, req, grpc.WaitForReady(tried > 0))
			cancel()
			if err == nil && len(resp.GetResults()[0].GetSvid().GetCertChain()) > 0 {
				done.Add(1)
				failures = nil
				break
			}
			failures = append(failures, fmt.Errorf("replica %d: %w %v", replica, err, resp.GetResults()))
		}
		if len(failures) > 0 && ctx.Err() == nil {
			return errors.Join(failures...)
		}
	}
	return nil
}

// join has agents join, each token at all replicas at once, until ctx ends.
func (c *replicas) join(ctx context.Context, agents *atomic.Int64) error {
	for n := 0; ctx.Err() == nil; n++ {
		token, err := "", error(nil)
		for tried := range c.configs {
			if token, err = c.server((n+tried)%len(c.configs)).JoinToken(ctx, spiffeid.ID{}); err == nil {
				break
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("no replica makes a token: %w", err)
		}
		var got atomic.Int64
		var all sync.WaitGroup
		for n := range c.configs {
			all.Go(func() {
				limited, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				if _, err := c.server(n).Attest(limited, token); err == nil {
					got.Add(1)
				}
			})
		}
		all.Wait()
		if got.Load() > 1 {
			return fmt.Errorf("one token, %d agents", got.Load())
		}
		// None is one that was killed after it had used the token up.
		agents.Add(got.Load())
	}
	return nil
}
