package issuer

import (
	"context"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/ca"
)

// bundleService is spire.api.server.bundle.v1.Bundle.
type bundleService struct {
	*Issuer
	bundlev1.UnimplementedBundleServer
}

// GetBundle implements bundlev1.BundleServer.
func (s *bundleService) GetBundle(_ context.Context, req *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	b, _ := s.ca.Bundle()
	return bundleToProto(b, req.GetOutputMask()), nil
}

func bundleToProto(b *ca.Bundle, mask *types.BundleMask) *types.Bundle {
	out := &types.Bundle{TrustDomain: b.TrustDomain.Name()}
	all := mask == nil
	if all || mask.GetX509Authorities() {
		for _, cert := range b.X509Authorities {
			out.X509Authorities = append(out.X509Authorities, &types.X509Certificate{Asn1: cert.Raw, Tainted: b.IsTainted(cert)})
		}
	}
	if all || mask.GetJwtAuthorities() {
		for _, a := range b.JWTAuthorities {
			out.JwtAuthorities = append(out.JwtAuthorities, jwtKeyToProto(a))
		}
	}
	set(all || mask.GetRefreshHint(), &out.RefreshHint, int64(b.RefreshHint.Seconds()))
	set(all || mask.GetSequenceNumber(), &out.SequenceNumber, b.Sequence)
	return out
}

func jwtKeyToProto(a ca.JWTAuthority) *types.JWTKey {
	key := &types.JWTKey{PublicKey: a.PublicKey, KeyId: a.KeyID, Tainted: a.Tainted}
	if !a.ExpiresAt.IsZero() {
		key.ExpiresAt = a.ExpiresAt.Unix()
	}
	return key
}

// PublishWITAuthority implements bundlev1.BundleServer.
func (s *bundleService) PublishWITAuthority(context.Context, *bundlev1.PublishWITAuthorityRequest) (*bundlev1.PublishWITAuthorityResponse, error) {
	return nil, status.Error(codes.Unimplemented, "WIT-SVIDs are not issued")
}
