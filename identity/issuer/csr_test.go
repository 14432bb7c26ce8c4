package issuer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/url"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
)

// Whatever is accepted is a request that its own key signed, for no one else.
func FuzzParseCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://example.org/svc/web")
	for _, template := range []*x509.CertificateRequest{
		{}, {URIs: []*url.URL{id.URL()}}, {DNSNames: []string{"a"}}, {URIs: []*url.URL{id.URL(), id.URL()}},
	} {
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Add([]byte{0x30})
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := parseCSRFor(der, id)
		if err != nil {
			return
		}
		if err := csr.CheckSignature(); err != nil {
			t.Error("accepted without a valid signature")
		}
		if len(csr.URIs) > 1 || len(csr.URIs) == 1 && csr.URIs[0].String() != id.String() {
			t.Errorf("accepted for %v", csr.URIs)
		}
		if !bytes.Equal(csr.Raw, der) {
			t.Error("accepted with something beside it")
		}
	})
}

// Whatever is accepted comes back the same from its stored form.
func FuzzEntryFromProto(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	seed, err := proto.Marshal(&types.Entry{
		SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/a"}, ParentId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/b"},
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}, DnsNames: []string{"a.b"}, X509SvidTtl: 10, ExpiresAt: 99,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, wire []byte) {
		pb := &types.Entry{}
		if proto.Unmarshal(wire, pb) != nil {
			return
		}
		e, err := entryFromProto(td, pb)
		if err != nil {
			return
		}
		again, err := entryFromProto(td, entryToProto(&e, nil))
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(entryToProto(&again, nil), entryToProto(&e, nil)) {
			t.Error("came back as another entry")
		}
		if isReserved(e.SPIFFEID) || !e.SPIFFEID.MemberOf(td) || !e.ParentID.MemberOf(td) || len(e.Selectors) == 0 {
			t.Errorf("accepted %+v", e)
		}
	})
}
