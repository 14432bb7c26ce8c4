package sds

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/internal/peercred"
	"github.com/writ-dev/writ/internal/unixsock"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// authority signs SVIDs of one trust domain.
type authority struct {
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	bundle *workload.Bundle
}

func newAuthority(name string) *authority {
	td := spiffeid.RequireTrustDomainFromString(name)
	a := &authority{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{td.ID().URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key))))
	a.bundle = must(workload.NewBundle(td, []*x509.Certificate{a.cert}, map[string]crypto.PublicKey{}))
	return a
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) identity(serial int64, id string) *workload.Identity {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	name := spiffeid.RequireFromString(id)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), URIs: []*url.URL{name.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	return &workload.Identity{
		EntryID: id, ID: name,
		Chain: must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)),
		Key:   must(x509.MarshalPKCS8PrivateKey(key)),
	}
}

// source is what a test sets.
type source struct {
	mu      sync.Mutex
	grant   workload.Grant
	changed chan struct{}
	lookups int
	looked  *sync.Cond
}

// processed returns when the stream has looked again after send: it has read the
// request by then.
func (s *source) processed(send func()) {
	s.mu.Lock()
	before := s.lookups
	s.mu.Unlock()
	send()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.lookups == before {
		s.looked.Wait()
	}
}

func (s *source) set(change func(*workload.Grant)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.grant)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) Lookup(context.Context, []string) (workload.Grant, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookups++
	s.looked.Broadcast()
	return s.grant, s.changed, nil
}

func (s *source) Hold(uint32, bool) workload.Hold { return s }

func (s *source) Release() {}

func (s *source) JWTSVID(context.Context, uint32, *workload.Identity, []string) (string, error) {
	return "", errors.New("not here")
}

// serve starts the service on a socket of its own and connects to it.
func serve(t testing.TB, g workload.Grant, c Config) (*source, *workload.Server, secretv3.SecretDiscoveryServiceClient) {
	t.Helper()
	src := &source{grant: g, changed: make(chan struct{})}
	src.looked = sync.NewCond(&src.mu)
	s, err := workload.NewServer(workload.Config{
		Source: src, Attest: func(context.Context, peercred.Peer) ([]string, error) { return []string{"unix:uid:0"}, nil },
		MaxConnectionsPerUID: 10, MaxStreamsPerUID: 10, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Log = slog.New(slog.DiscardHandler)
	if err := Register(s, c); err != nil {
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
	cc, err := grpc.NewClient("unix:"+unixsock.Path(path), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return src, s, secretv3.NewSecretDiscoveryServiceClient(cc)
}

// envoy is a node that says which version it is.
func envoy(minor uint32) *corev3.Node {
	return &corev3.Node{Id: "test", UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{
		UserAgentBuildVersion: &corev3.BuildVersion{Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: minor}},
	}}
}

// shown is a secret in a few words: of a certificate its URI and serial number,
// of a validation context which bundles are in it, by trust domain or, without
// the SPIFFE validator, as "ca".
func shown(t *testing.T, resp *discoveryv3.DiscoveryResponse, known map[string]*authority) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, packed := range resp.Resources {
		var secret tlsv3.Secret
		if err := packed.UnmarshalTo(&secret); err != nil {
			t.Fatal(err)
		}
		if c := secret.GetTlsCertificate(); c != nil {
			leaf := leafOf(t, c)
			uri := ""
			if len(leaf.URIs) > 0 {
				uri = leaf.URIs[0].String()
			}
			out[secret.Name] = uri + " #" + leaf.SerialNumber.String()
			continue
		}
		v := secret.GetValidationContext()
		which := func(bundle []byte) string {
			for name, a := range known {
				if bytes.Equal(bundle, a.pem()) {
					return name
				}
			}
			return "?"
		}
		if v.TrustedCa != nil {
			out[secret.Name] = "ca " + which(v.TrustedCa.GetInlineBytes())
			continue
		}
		var config tlsv3.SPIFFECertValidatorConfig
		if err := v.CustomValidatorConfig.TypedConfig.UnmarshalTo(&config); err != nil {
			t.Fatal(err)
		}
		for _, td := range config.TrustDomains {
			out[secret.Name] += td.Name + "=" + which(td.TrustBundle.GetInlineBytes()) + " "
		}
	}
	return out
}

// leafOf checks that a certificate fits its key, as Envoy does.
func leafOf(t *testing.T, c *tlsv3.TlsCertificate) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(c.CertificateChain.GetInlineBytes())
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(c.PrivateKey.GetInlineBytes())
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !leaf.PublicKey.(*ecdsa.PublicKey).Equal(key.(*ecdsa.PrivateKey).Public()) {
		t.Error("the key is not the certificate's")
	}
	return leaf
}
