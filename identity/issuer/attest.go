package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/tracing"
)

// attestTimeout is how long an unauthenticated caller may keep an attestation
// waiting for its next message.
const attestTimeout = 10 * time.Second

// attestorsOf are the methods that are served, by name.
func attestorsOf(cfg Config) (map[string]server.Attestor, error) {
	if len(cfg.Attestors) == 0 {
		cfg.Attestors = []server.Attestor{server.JoinToken{TrustDomain: cfg.TrustDomain}}
	}
	served := map[string]server.Attestor{}
	for _, a := range cfg.Attestors {
		if served[a.Type()] != nil {
			return nil, fmt.Errorf("issuer: two attestors of method %s", a.Type())
		}
		served[a.Type()] = a
	}
	return served, nil
}

// AttestAgent implements agentv1.AgentServer.
func (s *agentService) AttestAgent(stream agentv1.Agent_AttestAgentServer) error {
	ctx := stream.Context()
	// A refusal before the first message could meet the client in its Send,
	// where gRPC hides the reason.
	first, err := receive(stream)
	if err != nil {
		return err
	}
	if err := s.waitToAttest(ctx); err != nil {
		return err
	}
	params := first.GetParams()
	if params == nil || params.GetData() == nil || params.GetParams() == nil {
		return status.Error(codes.InvalidArgument, "the first message must have params with data and params")
	}
	attestor, ok := s.attestors[params.GetData().GetType()]
	if !ok {
		return s.attestFailed(ctx, params.GetData().GetType(), &unservedError{
			method: params.GetData().GetType(), served: slices.Sorted(maps.Keys(s.attestors))})
	}
	attesting, span := tracing.Start(ctx, "attest node")
	span.String(tracing.Attestation, attestor.Type())
	attested, err := attestor.Attest(attesting, params.GetData().GetPayload(), func(_ context.Context, question []byte) ([]byte, error) {
		err := stream.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Challenge{Challenge: question}})
		if err != nil {
			return nil, fmt.Errorf("%w: the challenge did not reach the caller: %w", server.ErrRefused, err)
		}
		answer, err := receive(stream)
		if err != nil {
			return nil, fmt.Errorf("%w: no answer to the challenge: %w", server.ErrRefused, err)
		}
		return answer.GetChallengeResponse(), nil
	})
	span.End(err)
	if err != nil {
		return s.attestFailed(ctx, attestor.Type(), err)
	}
	svid, err := s.admit(ctx, attestor.Type(), attested, params.GetParams().GetCsr())
	if err != nil {
		return err
	}
	return stream.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Result_{
		Result: &agentv1.AttestAgentResponse_Result{Svid: svid, Reattestable: attested.CanReattest},
	}})
}

// admit records an attested agent, its alias with it, and signs its SVID.
func (s *agentService) admit(ctx context.Context, method string, attested *server.Attested, csrDER []byte) (*types.X509SVID, error) {
	// Everything that can be refused is checked before a token is used up.
	csr, err := parseCSRFor(csrDER, attested.ID)
	if err != nil {
		return nil, s.attestFailed(ctx, method, fmt.Errorf("%w: %w", server.ErrRefused, err))
	}
	ticket, err := s.ca.PrepareX509(ca.X509Request{ID: attested.ID, PublicKey: csr.PublicKey, Life: s.cfg.AgentSVIDLife})
	if err != nil {
		return nil, s.unsigned(ctx, err)
	}
	t := s.turnOf(ctx)
	if known := s.index.Agent(attested.ID); known != nil && known.CanReattest {
		t = turn{admit.Renewal, known.LastExpiry().Sub(s.now())} // the form that its renewals have
	}
	update := s.updateTogether
	if attested.Claim != nil {
		update = s.updateAs // many a token is refused
	}
	err = update(ctx, t, func(tx *sqlstore.Tx, record recorder) error {
		agent := registry.Agent{
			ID: attested.ID, AttestationType: method, Selectors: attested.Selectors, CanReattest: attested.CanReattest,
			Serial: ticket.Serial(), ExpiresAt: ticket.ExpiresAt(),
		}
		switch known, err := tx.Agent(attested.ID); {
		case errors.Is(err, registry.ErrNotFound):
		case err != nil:
			return err
		case known.Banned:
			return deny(types.PermissionDeniedDetails_AGENT_BANNED, "the agent is banned")
		case known.AttestationType != method:
			// Two methods whose IDs overlap (a template can do that) must not
			// take over each other's agents.
			return fmt.Errorf("%w: %s is an agent attested by %s", server.ErrRefused, attested.ID, known.AttestationType)
		case known.CanReattest && s.now().Before(known.ExpiresAt):
			// The agent goes on with the SVID it has until it shows the new
			// one, as at a renewal: calls that are under way do not fail.
			agent.Serial, agent.ExpiresAt = known.Serial, known.ExpiresAt
			agent.NewSerial, agent.NewExpiresAt = ticket.Serial(), ticket.ExpiresAt()
		}
		if err := tx.PutAgent(agent); err != nil {
			return err
		}
		if err := s.claim(tx, attested, record); err != nil {
			return err
		}
		return record(svidAct("attested", "agent", attested.ID, ticket.ExpiresAt(),
			[2]string{"method", method}, [2]string{"serial", ticket.Serial()}))
	})
	if err != nil {
		return nil, s.attestFailed(ctx, method, err)
	}
	svid, err := s.issueX509(ctx, ticket, attested.ID)
	if err != nil {
		return nil, s.internal(ctx, "sign the agent's SVID", err)
	}
	return svid, nil
}

