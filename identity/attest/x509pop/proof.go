// Package x509pop attests a node by an X.509 certificate that it has already,
// from a PKI that made it for the machine: it shows the certificate and proves
// by a signature that it holds the private key. This is the agent's half, and
// what both halves send.
//
// The messages are those of SPIRE's x509pop, JSON inside AttestAgent: the
// certificates; a challenge with a nonce; the agent's own nonce with a signature
// over SHA-256 of both. RSA keys sign by PSS, elliptic ones by ECDSA.
package x509pop

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// Type is the name of this attestor in SPIRE's server API.
const Type = "x509pop"

// nonceLen is the length in bytes of either end's nonce.
const nonceLen = 32

// minRSABits is the shortest RSA key that proves anything.
const minRSABits = 2048

// Data is the payload: the certificate and its intermediates, DER, leaf first.
type Data struct {
	Certificates [][]byte `json:"certificates"`
}

// Challenge is the question. Exactly one kind is set: that of the key.
type Challenge struct {
	RSA   *Nonce `json:"rsa_signature"`
	ECDSA *Nonce `json:"ecdsa_signature"`
}

// Nonce is random, used once.
type Nonce struct {
	Nonce []byte `json:"nonce"`
}

// Response is the answer, of the kind of the challenge.
type Response struct {
	RSA   *RSAResponse   `json:"rsa_signature"`
	ECDSA *ECDSAResponse `json:"ecdsa_signature"`
}

// RSAResponse is a signature by PSS with SHA-256.
type RSAResponse struct {
	Nonce     []byte `json:"nonce"`
	Signature []byte `json:"signature"`
}

// ECDSAResponse is a signature as two numbers, big-endian.
type ECDSAResponse struct {
	Nonce []byte `json:"nonce"`
	R     []byte `json:"r"`
	S     []byte `json:"s"`
}

// NewChallenge asks for the holder of the key. It refuses keys that cannot
// prove that they are held.
func NewChallenge(key crypto.PublicKey) (*Challenge, error) {
	nonce := &Nonce{Nonce: newNonce()}
	switch key := key.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < minRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits is too short, want %d", key.N.BitLen(), minRSABits)
		}
		return &Challenge{RSA: nonce}, nil
	case *ecdsa.PublicKey:
		return &Challenge{ECDSA: nonce}, nil
	}
	return nil, fmt.Errorf("a %T cannot answer: want RSA or ECDSA", key)
}

// Respond answers a challenge with the key.
func Respond(key crypto.PrivateKey, c *Challenge) (*Response, error) {
	own := newNonce()
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if c.RSA == nil {
			return nil, errors.New("the certificate has an RSA key, the challenge is of another kind")
		}
		digest, err := combine(c.RSA.Nonce, own)
		if err != nil {
			return nil, err
		}
		signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest, nil)
		return &Response{RSA: &RSAResponse{Nonce: own, Signature: signature}}, err
	case *ecdsa.PrivateKey:
		if c.ECDSA == nil {
			return nil, errors.New("the certificate has an ECDSA key, the challenge is of another kind")
		}
		digest, err := combine(c.ECDSA.Nonce, own)
		if err != nil {
			return nil, err
		}
		r, s, err := ecdsa.Sign(rand.Reader, key, digest)
		if err != nil {
			return nil, err
		}
		return &Response{ECDSA: &ECDSAResponse{Nonce: own, R: r.Bytes(), S: s.Bytes()}}, nil
	}
	return nil, fmt.Errorf("a %T cannot answer: want RSA or ECDSA", key)
}

// Verify checks that the holder of the key answered this very challenge.
func Verify(key crypto.PublicKey, c *Challenge, r *Response) error {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if c.RSA == nil || r.RSA == nil {
			return errors.New("the answer has no RSA signature")
		}
		digest, err := combine(c.RSA.Nonce, r.RSA.Nonce)
		if err != nil {
			return err
		}
		if rsa.VerifyPSS(key, crypto.SHA256, digest, r.RSA.Signature, nil) != nil {
			return errors.New("the RSA signature is not of the certificate's key")
		}
		return nil
	case *ecdsa.PublicKey:
		if c.ECDSA == nil || r.ECDSA == nil {
			return errors.New("the answer has no ECDSA signature")
		}
		digest, err := combine(c.ECDSA.Nonce, r.ECDSA.Nonce)
		if err != nil {
			return err
		}
		x, y := new(big.Int).SetBytes(r.ECDSA.R), new(big.Int).SetBytes(r.ECDSA.S)
		if !ecdsa.Verify(key, digest, x, y) {
			return errors.New("the ECDSA signature is not of the certificate's key")
		}
		return nil
	}
	return fmt.Errorf("a %T cannot answer: want RSA or ECDSA", key)
}

// combine is what is signed. Nonces of a fixed length leave one way to read it,
// and the responder's own keeps a challenger from choosing what is signed.
func combine(challenger, responder []byte) ([]byte, error) {
	if len(challenger) != nonceLen || len(responder) != nonceLen {
		return nil, fmt.Errorf("nonces of %d and %d bytes, want %d each", len(challenger), len(responder), nonceLen)
	}
	sum := sha256.Sum256(append(bytes.Clone(challenger), responder...))
	return sum[:], nil
}

func newNonce() []byte {
	nonce := make([]byte, nonceLen)
	rand.Read(nonce) // never fails
	return nonce
}

// Decode reads one JSON document of at most limit bytes.
func Decode(data []byte, limit int, into any) error {
	if len(data) > limit {
		return fmt.Errorf("%d bytes, more than %d", len(data), limit)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}
