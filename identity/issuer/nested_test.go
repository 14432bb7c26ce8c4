package issuer_test

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
)

// nested is the client of an issuer below this one.
func (w *world) nested(t *testing.T) *agent {
	t.Helper()
	e := entry("/nested", "/node/a", "uid:2")
	e.Downstream = true
	w.create(e)
	return w.asWorkload(t, "/nested")
}

// A CA certificate for a nested issuer: in the profile that stock servers check,
// not longer than its parent, and good for another level below.
func TestDownstreamX509CA(t *testing.T) {
	w := newWorld(t)
	n := w.nested(t)
	key := newKey(t)
	resp, err := n.svids().NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{Csr: csr(t, key, "spiffe://example.org"), PreferredTtl: 3600})
	must(t, err)
	bundle, _ := w.issuer.Bundle()
	if len(resp.CaCertChain) != 1 || len(resp.X509Authorities) != 1 || string(resp.X509Authorities[0]) != string(bundle.X509Authorities[0].Raw) {
		t.Fatalf("a chain of %d, %d roots", len(resp.CaCertChain), len(resp.X509Authorities))
	}
	cert, err := x509.ParseCertificate(resp.CaCertChain[0])
	must(t, err)
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || cert.MaxPathLen >= 0 && cert.MaxPathLenZero ||
		len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://example.org" || !key.PublicKey.Equal(cert.PublicKey) || len(cert.SubjectKeyId) == 0 {
		t.Errorf("out of profile: %+v", cert)
	}
	if life := cert.NotAfter.Sub(w.clock.now()); life > time.Hour || life < 59*time.Minute {
		t.Errorf("a life of %v, want an hour", life)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: bundle.Pool(), CurrentTime: w.clock.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Error(err)
	}
	if acts := w.did("x509-ca", "issued"); len(acts) != 1 || acts[0].Actor != "spiffe://example.org/nested" {
		t.Errorf("on record: %+v", acts)
	}
	resp, err = n.svids().NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{Csr: csr(t, key, ""), PreferredTtl: 1 << 30})
	must(t, err)
	cert, err = x509.ParseCertificate(resp.CaCertChain[0])
	must(t, err)
	if cert.NotAfter.After(bundle.X509Authorities[0].NotAfter) {
		t.Error("it outlives its parent")
	}
	for name, req := range map[string]*svidv1.NewDownstreamX509CARequest{
		"no csr":  {},
		"bad csr": {Csr: []byte("x")},
		"bad ttl": {Csr: csr(t, key, ""), PreferredTtl: -1},
	} {
		if _, err := n.svids().NewDownstreamX509CA(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.refuseActs(func(a identity.Act) bool { return a.Object == "x509-ca" })
	if _, err := n.svids().NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{Csr: csr(t, key, "")}); status.Code(err) != codes.Unavailable {
		t.Errorf("signed off the record: %v", err)
	}
}

// The right ends with the entry.
func TestDownstreamEnds(t *testing.T) {
	w := newWorld(t)
	e := entry("/nested", "/node/a", "uid:2")
	e.Downstream = true
	made := w.create(e)[0]
	n := w.asWorkload(t, "/nested")
	w.deleteEntry(made.Id)
	_, err := n.svids().NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{Csr: csr(t, newKey(t), "")})
	wantCode(t, err, codes.PermissionDenied)
}

func jwtKey(t *testing.T, id string) *types.JWTKey {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(newKey(t).Public())
	must(t, err)
	return &types.JWTKey{KeyId: id, PublicKey: der, ExpiresAt: time.Now().Add(1000 * time.Hour).Unix()}
}

func (w *world) keyIDs(t *testing.T) string {
	t.Helper()
	b, err := w.bundles().GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	must(t, err)
	var ids []string
	for _, k := range b.JwtAuthorities[1:] { // the first is our own
		ids = append(ids, k.KeyId)
	}
	return strings.Join(ids, " ")
}

func TestPublishJWTAuthority(t *testing.T) {
	w := newWorld(t)
	n := w.nested(t)
	publish := func(k *types.JWTKey) error {
		resp, err := n.bundles().PublishJWTAuthority(t.Context(), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: k})
		if err == nil && len(resp.JwtAuthorities) < 2 {
			err = errors.New("the reply lacks authorities")
		}
		return err
	}
	key := jwtKey(t, "nested-1")
	must(t, publish(key))
	b, _ := w.issuer.Bundle()
	must(t, publish(key))
	if again, _ := w.issuer.Bundle(); again != b {
		t.Error("the same key again is a change")
	}
	must(t, publish(jwtKey(t, "nested-2")))
	if got := w.keyIDs(t); got != "nested-1 nested-2" {
		t.Errorf("published %q", got)
	}
	expired, rsaless, clash, anonymous := jwtKey(t, "x"), jwtKey(t, "x"), jwtKey(t, "nested-1"), jwtKey(t, "")
	expired.ExpiresAt = 1
	rsaless.PublicKey = []byte("x")
	own := jwtKey(t, b.JWTAuthorities[0].KeyID)
	for name, k := range map[string]*types.JWTKey{"nothing": nil, "expired": expired, "not a key": rsaless, "another under the same ID": clash, "without an ID": anonymous, "our ID": own} {
		if err := publish(k); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An administrator can get rid of it.
	c := w.authorities()
	_, err := c.RevokeJWTAuthority(t.Context(), &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: "nested-1"})
	wantCode(t, err, codes.InvalidArgument)
	_, err = c.TaintJWTAuthority(t.Context(), &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: "nested-1"})
	must(t, err)
	if got := w.taints(); got != "jwt nested-1" {
		t.Errorf("tainted: %q", got)
	}
	_, err = c.RevokeJWTAuthority(t.Context(), &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: "nested-1"})
	must(t, err)
	if got := w.keyIDs(t); got != "nested-2" {
		t.Errorf("after the revocation: %q", got)
	}
}

func TestAppendBundle(t *testing.T) {
	w := newWorld(t)
	other := newWorld(t)
	theirs, _ := other.issuer.Bundle()
	b, err := w.bundles().AppendBundle(t.Context(), &bundlev1.AppendBundleRequest{
		X509Authorities: []*types.X509Certificate{{Asn1: theirs.X509Authorities[0].Raw}}, JwtAuthorities: []*types.JWTKey{jwtKey(t, "appended")},
		OutputMask: &types.BundleMask{X509Authorities: true},
	})
	must(t, err)
	if len(b.X509Authorities) != 2 || len(b.JwtAuthorities) != 0 {
		t.Errorf("answered %d and %d", len(b.X509Authorities), len(b.JwtAuthorities))
	}
	if got := w.keyIDs(t); got != "appended" {
		t.Errorf("JWT authorities: %q", got)
	}
	leaf := w.asWorkload(t, "/svc/web").cert
	for name, req := range map[string]*bundlev1.AppendBundleRequest{
		"nothing":       {},
		"no CA":         {X509Authorities: []*types.X509Certificate{{Asn1: leaf.Raw}}},
		"no key ID":     {JwtAuthorities: []*types.JWTKey{jwtKey(t, "")}},
		"no public key": {JwtAuthorities: []*types.JWTKey{{KeyId: "x"}}},
		"no cert":       {X509Authorities: []*types.X509Certificate{{}}},
	} {
		if _, err := w.bundles().AppendBundle(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
