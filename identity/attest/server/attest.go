// Package server holds the server half of node attestation: it decides which
// agent a caller is. The agent's half of each method is a package of its own,
// so that agents stay small.
package server

import (
	"context"
	"crypto/sha256"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

// ErrRefused: what the caller presented does not attest it. Wrapped errors say
// why; the caller is not told more than that it failed.
var ErrRefused = errors.New("attestation refused")

// Attestor is the server half of one attestation method.
type Attestor interface {
	// Type is the method's name on the wire.
	Type() string
	// Attest decides who the caller is by the payload that it sent first.
	// challenge sends it a question and returns the answer.
	Attest(ctx context.Context, payload []byte, challenge Challenge) (*Attested, error)
}

// Challenge sends a question to the agent and returns its answer.
type Challenge func(ctx context.Context, question []byte) (answer []byte, err error)

// Tokens uses up join tokens, in the transaction that records the agent.
type Tokens interface {
	UseJoinToken(hash [sha256.Size]byte) (registry.JoinToken, error)
}

// Attested is who the caller is, if Claim agrees.
type Attested struct {
	ID          spiffeid.ID
	Selectors   []registry.Selector
	CanReattest bool
	// Claim, if set, uses up what may attest only once. It runs in the
	// transaction that records the agent and returns the SPIFFE ID that the
	// agent shall have besides, or the zero ID.
	Claim func(Tokens) (alias spiffeid.ID, err error)
}
