package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/writ-dev/writ/audit/auditv1"
)

// Causes of a gap.
const (
	// GapDrop: the recorder was full and told to drop.
	GapDrop = "drop"
	// GapSpoolLost: the spool, or what the machine had not yet written of it
	// when it died, is gone.
	GapSpoolLost = "spool_lost"
	// GapSpoolCorrupt: the spool was damaged on disk.
	GapSpoolCorrupt = "spool_corrupt"
)

const gapDomain = "writ audit gap v1\x00"

// SignGap signs the SHA-256 of statement with the private key of the current
// X509-SVID, and returns the certificate chain (DER, leaf first) that proves
// the key. ECDSA signatures are ASN.1, RSA is PKCS #1 v1.5, Ed25519 signs the
// digest.
type SignGap func(statement []byte) (signature []byte, certificates [][]byte, err error)

// SignGapWith signs gap statements with a key and its chain.
func SignGapWith(key crypto.Signer, chain []*x509.Certificate) SignGap {
	return func(statement []byte) ([]byte, [][]byte, error) {
		digest := sha256.Sum256(statement)
		var opts crypto.SignerOpts = crypto.SHA256
		if _, ok := key.Public().(ed25519.PublicKey); ok {
			opts = crypto.Hash(0)
		}
		sig, err := key.Sign(nil, digest[:], opts)
		if err != nil {
			return nil, nil, fmt.Errorf("sign gap: %w", err)
		}
		der := make([][]byte, len(chain))
		for i, c := range chain {
			der[i] = c.Raw
		}
		return sig, der, nil
	}
}

// GapStatement is what the signature of a gap covers: whose gap it is, at which
// position it is recorded, and what it says.
func GapStatement(s Stream, epoch uint32, sequence uint64, g *auditv1.Gap) []byte {
	b := []byte(gapDomain)
	b = appendSized(b, s.SPIFFEID)
	b = appendSized(b, s.Instance)
	b = binary.BigEndian.AppendUint32(b, epoch)
	b = binary.BigEndian.AppendUint64(b, sequence)
	b = binary.BigEndian.AppendUint64(b, g.FirstSequence)
	b = binary.BigEndian.AppendUint64(b, g.Count)
	return appendSized(b, g.Cause)
}

// ErrGapUnsigned means that a gap carries no signature: the workload had no
// SVID when it noticed the loss.
var ErrGapUnsigned = errors.New("gap is not signed")

// CheckGap verifies the signature of a gap by the leaf certificate that comes
// with it, and that the leaf names the stream. It does not verify the chain:
// that needs the trust bundle of the time.
func CheckGap(s Stream, epoch uint32, sequence uint64, g *auditv1.Gap) error {
	if len(g.Signature) == 0 || len(g.Certificates) == 0 {
		return ErrGapUnsigned
	}
	leaf, err := x509.ParseCertificate(g.Certificates[0])
	if err != nil {
		return fmt.Errorf("gap certificate: %w", err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != s.SPIFFEID {
		return fmt.Errorf("gap certificate does not name %s", s.SPIFFEID)
	}
	digest := sha256.Sum256(GapStatement(s, epoch, sequence, g))
	ok := false
	switch key := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, digest[:], g.Signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], g.Signature) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, digest[:], g.Signature)
	}
	if !ok {
		return errors.New("gap signature does not verify")
	}
	return nil
}
