package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/internal/skew"
)

// Cause is why a connection was refused, in one word for metrics.
type Cause string

// Causes.
const (
	NoCertificate Cause = "no_certificate"
	NotAnSVID     Cause = "not_an_svid"
	ForeignDomain Cause = "foreign_trust_domain"
	ExpiredSVID   Cause = "expired_svid"
	UnknownCA     Cause = "unknown_authority"
	WrongID       Cause = "wrong_spiffe_id"
	BadSVID       Cause = "invalid_svid"
	RevokedSVID   Cause = "revoked_svid"
	BadHandshake  Cause = "tls"
	TimedOut      Cause = "timeout"
)

// Error says why a peer was not accepted.
type Error struct {
	Cause  Cause
	Reason string
}

func (e *Error) Error() string { return e.Reason }

func refuse(c Cause, format string, args ...any) *Error {
	return &Error{Cause: c, Reason: fmt.Sprintf(format, args...)}
}

// Revoked refuses an SVID that is otherwise good, with its reason.
type Revoked func(leaf *x509.Certificate, id spiffeid.ID) error

// verifier checks the certificates that a peer showed (X509-SVID, sections 4
// and 5).
type verifier struct {
	bundles x509bundle.Source
	// accept says whether an ID that parses may be who is wanted, before the
	// chain is looked at. It has not been proved yet.
	accept func(spiffeid.ID) error
	// revoked refuses SVIDs that verify; nil for none.
	revoked Revoked
	now     func() time.Time
}

func (v *verifier) verify(state tls.ConnectionState) (spiffeid.ID, [][]*x509.Certificate, error) {
	certs := state.PeerCertificates
	if len(certs) == 0 {
		return spiffeid.ID{}, nil, refuse(NoCertificate, "the peer showed no certificate")
	}
	leaf := certs[0]
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return spiffeid.ID{}, nil, refuse(NotAnSVID, "the certificate is not an X509-SVID: %v", err)
	}
	if err := checkLeaf(leaf, id); err != nil {
		return spiffeid.ID{}, nil, refuse(NotAnSVID, "the certificate is not an X509-SVID: %v", err)
	}
	if err := v.accept(id); err != nil {
		return spiffeid.ID{}, nil, err
	}
	now := v.now()
	id, chains, err := x509svid.Verify(certs, v.bundles, x509svid.WithTime(now))
	if err == nil && v.revoked != nil {
		if err := v.revoked(leaf, id); err != nil {
			return spiffeid.ID{}, nil, refuse(RevokedSVID, "%v", err)
		}
	}
	if err == nil {
		return id, chains, nil
	}
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if off := skew.Of(leaf, now); off != nil {
			return spiffeid.ID{}, nil, refuse(ExpiredSVID, "the X509-SVID that claims %s is not valid now: it %v", id, off)
		}
		return spiffeid.ID{}, nil, refuse(ExpiredSVID, "the X509-SVID that claims %s is signed by an authority that is not valid now, at %s by this machine's clock", id, now.UTC().Format(time.RFC3339))
	case errors.As(err, &unknown):
		return spiffeid.ID{}, nil, refuse(UnknownCA, "the X509-SVID that claims %s is not signed by the trust bundle", id)
	}
	return spiffeid.ID{}, nil, refuse(BadSVID, "the X509-SVID that claims %s does not verify: %v", id, err)
}

// checkLeaf holds what the standard asks of a leaf and x509svid.Verify does not
// look at: the ID has a path, the key may sign, and extended key usage, where
// there is any, names both ends of TLS.
func checkLeaf(leaf *x509.Certificate, id spiffeid.ID) error {
	if id.Path() == "" {
		return errors.New("its SPIFFE ID names a trust domain, not a workload")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("its key usage is not digitalSignature")
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 {
		return nil
	}
	var server, client bool
	for _, u := range leaf.ExtKeyUsage {
		server = server || u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny
		client = client || u == x509.ExtKeyUsageClientAuth || u == x509.ExtKeyUsageAny
	}
	if !server || !client {
		return errors.New("its extended key usage is not serverAuth and clientAuth")
	}
	return nil
}