// claim uses up what attests only once, and makes the agent's alias.
func (s *agentService) claim(tx *sqlstore.Tx, attested *server.Attested, record recorder) error {
	if attested.Claim == nil {
		return nil
	}
	tokens := &observedTokens{Tokens: tx}
	alias, err := attested.Claim(tokens)
	if err != nil {
		return &claimError{hash: tokens.hash, err: err}
	}
	// Since a token was made, something may have been put below its alias.
	if !tokens.local && !alias.IsZero() {
		if err := s.checkBelow(alias); err != nil {
			return err
		}
	}
	if tokens.used {
		act := tokenAct(identity.ActCredential, "used", tokens.hash)
		act.Details = append(act.Details, [2]string{"agent", attested.ID.String()})
		if err := record(act); err != nil {
			return err
		}
	}
	if alias.IsZero() {
		return nil
	}
	entry, err := tx.CreateEntry(registry.Entry{
		SPIFFEID: alias, ParentID: attested.ID, Selectors: []registry.Selector{registry.AliasSelector(attested.ID)},
	})
	var exists *registry.ExistsError
	if errors.As(err, &exists) {
		return nil // an agent that attests again has its alias
	} else if err != nil {
		return err
	}
	return record(entryAct("created", entry))
}

// observedTokens remembers which token a method used, and whether a local
// administrator made it.
type observedTokens struct {
	server.Tokens
	hash        [sha256.Size]byte
	used, local bool
}

func (o *observedTokens) UseJoinToken(hash [sha256.Size]byte) (registry.JoinToken, error) {
	o.hash, o.used = hash, true
	token, err := o.Tokens.UseJoinToken(hash)
	o.local = token.Local
	return token, err
}

// claimError is a token that could not be used.
type claimError struct {
	hash [sha256.Size]byte
	err  error
}

func (e *claimError) Error() string { return e.err.Error() }
func (e *claimError) Unwrap() error { return e.err }

// unservedError is an attempt by a method that this issuer does not serve.
type unservedError struct {
	method string
	served []string
}

func (e *unservedError) Error() string {
	return fmt.Sprintf("attestation method %q is not served here; served: %s", e.method, strings.Join(e.served, ", "))
}

// maxMethod bounds how much of a method's name, which the caller chose, goes on
// record.
const maxMethod = 64

// attestFailed puts a refused attestation on record and returns what the caller
// is told, which does not say whether a token exists.
func (s *agentService) attestFailed(ctx context.Context, method string, err error) error {
	if status.Code(err) == codes.ResourceExhausted {
		return err // nothing was decided, and nothing used up
	}
	act := identity.Act{Kind: identity.ActCredential, Verb: "attested", Object: "agent", Failed: true,
		Details: [][2]string{{"method", strings.ToValidUTF8(method[:min(len(method), maxMethod)], "")}}}
	answer := status.Error(codes.InvalidArgument, "attestation failed: join token is unknown, expired or already used")
	var claim *claimError
	var unserved *unservedError
	switch {
	case errors.As(err, &unserved):
		act.Reason = "attestation method not served"
		answer = status.Error(codes.Unimplemented, err.Error())
	case errors.As(err, &claim) && errors.Is(err, registry.ErrTokenUsed):
		act = tokenAct(identity.ActAlarm, "reused", claim.hash)
		act.Failed, act.Reason = true, "a join token was presented a second time: it is known to someone who should not know it"
	case errors.As(err, &claim) && errors.Is(err, registry.ErrTokenExpired):
		act.Reason = "join token expired"
	case errors.As(err, &claim) && errors.Is(err, registry.ErrNotFound):
		act.Reason = "join token unknown"
	case errors.Is(err, server.ErrRefused):
		act.Reason = err.Error()
		answer = status.Error(codes.InvalidArgument, err.Error())
	case status.Code(err) == codes.PermissionDenied:
		act.Reason, answer = status.Convert(err).Message(), err
	default:
		act.Reason = "it could not be decided"
		answer = s.internal(ctx, "attest the agent", err)
	}
	if err := s.record(context.WithoutCancel(ctx), act); err != nil {
		return err
	}
	return answer
}

func tokenAct(kind, verb string, hash [sha256.Size]byte) identity.Act {
	// The beginning of the hash names the token and gives nothing away.
	return identity.Act{Kind: kind, Verb: verb, Object: "token", ObjectID: hex.EncodeToString(hash[:8])}
}

// receive is stream.Recv with a time limit. A Recv that was given up ends when
// the handler returns, which is at once.
func receive(stream agentv1.Agent_AttestAgentServer) (*agentv1.AttestAgentRequest, error) {
	type received struct {
		req *agentv1.AttestAgentRequest
		err error
	}
	done := make(chan received, 1)
	go func() {
		req, err := stream.Recv()
		done <- received{req, err}
	}()
	timer := time.NewTimer(attestTimeout)
	defer timer.Stop()
	select {
	case r := <-done:
		if errors.Is(r.err, io.EOF) {
			r.err = status.Error(codes.InvalidArgument, "the stream ended, and a message was awaited")
		}
		return r.req, r.err
	case <-timer.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "no message for %v", attestTimeout)
	}
}
