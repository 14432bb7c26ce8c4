package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// What the issuer sends in place of an SVID is not served, and does no harm to
// the SVID that comes when it behaves again.
func TestWrongAnswers(t *testing.T) {
	web := spiffeid.RequireFromPath(testTD, "/svc/web")
	for name, twist := range map[string]func(*fake, *svidv1.BatchNewX509SVIDResponse){
		"too few results": func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) { r.Results = nil },
		"too many":        func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) { r.Results = append(r.Results, r.Results[0]) },
		"nil result":      func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) { r.Results[0] = nil },
		"status":          func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) { r.Results[0].Status.Code = int32(codes.Internal) },
		"no SVID":         func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) { r.Results[0].Svid = nil },
		"no chain":        func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) { r.Results[0].Svid.CertChain = nil },
		"garbage":         func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) { r.Results[0].Svid.CertChain = [][]byte{{1, 2}} },
		"another name": func(f *fake, r *svidv1.BatchNewX509SVIDResponse) {
			cert := need(x509.ParseCertificate(r.Results[0].Svid.CertChain[0]))
			r.Results[0].Svid.CertChain[0], _ = f.sign(spiffeid.RequireFromPath(testTD, "/svc/other"), cert.PublicKey, time.Hour)
		},
		"another key": func(f *fake, r *svidv1.BatchNewX509SVIDResponse) {
			key := need(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			r.Results[0].Svid.CertChain[0], _ = f.sign(web, key.Public(), time.Hour)
		},
		"another authority": func(_ *fake, r *svidv1.BatchNewX509SVIDResponse) {
			cert := need(x509.ParseCertificate(r.Results[0].Svid.CertChain[0]))
			r.Results[0].Svid.CertChain[0], _ = newFake().sign(web, cert.PublicKey, time.Hour)
		},
		"expired": func(f *fake, r *svidv1.BatchNewX509SVIDResponse) {
			cert := need(x509.ParseCertificate(r.Results[0].Svid.CertChain[0]))
			r.Results[0].Svid.CertChain[0], _ = f.sign(web, cert.PublicKey, -time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.f.entries = nil
				b.mustRun()
				b.f.with(func() {
					b.f.twist = func(r *svidv1.BatchNewX509SVIDResponse) { twist(b.f, r) }
					b.f.entries = []*types.Entry{entryOf("e1", "/svc/web", "unix:uid:1")}
				})
				<-time.After(time.Minute)
				if cert, _ := b.web(); cert != nil {
					t.Fatalf("served %v", cert.URIs)
				}
				if b.agent.Status().SignErrors == 0 {
					t.Error("nobody noticed")
				}
				b.f.mu.Lock()
				// Retries are spaced: a minute of them is some dozen.
				if n := len(b.f.signedAt); n > 30 {
					t.Errorf("%d attempts in a minute", n)
				}
				b.f.twist = nil
				b.f.mu.Unlock()
				<-time.After(time.Minute)
				if cert, _ := b.web(); cert == nil {
					t.Error("no SVID though the issuer behaves again")
				}
			})
		})
	}
}

func TestParseBundleRefuses(t *testing.T) {
	f := newFake()
	pkix := need(x509.MarshalPKIXPublicKey(f.jwtKey.Public()))
	good := func() *types.Bundle {
		return &types.Bundle{
			TrustDomain: testTD.Name(), X509Authorities: []*types.X509Certificate{{Asn1: f.ca.Raw}},
			JwtAuthorities: []*types.JWTKey{{KeyId: "k", PublicKey: pkix}},
		}
	}
	if _, err := parseBundle(good(), testTD); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*types.Bundle)
		want   string
	}{
		"another trust domain": {func(b *types.Bundle) { b.TrustDomain = "other.test" }, `one of "other.test"`},
		"no authority":         {func(b *types.Bundle) { b.X509Authorities = nil }, "no X.509 authority"},
		"no certificate":       {func(b *types.Bundle) { b.X509Authorities[0].Asn1 = []byte("x") }, "not a certificate"},
		"empty certificate":    {func(b *types.Bundle) { b.X509Authorities[0].Asn1 = nil }, "not a certificate"},
		"empty key id":         {func(b *types.Bundle) { b.JwtAuthorities[0].KeyId = "" }, "not a public key with an id"},
		"no key":               {func(b *types.Bundle) { b.JwtAuthorities[0].PublicKey = []byte("x") }, `JWT authority "k"`},
	} {
		b := good()
		tc.change(b)
		if _, err := parseBundle(b, testTD); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	expired := good()
	expired.JwtAuthorities[0].ExpiresAt = time.Now().Add(-time.Minute).Unix()
	if b, err := parseBundle(expired, testTD); err != nil || !b.served.Equal(need(parseBundle(&types.Bundle{TrustDomain: testTD.Name(), X509Authorities: expired.X509Authorities}, testTD)).served) {
		t.Errorf("a key that has expired is not left out: %v", err)
	}
}

// endless is an issuer's stream that never says that it has ended.
type endless struct {
	grpc.BidiStreamingClient[entryv1.SyncAuthorizedEntriesRequest, entryv1.SyncAuthorizedEntriesResponse]
	page  *entryv1.SyncAuthorizedEntriesResponse
	pages int
}

func (e *endless) Recv() (*entryv1.SyncAuthorizedEntriesResponse, error) {
	e.pages++
	return e.page, nil
}

func TestEndlessAnswer(t *testing.T) {
	e := &endless{page: &entryv1.SyncAuthorizedEntriesResponse{More: true, Entries: []*types.Entry{entryOf("e", "/"+strings.Repeat("x", 4<<20), "unix:uid:1")}}}
	if _, err := receive(e); !errors.Is(err, errEndless) || e.pages > 65 {
		t.Errorf("after %d pages: %v", e.pages, err)
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add(need(proto.Marshal(entryOf("e", "/a", "unix:uid:1"))))
	f.Add(need(proto.Marshal(&types.Entry{Id: "e", Selectors: []*types.Selector{{Type: "a:b", Value: "c"}}})))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e types.Entry
		if proto.Unmarshal(data, &e) != nil {
			return
		}
		got, err := parseEntry(&e, testTD)
		if err != nil {
			return
		}
		if got.id == "" || got.spiffeID.TrustDomain() != testTD || got.spiffeID.Path() == "" || len(got.selectors) != len(e.Selectors) {
			t.Errorf("accepted %v as %+v", &e, got)
		}
		if alias := slices.ContainsFunc(got.selectors, func(s string) bool { return strings.HasPrefix(s, "spiffe_id:") }); alias && got.served {
			t.Errorf("serves the alias %v", &e)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	issuer := newFake()
	f.Add(need(proto.Marshal(need(issuer.GetBundle(f.Context(), nil)))))
	f.Fuzz(func(t *testing.T, data []byte) {
		var b types.Bundle
		if proto.Unmarshal(data, &b) != nil {
			return
		}
		if got, err := parseBundle(&b, testTD); err == nil && got.x509.Empty() {
			t.Error("accepted a bundle without authorities")
		}
	})
}

func FuzzParseSVIDFile(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if svid, err := parseSVIDFile(data); err == nil && (svid.PrivateKey == nil || len(svid.Certificates) == 0) {
			t.Error("accepted half an SVID")
		}
	})
}
