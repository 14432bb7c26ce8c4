package sds

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/writ-dev/writ/identity/workload"
)

// has tells whether name is a certificate of the grant, signed or not.
func (b builder) has(name string) bool {
	for _, id := range b.grant.Identities {
		if name == b.DefaultSVIDName || name == id.ID.String() {
			return true
		}
	}
	return false
}

// worthless makes certificates under these names that nobody trusts: signed by
// themselves, without a SPIFFE ID. Envoy takes them, since each fits its key.
func worthless(names []string) (*discoveryv3.DiscoveryResponse, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a worthless certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "identity withdrawn"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	chain, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a worthless certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make a worthless certificate: %w", err)
	}
	set := &secrets{digest: make([]byte, 8)}
	for _, name := range names {
		secret, _, err := certificate(name, &workload.Identity{Chain: chain, Key: pkcs8})
		if err != nil {
			return nil, err
		}
		set.list = append(set.list, secret)
	}
	return set.response()
}
