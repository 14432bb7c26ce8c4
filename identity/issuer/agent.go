package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/revocation"
)

// agentService is spire.api.server.agent.v1.Agent. Attestation is in attest.go.
type agentService struct {
	*Issuer
	agentv1.UnimplementedAgentServer
}

// CountAgents implements agentv1.AgentServer.
func (s *agentService) CountAgents(_ context.Context, req *agentv1.CountAgentsRequest) (*agentv1.CountAgentsResponse, error) {
	keep, err := agentFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	var n int32
	for _, a := range s.index.Agents() {
		if keep(a) {
			n++
		}
	}
	return &agentv1.CountAgentsResponse{Count: n}, nil
}

// ListAgents implements agentv1.AgentServer.
func (s *agentService) ListAgents(_ context.Context, req *agentv1.ListAgentsRequest) (*agentv1.ListAgentsResponse, error) {
	keep, err := agentFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	p, err := newPage[*types.Agent](req.GetPageSize())
	if err != nil {
		return nil, err
	}
	for _, a := range s.index.Agents() {
		if id := a.ID.String(); id > req.GetPageToken() && keep(a) && !p.add(id, agentToProto(a, req.GetOutputMask())) {
			break
		}
	}
	return &agentv1.ListAgentsResponse{Agents: p.items, NextPageToken: p.next}, nil
}

// GetAgent implements agentv1.AgentServer.
func (s *agentService) GetAgent(_ context.Context, req *agentv1.GetAgentRequest) (*types.Agent, error) {
	id, err := s.agentID(req.GetId())
	if err != nil {
		return nil, err
	}
	a := s.index.Agent(id)
	if a == nil {
		return nil, status.Error(codes.NotFound, "agent not found")
	}
	return agentToProto(a, req.GetOutputMask()), nil
}

// DeleteAgent implements agentv1.AgentServer. It lifts a ban, too.
func (s *agentService) DeleteAgent(ctx context.Context, req *agentv1.DeleteAgentRequest) (*emptypb.Empty, error) {
	id, err := s.agentID(req.GetId())
	if err != nil {
		return nil, err
	}
	err = s.updateAs(ctx, urgent, func(tx *sqlstore.Tx, record recorder) error {
		aliases, err := tx.DeleteAgent(id)
		if err != nil {
			return err
		}
		for _, e := range aliases {
			if err := record(entryAct("deleted", e)); err != nil {
				return err
			}
		}
		act := agentAct("deleted", id)
		act.Kind = identity.ActAdmin
		return record(act)
	})
	if errors.Is(err, registry.ErrNotFound) {
		return nil, status.Error(codes.NotFound, "agent not found")
	} else if err != nil {
		return nil, s.internal(ctx, "delete the agent", err)
	}
	return &emptypb.Empty{}, nil
}

// BanAgent implements agentv1.AgentServer. The agent's calls and streams end,
// and what was issued through it is revoked; it stays known, and banned, until it
// is deleted.
func (s *agentService) BanAgent(ctx context.Context, req *agentv1.BanAgentRequest) (*emptypb.Empty, error) {
	id, err := s.agentID(req.GetId())
	if err != nil {
		return nil, err
	}
	err = s.updateAs(ctx, urgent, func(tx *sqlstore.Tx, record recorder) error {
		a, err := tx.Agent(id)
		if err != nil {
			return err
		}
		banned := *a
		banned.Banned, banned.Serial, banned.NewSerial, banned.NewExpiresAt = true, "", "", time.Time{}
		if err := tx.PutAgent(banned); err != nil {
			return err
		}
		act := agentAct("banned", id)
		act.Kind = identity.ActAdmin
		if err := record(act); err != nil {
			return err
		}
		_, err = s.revoke(ctx, tx, record, revocation.Agent, id.String(), "the agent was banned")
		return err
	})
	if errors.Is(err, registry.ErrNotFound) {
		return nil, status.Error(codes.NotFound, "agent not found")
	} else if err != nil {
		return nil, s.internal(ctx, "ban the agent", err)
	}
	return &emptypb.Empty{}, nil
}

// maxJoinTokenLife bounds how long a secret lies about that lets a node join.
const maxJoinTokenLife = 30 * 24 * time.Hour

