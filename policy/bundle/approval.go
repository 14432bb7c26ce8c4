package bundle

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

// approvalPurpose keeps a signature under an approval from being taken for one
// under anything else.
const approvalPurpose = "writ-policy-approval"

type approval struct {
	Purpose  string `json:"purpose"`
	Proposal uint64 `json:"proposal"`
	Proposed int64  `json:"proposed,string"`
	Digest   string `json:"digest"`
}

// Approved is what somebody approves. Numbers and contents are the same at two
// control planes, as in staging and in production, or after a restore; the
// nanosecond of the proposal is not, so that an approval is of one of them.
type Approved struct {
	Proposal uint64
	Proposed time.Time
	// Digest of the content that would be in force.
	Digest [32]byte
}

// SignApproval approves a proposal by a compact JWS, ES256.
func SignApproval(key crypto.Signer, of Approved) (string, error) {
	id, err := KeyID(key.Public())
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(approval{approvalPurpose, of.Proposal, of.Proposed.UnixNano(), hex.EncodeToString(of.Digest[:])})
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

// VerifyApproval checks that one of keys approved just this, and returns the id
// of that key.
func VerifyApproval(signature string, keys Keys, of Approved) (string, error) {
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
	case a.Proposal != of.Proposal:
		return "", fmt.Errorf("approval is of proposal %d, not of %d", a.Proposal, of.Proposal)
	case a.Digest != hex.EncodeToString(of.Digest[:]):
		return "", fmt.Errorf("approval is of a content that is not proposal %d's", of.Proposal)
	case a.Proposed != of.Proposed.UnixNano():
		return "", fmt.Errorf("approval is of another control plane's proposal %d, or of one before a restore", of.Proposal)
	}
	return id, nil
}
