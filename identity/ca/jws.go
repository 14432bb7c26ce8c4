package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// es256 signs compact JWS (RFC 7515 section 7.1, RFC 7518 section 3.4) with one
// key. Its header is always the same, so it is encoded once; go-jose would do it
// for each token.
type es256 struct {
	key    *ecdsa.PrivateKey
	header string // base64url
}

// newES256 returns nil for a key that is elsewhere, or not on P-256.
func newES256(signer any, keyID string) (*es256, error) {
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, nil
	}
	// The members in the order in which go-jose has them.
	header, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		Type      string `json:"typ"`
	}{"ES256", keyID, "JWT"})
	if err != nil {
		return nil, err
	}
	return &es256{key: key, header: base64.RawURLEncoding.EncodeToString(header)}, nil
}

func (s *es256) sign(payload []byte) (string, error) {
	token := make([]byte, 0, len(s.header)+1+base64.RawURLEncoding.EncodedLen(len(payload))+1+86)
	token = append(append(token, s.header...), '.')
	token = base64.RawURLEncoding.AppendEncode(token, payload)
	digest := sha256.Sum256(token)
	der, err := ecdsa.SignASN1(rand.Reader, s.key, digest[:])
	if err != nil {
		return "", err
	}
	// Both numbers in 32 bytes, big endian.
	var signature [64]byte
	var pair cryptobyte.String
	var r, t big.Int
	outer := cryptobyte.String(der)
	if !outer.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1Integer(&r) || !pair.ReadASN1Integer(&t) || !pair.Empty() {
		return "", errors.New("the signature is no pair of numbers")
	}
	r.FillBytes(signature[:32])
	t.FillBytes(signature[32:])
	return string(base64.RawURLEncoding.AppendEncode(append(token, '.'), signature[:])), nil
}
