package issuer

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/ca"
)

// maxCSR bounds a certificate signing request, in bytes.
const maxCSR = 16 << 10

// parseCSR reads a certificate signing request (PKCS #10, DER), checks that it
// was signed by the key in it, and that the key is one we certify.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	switch {
	case len(der) == 0:
		return nil, errors.New("csr is missing")
	case len(der) > maxCSR:
		return nil, fmt.Errorf("csr has %d bytes, at most %d are accepted", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("csr is malformed")
	}
	// The key first: checking a signature by an oversized one is expensive.
	if err := ca.CheckPublicKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("csr: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("csr is not signed by its own key, or by an algorithm that is not accepted")
	}
	return csr, nil
}

// parseCSRFor reads a request whose URI, if it has one, must be id.
func parseCSRFor(der []byte, id spiffeid.ID) (*x509.CertificateRequest, error) {
	csr, err := parseCSR(der)
	if err != nil {
		return nil, err
	}
	switch {
	case len(csr.URIs) > 1:
		return nil, fmt.Errorf("csr has %d URIs, at most one is accepted", len(csr.URIs))
	case len(csr.URIs) == 1 && csr.URIs[0].String() != id.String():
		return nil, fmt.Errorf("csr asks for %q, the identity is %q", csr.URIs[0], id)
	}
	return csr, nil
}
