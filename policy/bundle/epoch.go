package bundle

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

const purposeEpoch = "writ-policy-epoch"

// EpochStatement is what the decision key signs when the epoch is raised.
type EpochStatement struct {
	Purpose string `json:"purpose"`
	Epoch   uint64 `json:"epoch"`
	// From is the revision in force before, as text, "none" for none.
	From   string    `json:"from"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	Raised time.Time `json:"raised"`
}

// Sign gives the statement as a compact JWS, ES256.
func (s EpochStatement) Sign(key crypto.Signer) (string, error) {
	s.Purpose = purposeEpoch
	text, err := signJWS(key, s)
	if err != nil {
		return "", fmt.Errorf("sign epoch: %w", err)
	}
	return text, nil
}

// OpenEpochStatement verifies a statement that one of keys signed.
func OpenEpochStatement(text string, keys Keys) (*EpochStatement, error) {
	var s EpochStatement
	if err := openJWS(text, keys, &s); err != nil {
		return nil, fmt.Errorf("statement of an epoch: %w", err)
	}
	if s.Purpose != purposeEpoch {
		return nil, fmt.Errorf("statement of an epoch: it is for %q", s.Purpose)
	}
	return &s, nil
}

func signJWS(key crypto.Signer, v any) (string, error) {
	id, err := KeyID(key.Public())
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: cryptosigner.Opaque(key), KeyID: id}}, nil)
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// openJWS verifies a compact JWS of one of keys and decodes it strictly.
func openJWS(text string, keys Keys, v any) error {
	jws, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	id := jws.Signatures[0].Protected.KeyID
	if keys[id] == nil {
		return fmt.Errorf("signed by key %q, which is not trusted here", id)
	}
	payload, err := jws.Verify(keys[id])
	if err != nil {
		return fmt.Errorf("the signature by key %s does not verify", id)
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("more than one document")
	}
	return nil
}
