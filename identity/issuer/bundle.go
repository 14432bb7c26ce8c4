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
			out.X509Authorities = append(out.X509Authorities, &types.X509Certificate{Asn1: cert.Raw})
		}
	}
	if all || mask.GetJwtAuthorities() {
		for _, a := range b.JWTAuthorities {
			out.JwtAuthorities = append(out.JwtAuthorities, &types.JWTKey{PublicKey: a.PublicKey, KeyId: a.KeyID, ExpiresAt: a.ExpiresAt.Unix()})
		}
	}
	set(all || mask.GetRefreshHint(), &out.RefreshHint, int64(b.RefreshHint.Seconds()))
	set(all || mask.GetSequenceNumber(), &out.SequenceNumber, b.Sequence)
	return out
}

// GetFederatedBundle implements bundlev1.BundleServer. There are none, and an
// agent whose entries name one must be able to go on without.
func (s *bundleService) GetFederatedBundle(context.Context, *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	return nil, status.Error(codes.NotFound, "bundle not found: this issuer holds no bundles of other trust domains")
}

func noFederation() error {
	return status.Error(codes.Unimplemented, "this issuer holds no bundles of other trust domains")
}

// CountBundles implements bundlev1.BundleServer.
func (s *bundleService) CountBundles(context.Context, *bundlev1.CountBundlesRequest) (*bundlev1.CountBundlesResponse, error) {
	return nil, noFederation()
}

// ListFederatedBundles implements bundlev1.BundleServer.
func (s *bundleService) ListFederatedBundles(context.Context, *bundlev1.ListFederatedBundlesRequest) (*bundlev1.ListFederatedBundlesResponse, error) {
	return nil, noFederation()
}

// BatchCreateFederatedBundle implements bundlev1.BundleServer.
func (s *bundleService) BatchCreateFederatedBundle(context.Context, *bundlev1.BatchCreateFederatedBundleRequest) (*bundlev1.BatchCreateFederatedBundleResponse, error) {
	return nil, noFederation()
}

// BatchUpdateFederatedBundle implements bundlev1.BundleServer.
func (s *bundleService) BatchUpdateFederatedBundle(context.Context, *bundlev1.BatchUpdateFederatedBundleRequest) (*bundlev1.BatchUpdateFederatedBundleResponse, error) {
	return nil, noFederation()
}

// BatchSetFederatedBundle implements bundlev1.BundleServer.
func (s *bundleService) BatchSetFederatedBundle(context.Context, *bundlev1.BatchSetFederatedBundleRequest) (*bundlev1.BatchSetFederatedBundleResponse, error) {
	return nil, noFederation()
}

// BatchDeleteFederatedBundle implements bundlev1.BundleServer.
func (s *bundleService) BatchDeleteFederatedBundle(context.Context, *bundlev1.BatchDeleteFederatedBundleRequest) (*bundlev1.BatchDeleteFederatedBundleResponse, error) {
	return nil, noFederation()
}

// AppendBundle implements bundlev1.BundleServer.
func (s *bundleService) AppendBundle(context.Context, *bundlev1.AppendBundleRequest) (*types.Bundle, error) {
	return nil, status.Error(codes.Unimplemented, "the bundle holds this issuer's own authorities only")
}

// PublishJWTAuthority implements bundlev1.BundleServer.
func (s *bundleService) PublishJWTAuthority(context.Context, *bundlev1.PublishJWTAuthorityRequest) (*bundlev1.PublishJWTAuthorityResponse, error) {
	return nil, status.Error(codes.Unimplemented, "nested servers are not served: the bundle holds this issuer's own authorities only")
}

// PublishWITAuthority implements bundlev1.BundleServer.
func (s *bundleService) PublishWITAuthority(context.Context, *bundlev1.PublishWITAuthorityRequest) (*bundlev1.PublishWITAuthorityResponse, error) {
	return nil, status.Error(codes.Unimplemented, "WIT-SVIDs are not issued")
}