// CreateJoinToken implements agentv1.AgentServer.
func (s *agentService) CreateJoinToken(ctx context.Context, req *agentv1.CreateJoinTokenRequest) (*types.JoinToken, error) {
	if s.attestors[server.JoinToken{}.Type()] == nil {
		return nil, status.Error(codes.FailedPrecondition, "join tokens are not served here (attestors.join_token of writd), so nobody could use one")
	}
	life := time.Duration(req.GetTtl()) * time.Second
	if life < 0 {
		return nil, status.Error(codes.InvalidArgument, "ttl is negative")
	} else if life > maxJoinTokenLife {
		return nil, status.Errorf(codes.InvalidArgument, "ttl is %v, want at most %v: a token is a secret that lets a node join", life, maxJoinTokenLife)
	} else if life == 0 {
		life = s.cfg.JoinTokenLife
	}
	value := req.GetToken()
	if value == "" {
		value = registry.NewToken()
	} else if err := checkTokenValue(value); err != nil {
		return nil, err
	}
	var alias spiffeid.ID
	if req.GetAgentId() != nil {
		var err error
		if alias, err = s.workloadID("agent_id", req.GetAgentId()); err != nil {
			return nil, err
		}
	}
	token := registry.JoinToken{Hash: registry.HashToken(value), ExpiresAt: s.now().Add(life).UTC().Truncate(time.Second), Alias: alias, Local: callerOf(ctx).kind == local}
	err := s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		// Here nothing changes between the check and the token.
		if err := s.checkAbove(callerOf(ctx), alias); err != nil {
			return err
		}
		// A token that was made before, even if it was used, must not come back
		// to life.
		taken, err := tx.HasJoinToken(token.Hash)
		if err != nil {
			return err
		} else if taken {
			return status.Error(codes.AlreadyExists, "this token was made before; leave it out to get a new one")
		}
		if err := tx.CreateJoinToken(token); err != nil {
			return err
		}
		act := tokenAct(identity.ActAdmin, "created", token.Hash)
		act.Details = append(act.Details, [2]string{"expires_at", token.ExpiresAt.Format(time.RFC3339)})
		if !alias.IsZero() {
			act.Details = append(act.Details, [2]string{"spiffe_id", alias.String()})
		}
		return record(act)
	})
	if err != nil {
		return nil, s.internal(ctx, "create a join token", err)
	}
	return &types.JoinToken{Value: value, ExpiresAt: token.ExpiresAt.Unix()}, nil
}

func checkTokenValue(value string) error {
	if len(value) < server.MinTokenLength || len(value) > server.MaxTokenLength {
		return status.Errorf(codes.InvalidArgument, "token has %d characters, want %d to %d random ones; leave it out to get a new one",
			len(value), server.MinTokenLength, server.MaxTokenLength)
	}
	if err := spiffeid.ValidatePathSegment(value); err != nil {
		return status.Error(codes.InvalidArgument, "token: want letters, digits, '.', '_', '-' only")
	}
	return nil
}

// PostStatus implements agentv1.AgentServer.
func (s *agentService) PostStatus(ctx context.Context, req *agentv1.PostStatusRequest) (*agentv1.PostStatusResponse, error) {
	s.log.DebugContext(ctx, "agent status", "agent", callerOf(ctx).id.String(), "bundle", req.GetCurrentBundleSerial())
	return &agentv1.PostStatusResponse{}, nil
}

// RenewAgent implements agentv1.AgentServer. The SVID becomes the agent's
// current one when it is first used.
func (s *agentService) RenewAgent(ctx context.Context, req *agentv1.RenewAgentRequest) (*agentv1.RenewAgentResponse, error) {
	id := callerOf(ctx).id
	csr, err := parseCSRFor(req.GetParams().GetCsr(), id)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.waitToSign(ctx, 1); err != nil {
		return nil, err
	}
	ticket, err := s.ca.PrepareX509(ca.X509Request{ID: id, PublicKey: csr.PublicKey, Life: s.cfg.AgentSVIDLife})
	if err != nil {
		return nil, s.unsigned(ctx, err)
	}
	err = s.updateTogether(ctx, s.turnOf(ctx), func(tx *sqlstore.Tx, record recorder) error {
		a, err := tx.Agent(id)
		switch {
		case errors.Is(err, registry.ErrNotFound):
			return deny(types.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "not an attested agent")
		case err != nil:
			return err
		case a.Banned:
			return deny(types.PermissionDeniedDetails_AGENT_BANNED, "the agent is banned")
		case a.Serial != callerOf(ctx).serial:
			return deny(types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "the agent has a newer SVID than this")
		case a.CanReattest:
			return deny(types.PermissionDeniedDetails_AGENT_MUST_REATTEST, "the agent can attest again, and must")
		}
		renewed := *a
		renewed.NewSerial, renewed.NewExpiresAt = ticket.Serial(), ticket.ExpiresAt()
		if err := tx.PutAgent(renewed); err != nil {
			return err
		}
		return record(svidAct("renewed", "agent", id, ticket.ExpiresAt(), [2]string{"serial", ticket.Serial()}))
	})
	if err != nil {
		return nil, s.internal(ctx, "renew the agent", err)
	}
	svid, err := s.issueX509(ctx, ticket, id)
	if err != nil {
		return nil, s.internal(ctx, "sign the agent's SVID", err)
	}
	return &agentv1.RenewAgentResponse{Svid: svid}, nil
}

// agentID reads the ID of an agent of ours.
func (i *Issuer) agentID(pb *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := i.memberID("id", pb)
	if err != nil {
		return id, err
	}
	if !isAgentPath(id.Path()) {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "id: %q is not the ID of an agent, which begins with /spire/agent/", id)
	}
	return id, nil
}
