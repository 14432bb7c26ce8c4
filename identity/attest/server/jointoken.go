package server

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

// JoinToken attests by a token that works once. The payload is the token; the
// agent's ID is spiffe://TD/spire/agent/join_token/<token>, as stock agents
// expect.
type JoinToken struct {
	TrustDomain spiffeid.TrustDomain
}

var _ Attestor = JoinToken{}

// Type implements Attestor.
func (JoinToken) Type() string { return "join_token" }

// Attest implements Attestor.
func (j JoinToken) Attest(_ context.Context, payload []byte, _ Challenge) (*Attested, error) {
	token := string(payload)
	if len(token) > MaxTokenLength {
		return nil, fmt.Errorf("%w: join token of %d bytes", ErrRefused, len(token))
	}
	id, err := spiffeid.FromSegments(j.TrustDomain, "spire", "agent", "join_token", token)
	if err != nil {
		// The error of the parser may hold the token.
		return nil, fmt.Errorf("%w: join token is malformed", ErrRefused)
	}
	return &Attested{ID: id, Claim: func(tokens Tokens) (spiffeid.ID, error) {
		kept, err := tokens.UseJoinToken(registry.HashToken(token))
		return kept.Alias, err
	}}, nil
}

const (
	// MinTokenLength is what a caller-chosen token must have: 128 bits take 22
	// characters of base64.
	MinTokenLength = 22
	// MaxTokenLength bounds the agent IDs made of tokens.
	MaxTokenLength = 256
)
