package issuer

import (
	"context"
	"errors"
	"strings"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/ca"
)

// localAuthorityService is spire.api.server.localauthority.v1.LocalAuthority:
// the authorities step by step, by hand.
//
// SPIRE has two slots, so that there is one old authority and only until the
// next is prepared. Here all of them stay at hand; the replies show the latest.
type localAuthorityService struct {
	*Issuer
	localauthorityv1.UnimplementedLocalAuthorityServer
}

// GetX509AuthorityState implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) GetX509AuthorityState(context.Context, *localauthorityv1.GetX509AuthorityStateRequest) (*localauthorityv1.GetX509AuthorityStateResponse, error) {
	active, prepared, old, err := s.states(ca.X509)
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.GetX509AuthorityStateResponse{Active: active, Prepared: prepared, Old: old}, nil
}

// GetJWTAuthorityState implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) GetJWTAuthorityState(context.Context, *localauthorityv1.GetJWTAuthorityStateRequest) (*localauthorityv1.GetJWTAuthorityStateResponse, error) {
	active, prepared, old, err := s.states(ca.JWT)
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.GetJWTAuthorityStateResponse{Active: active, Prepared: prepared, Old: old}, nil
}

func (s *localAuthorityService) states(kind ca.Kind) (active, prepared, old *localauthorityv1.AuthorityState, err error) {
	for _, a := range s.ca.Authorities(kind) {
		switch {
		case a.State == ca.Active:
			active = authorityToProto(a)
		case a.State == ca.Prepared:
			prepared = authorityToProto(a)
		case old == nil: // the latest comes first
			old = authorityToProto(a)
		}
	}
	if active == nil {
		return nil, nil, nil, status.Error(codes.Unavailable, "no authority is active yet")
	}
	return active, prepared, old, nil
}

func authorityToProto(a ca.AuthorityState) *localauthorityv1.AuthorityState {
	state := &localauthorityv1.AuthorityState{AuthorityId: a.ID, UpstreamAuthoritySubjectKeyId: a.UpstreamKeyID}
	if !a.ExpiresAt.IsZero() {
		state.ExpiresAt = a.ExpiresAt.Unix()
	}
	return state
}

// PrepareX509Authority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) PrepareX509Authority(ctx context.Context, _ *localauthorityv1.PrepareX509AuthorityRequest) (*localauthorityv1.PrepareX509AuthorityResponse, error) {
	a, err := s.prepare(ctx, ca.X509)
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.PrepareX509AuthorityResponse{PreparedAuthority: a}, nil
}

// PrepareJWTAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) PrepareJWTAuthority(ctx context.Context, _ *localauthorityv1.PrepareJWTAuthorityRequest) (*localauthorityv1.PrepareJWTAuthorityResponse, error) {
	a, err := s.prepare(ctx, ca.JWT)
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.PrepareJWTAuthorityResponse{PreparedAuthority: a}, nil
}

func (s *localAuthorityService) prepare(ctx context.Context, kind ca.Kind) (*localauthorityv1.AuthorityState, error) {
	a, err := s.ca.PrepareAuthority(ctx, kind, callerOf(ctx).Actor())
	if err != nil {
		return nil, s.authorityError(ctx, err)
	}
	return authorityToProto(a), nil
}

// ActivateX509Authority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) ActivateX509Authority(ctx context.Context, req *localauthorityv1.ActivateX509AuthorityRequest) (*localauthorityv1.ActivateX509AuthorityResponse, error) {
	a, err := s.step(ctx, s.ca.ActivateAuthority, ca.X509, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.ActivateX509AuthorityResponse{ActivatedAuthority: a}, nil
}

// ActivateJWTAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) ActivateJWTAuthority(ctx context.Context, req *localauthorityv1.ActivateJWTAuthorityRequest) (*localauthorityv1.ActivateJWTAuthorityResponse, error) {
	a, err := s.step(ctx, s.ca.ActivateAuthority, ca.JWT, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.ActivateJWTAuthorityResponse{ActivatedAuthority: a}, nil
}

// TaintX509Authority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) TaintX509Authority(ctx context.Context, req *localauthorityv1.TaintX509AuthorityRequest) (*localauthorityv1.TaintX509AuthorityResponse, error) {
	if err := s.isRoot("tainted", req.GetAuthorityId()); err != nil {
		return nil, err
	}
	a, err := s.step(ctx, either(s.ca.TaintAuthority, s.ca.TaintPeer), ca.X509, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.TaintX509AuthorityResponse{TaintedAuthority: a}, nil
}

// TaintJWTAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) TaintJWTAuthority(ctx context.Context, req *localauthorityv1.TaintJWTAuthorityRequest) (*localauthorityv1.TaintJWTAuthorityResponse, error) {
	a, err := s.step(ctx, either(s.ca.TaintAuthority, s.ca.TaintPeer, foreign(s.ca.TaintForeignJWT)), ca.JWT, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.TaintJWTAuthorityResponse{TaintedAuthority: a}, nil
}

// RevokeX509Authority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) RevokeX509Authority(ctx context.Context, req *localauthorityv1.RevokeX509AuthorityRequest) (*localauthorityv1.RevokeX509AuthorityResponse, error) {
	if err := s.isRoot("revoked", req.GetAuthorityId()); err != nil {
		return nil, err
	}
	a, err := s.step(ctx, either(s.ca.RevokeAuthority, s.ca.RevokePeer), ca.X509, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.RevokeX509AuthorityResponse{RevokedAuthority: a}, nil
}

// RevokeJWTAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) RevokeJWTAuthority(ctx context.Context, req *localauthorityv1.RevokeJWTAuthorityRequest) (*localauthorityv1.RevokeJWTAuthorityResponse, error) {
	a, err := s.step(ctx, either(s.ca.RevokeAuthority, s.ca.RevokePeer, foreign(s.ca.RevokeForeignJWT)), ca.JWT, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.RevokeJWTAuthorityResponse{RevokedAuthority: a}, nil
}

// either does what can be done to an authority of ours, or else to that of another
// replica or of an issuer downstream.
func either(steps ...authorityStep) authorityStep {
	return func(ctx context.Context, kind ca.Kind, id, actor string) (a ca.AuthorityState, err error) {
		for _, step := range steps {
			if a, err = step(ctx, kind, id, actor); !errors.Is(err, ca.ErrNoAuthority) {
				return a, err
			}
		}
		return a, err
	}
}

func foreign(do func(ctx context.Context, id, actor string) error) authorityStep {
	return func(ctx context.Context, _ ca.Kind, id, actor string) (ca.AuthorityState, error) {
		return ca.AuthorityState{ID: id, State: ca.Tainted}, do(ctx, id, actor)
	}
}

type authorityStep func(ctx context.Context, kind ca.Kind, id, actor string) (ca.AuthorityState, error)

// TaintX509UpstreamAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) TaintX509UpstreamAuthority(ctx context.Context, req *localauthorityv1.TaintX509UpstreamAuthorityRequest) (*localauthorityv1.TaintX509UpstreamAuthorityResponse, error) {
	id, err := s.upstreamStep(ctx, s.ca.TaintUpstream, req.GetSubjectKeyId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.TaintX509UpstreamAuthorityResponse{UpstreamAuthoritySubjectKeyId: id}, nil
}

// RevokeX509UpstreamAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) RevokeX509UpstreamAuthority(ctx context.Context, req *localauthorityv1.RevokeX509UpstreamAuthorityRequest) (*localauthorityv1.RevokeX509UpstreamAuthorityResponse, error) {
	id, err := s.upstreamStep(ctx, s.ca.RevokeUpstream, req.GetSubjectKeyId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.RevokeX509UpstreamAuthorityResponse{UpstreamAuthoritySubjectKeyId: id}, nil
}

// GetWITAuthorityState implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) GetWITAuthorityState(context.Context, *localauthorityv1.GetWITAuthorityStateRequest) (*localauthorityv1.GetWITAuthorityStateResponse, error) {
	return nil, noWIT()
}

// PrepareWITAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) PrepareWITAuthority(context.Context, *localauthorityv1.PrepareWITAuthorityRequest) (*localauthorityv1.PrepareWITAuthorityResponse, error) {
	return nil, noWIT()
}

// ActivateWITAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) ActivateWITAuthority(context.Context, *localauthorityv1.ActivateWITAuthorityRequest) (*localauthorityv1.ActivateWITAuthorityResponse, error) {
	return nil, noWIT()
}

// TaintWITAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) TaintWITAuthority(context.Context, *localauthorityv1.TaintWITAuthorityRequest) (*localauthorityv1.TaintWITAuthorityResponse, error) {
	return nil, noWIT()
}

// RevokeWITAuthority implements localauthorityv1.LocalAuthorityServer.
func (s *localAuthorityService) RevokeWITAuthority(context.Context, *localauthorityv1.RevokeWITAuthorityRequest) (*localauthorityv1.RevokeWITAuthorityResponse, error) {
	return nil, noWIT()
}

func noWIT() error { return status.Error(codes.Unimplemented, "WIT-SVIDs are not issued") }

// step does to one authority what is asked for.
func (s *localAuthorityService) step(ctx context.Context, do authorityStep, kind ca.Kind, id string) (*localauthorityv1.AuthorityState, error) {
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "authority_id is missing")
	}
	if kind == ca.X509 {
		id = strings.ToLower(id)
	}
	a, err := do(ctx, kind, id, callerOf(ctx).Actor())
	if err != nil {
		return nil, s.authorityError(ctx, err)
	}
	return authorityToProto(a), nil
}

func (s *localAuthorityService) upstreamStep(ctx context.Context, do func(ctx context.Context, id, actor string) error, id string) (string, error) {
	switch {
	case !s.ca.HasUpstream():
		return "", status.Error(codes.FailedPrecondition, "there is no upstream authority: the X.509 authorities here sign themselves")
	case id == "":
		return "", status.Error(codes.InvalidArgument, "subject_key_id is missing")
	}
	id = strings.ToLower(id)
	if err := do(ctx, id, callerOf(ctx).Actor()); err != nil {
		return "", s.authorityError(ctx, err)
	}
	return id, nil
}

// isRoot refuses what makes sense for authorities that are in the bundle.
func (s *localAuthorityService) isRoot(done, id string) error {
	if s.ca.HasUpstream() && !s.ca.IsPeer(ca.X509, strings.ToLower(id)) {
		return status.Errorf(codes.FailedPrecondition, "an upstream signs the X.509 authorities here, so none of them is in the bundle to be %s: taint or revoke the upstream's", done)
	}
	return nil
}

// authorityError is what the wire sees of an error of the CA.
func (i *Issuer) authorityError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, ca.ErrNoAuthority), errors.Is(err, ca.ErrWrongState), errors.Is(err, ca.ErrBadAuthority):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, ca.ErrUpstream):
		i.log.ErrorContext(ctx, "the upstream authority failed", "error", err)
		return status.Error(codes.Unavailable, "the upstream authority does not do its part now: see the log")
	}
	return i.internal(ctx, "change the authorities", err)
}
