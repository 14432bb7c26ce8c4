package workload

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// maxAudiences is how many audiences one JWT-SVID may have.
const maxAudiences = 64

// FetchJWTSVID implements the Workload API.
func (s *Server) FetchJWTSVID(ctx context.Context, req *workloadpb.JWTSVIDRequest) (*workloadpb.JWTSVIDResponse, error) {
	switch {
	case len(req.Audience) == 0 || slices.Contains(req.Audience, ""):
		return nil, status.Error(codes.InvalidArgument, "audience must be given and not be empty")
	case len(req.Audience) > maxAudiences:
		return nil, status.Errorf(codes.InvalidArgument, "more than %d audiences", maxAudiences)
	}
	var wanted spiffeid.ID
	if req.SpiffeId != "" {
		var err error
		if wanted, err = spiffeid.FromString(req.SpiffeId); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
		}
	}
	p, selectors, err := s.attest(ctx)
	if err != nil {
		return nil, err
	}
	g, _, err := s.grant(ctx, p, selectors, s.c.Source.Lookup)
	if err != nil {
		return nil, err
	}
	resp := &workloadpb.JWTSVIDResponse{}
	for _, id := range g.Identities {
		if !wanted.IsZero() && id.ID != wanted {
			continue
		}
		token, err := s.c.Source.JWTSVID(ctx, p.UID, id, req.Audience)
		if errors.Is(err, ErrTooMany) {
			s.c.Log.WarnContext(ctx, "a user asks for too many JWT-SVIDs", "pid", p.PID, "uid", p.UID)
			return nil, status.Errorf(codes.ResourceExhausted, "user %d asks for too many new JWT-SVIDs, try again later", p.UID)
		}
		if err != nil {
			s.c.Log.ErrorContext(ctx, "no JWT-SVID for a workload", "spiffe_id", id.ID.String(), "error", err)
			return nil, status.Errorf(codes.Unavailable, "no JWT-SVID for %s at the moment: the issuer has not signed one", id.ID)
		}
		resp.Svids = append(resp.Svids, &workloadpb.JWTSVID{SpiffeId: id.ID.String(), Svid: token, Hint: id.Hint})
	}
	if len(resp.Svids) == 0 {
		return nil, status.Errorf(codes.PermissionDenied, "%s is not an identity of the caller", wanted)
	}
	if err := p.Alive(); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return resp, nil
}

// FetchJWTBundles implements the Workload API.
func (s *Server) FetchJWTBundles(_ *workloadpb.JWTBundlesRequest, stream grpc.ServerStreamingServer[workloadpb.JWTBundlesResponse]) error {
	return follow(s, stream, s.keyless, func(g Grant) (*workloadpb.JWTBundlesResponse, error) {
		resp := &workloadpb.JWTBundlesResponse{Bundles: map[string][]byte{g.Bundle.trustDomain.IDString(): g.Bundle.jwks}}
		for _, b := range g.Federated {
			if !b.jwt.Empty() {
				resp.Bundles[b.trustDomain.IDString()] = b.jwks
			}
		}
		return resp, nil
	})
}

// ValidateJWTSVID implements the Workload API.
func (s *Server) ValidateJWTSVID(ctx context.Context, req *workloadpb.ValidateJWTSVIDRequest) (*workloadpb.ValidateJWTSVIDResponse, error) {
	switch {
	case req.Audience == "":
		return nil, status.Error(codes.InvalidArgument, "audience must be given")
	case req.Svid == "":
		return nil, status.Error(codes.InvalidArgument, "svid must be given")
	}
	p, selectors, err := s.attest(ctx)
	if err != nil {
		return nil, err
	}
	g, _, err := s.grant(ctx, p, selectors, s.c.Source.Lookup)
	if err != nil {
		return nil, err
	}
	bundles := jwtbundle.NewSet(g.Bundle.jwt)
	for _, b := range g.Federated {
		bundles.Add(b.jwt)
	}
	svid, err := jwtsvid.ParseAndValidate(req.Svid, bundles, []string{req.Audience})
	if errors.Is(err, jwt.ErrIssuedInTheFuture) {
		// More than a minute: the library grants as much.
		return nil, status.Errorf(codes.InvalidArgument, "not a valid JWT-SVID for this audience: it was issued in the future of this machine's clock, which says %s: check it, and that of its issuer", time.Now().UTC().Format(time.RFC3339))
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "not a valid JWT-SVID for this audience: %v", err)
	}
	// The library grants a minute beyond exp. That would be long after the end
	// of tokens that live for seconds.
	if !time.Now().Before(svid.Expiry) {
		return nil, status.Error(codes.InvalidArgument, "not a valid JWT-SVID for this audience: it has expired")
	}
	if s.c.RevokedJWT != nil {
		if err := s.c.RevokedJWT(svid); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "not a valid JWT-SVID: %v", err)
		}
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "claims: %v", err)
	}
	return &workloadpb.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}
