package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/writ-dev/writ/identity"
)

// x509.CreateCertificate verifies each signature that it made, by a signer that
// it knows nothing of, and encodes by reflection: together a third of what an SVID
// costs. Here the same bytes are written for one form of certificate, an
// X509-SVID as PrepareX509 describes it, and signed by a P-256 key of this process.
// Everything else is left to the library, and the library keeps watch: see signX509.

// checkEvery is how often the library makes a certificate too. The first after a
// start is always among them.
const checkEvery = 256

var (
	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidAuthorityKeyID  = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidSubjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}

	// fixedExtensions are those that all X509-SVIDs share (RFC 5280 section
	// 4.2.1): key usage digitalSignature, critical; extended key usage serverAuth
	// and clientAuth; basic constraints of a leaf, critical.
	fixedExtensions = []byte{
		0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x07, 0x80,
		0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x16, 0x30, 0x14,
		0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01,
		0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
		0x30, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x02, 0x30, 0x00,
	}
	emptySubject = []byte{0x30, 0x00}
)

// leafSigner writes and signs X509-SVIDs of one authority. It does not change.
type leafSigner struct {
	key       *ecdsa.PrivateKey
	issuer    []byte // DER
	authority []byte // key identifier
}

// newLeafSigner returns nil for an authority whose SVIDs the library must make:
// its key is elsewhere, or not on P-256.
func newLeafSigner(cert *x509.Certificate, signer any) *leafSigner {
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() || cert == nil || len(cert.RawSubject) == 0 || len(cert.SubjectKeyId) == 0 {
		return nil
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil
	}
	return &leafSigner{key: key, issuer: cert.RawSubject, authority: cert.SubjectKeyId}
}

// isLeaf says whether a template has the one form that tbs writes.
func isLeaf(t *x509.Certificate) bool {
	usage := t.KeyUsage == x509.KeyUsageDigitalSignature && len(t.UnknownExtKeyUsage) == 0 &&
		slices.Equal(t.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth})
	constraints := t.BasicConstraintsValid && !t.IsCA && t.MaxPathLen == 0 && !t.MaxPathLenZero
	names := len(t.URIs) == 1 && len(t.EmailAddresses) == 0 && len(t.IPAddresses) == 0 && len(t.RawSubject) == 0
	nothingElse := len(t.SubjectKeyId) == 0 && len(t.AuthorityKeyId) == 0 && len(t.ExtraExtensions) == 0 && t.SignatureAlgorithm == 0 &&
		len(t.OCSPServer) == 0 && len(t.IssuingCertificateURL) == 0 && len(t.CRLDistributionPoints) == 0 &&
		len(t.PolicyIdentifiers) == 0 && len(t.Policies) == 0 && t.SerialNumber.Sign() > 0
	return usage && constraints && names && nothingElse
}

// isASCII says whether an IA5String can hold s.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// tbs is the part of a certificate that is signed (RFC 5280 section 4.1.2).
func (l *leafSigner) tbs(t *x509.Certificate, key any) ([]byte, error) {
	uri := ""
	if isLeaf(t) {
		uri = t.URIs[0].String()
	}
	if uri == "" || !isASCII(uri) || !isASCII(strings.Join(t.DNSNames, "")) {
		return nil, errors.New("not the form of an X509-SVID")
	}
	subject := emptySubject
	if rdns := t.Subject.ToRDNSequence(); len(rdns) > 0 {
		var err error
		if subject, err = asn1.Marshal(rdns); err != nil {
			return nil, err
		}
	}
	// CreateCertificate leaves the key identifier out where the subject is the
	// issuer's own name.
	if bytes.Equal(subject, l.issuer) {
		return nil, errors.New("the subject is the issuer's name")
	}
	public, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 512+len(subject)))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) })
		b.AddASN1BigInt(t.SerialNumber)
		addECDSAWithSHA256(b)
		b.AddBytes(l.issuer)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.NotBefore)
			addTime(b, t.NotAfter)
		})
		b.AddBytes(subject)
		b.AddBytes(public)
		b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddBytes(fixedExtensions)
				addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(l.authority) })
				})
				addExtension(b, oidSubjectAltName, len(subject) == len(emptySubject), func(b *cryptobyte.Builder) {
					for _, name := range t.DNSNames {
						b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
					}
					b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(uri)) })
				})
			})
		})
	})
	return b.Bytes()
}

// sign makes the certificate of a part that is to be signed.
func (l *leafSigner) sign(tbs []byte) (der []byte, err error) {
	digest := sha256.Sum256(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, l.key, digest[:])
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+128))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		addECDSAWithSHA256(b)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

func addECDSAWithSHA256(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidECDSAWithSHA256) })
}

// addExtension adds an extension whose value is a sequence.
func addExtension(b *cryptobyte.Builder, id asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(id)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, value) })
	})
}

// addTime is RFC 5280 section 4.1.2.5: UTCTime through the year 2049.
func addTime(b *cryptobyte.Builder, t time.Time) {
	t = t.UTC()
	if y := t.Year(); y >= 1950 && y < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

// signX509 makes the certificate of a ticket. Of every checkEvery the library
// makes one too, from the same template, and that one is given out: should what
// was to be signed differ by a byte, or a signature not verify, nothing but the
// library is used from then on.
func (c *CA) signX509(t *X509Ticket) ([]byte, error) {
	library := func() ([]byte, error) {
		return x509.CreateCertificate(rand.Reader, t.template, t.by.cert, t.key, t.by.signer)
	}
	own := t.by.leaf
	if own == nil || c.distrusted.Load() {
		return library()
	}
	tbs, err := own.tbs(t.template, t.key)
	if err != nil {
		return library() // it says what is wrong, or knows better
	}
	der, err := own.sign(tbs)
	if err != nil {
		return nil, err
	}
	if c.signed.Add(1)%checkEvery != 1 {
		return der, nil
	}
	theirs, err := library()
	if err != nil {
		return nil, err
	}
	if err := sameCertificate(der, theirs, t.by.cert); err != nil {
		c.distrust(err)
	}
	return theirs, nil
}

// distrust has nothing but the library used from now on, and says so where an
// operator sees it. What differs was not given out.
func (c *CA) distrust(why error) {
	if c.distrusted.Swap(true) {
		return
	}
	c.cfg.Log.Error("our own encoding of certificates is not the library's: only the library is used from now on", "error", why)
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "diverged", Actor: identity.IssuerID(c.cfg.TrustDomain).String(), Object: "certificate encoder", ObjectID: c.cfg.TrustDomain.Name(),
		Reason: "an X509-SVID as we encode it is not as the library does: only the library is used from now on; the log has both",
	}
	// It cannot fail the SVID, which is the library's and on record.
	if err := c.cfg.Emit(context.Background(), act); err != nil {
		c.cfg.Log.Error("cannot record that our own encoding of certificates diverged", "error", err)
	}
}

// sameCertificate says whether two certificates differ in their signature alone,
// and that the first is signed by the authority.
func sameCertificate(ours, theirs []byte, by *x509.Certificate) error {
	a, err := x509.ParseCertificate(ours)
	if err != nil {
		return err
	}
	b, err := x509.ParseCertificate(theirs)
	if err != nil {
		return err
	}
	if !bytes.Equal(a.RawTBSCertificate, b.RawTBSCertificate) {
		return fmt.Errorf("%x, want %x", a.RawTBSCertificate, b.RawTBSCertificate)
	}
	return a.CheckSignatureFrom(by)
}
