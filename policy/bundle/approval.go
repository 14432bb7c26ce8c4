package bundle

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

// approvalPurpose keeps a signature under an approval from being taken for one
// under anything else.
const approvalPurpose = "writ-policy-approval"

type approval struct {
	Purpose  string `json:"purpose"`
	Proposal uint64 `json:"proposal"`
	Digest   string `json:"digest"`
}

// SignApproval approves a proposal: a compact JWS, ES256, over its number and
// the digest of the content that it would put in force.
func SignApproval(key crypto.Signer, proposal uint64, digest [32]byte) (string, error) {
	id, err := KeyID(key.Public())
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(approval{approvalPurpose, proposal, hex.EncodeToString(digest[:])})
	if err != nil {
		return "", fmt.Errorf("sign approval: %w", err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: cryptosigner.Opaque(key), KeyID: id}}, nil)
	if err != nil {
		return "", fmt.Errorf("sign approval: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign approval: %w", err)
	}
	return jws.CompactSerialize()
}

// VerifyApproval checks that one of keys approved this proposal with this
// digest, and returns the id of that key.
func VerifyApproval(signature string, keys Keys, proposal uint64, digest [32]byte) (string, error) {
	jws, err := jose.ParseSignedCompact(signature, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return "", fmt.Errorf("approval: %w", err)
	}
	id := jws.Signatures[0].Protected.KeyID
	if keys[id] == nil {
		return "", fmt.Errorf("approval is signed by key %q, which is no approver's", id)
	}
	payload, err := jws.Verify(keys[id])
	if err != nil {
		return "", fmt.Errorf("approval by key %s does not verify", id)
	}
	var a approval
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return "", fmt.Errorf("approval: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("approval: more than one statement is signed")
	}
	switch {
	case a.Purpose != approvalPurpose:
		return "", fmt.Errorf("approval: what is signed is for %q", a.Purpose)
	case a.Proposal != proposal:
		return "", fmt.Errorf("approval is of proposal %d, not of %d", a.Proposal, proposal)
	case a.Digest != hex.EncodeToString(digest[:]):
		return "", fmt.Errorf("approval is of a content that is not proposal %d's", proposal)
	}
	return id, nil
}
