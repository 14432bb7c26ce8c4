package issuer

import (
	"context"
	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// debugService is spire.api.server.debug.v1.Debug.
type debugService struct {
	*Issuer
	debugv1.UnimplementedDebugServer
}

// GetInfo implements debugv1.DebugServer.
func (s *debugService) GetInfo(ctx context.Context, _ *debugv1.GetInfoRequest) (*debugv1.GetInfoResponse, error) {
	own, _, err := s.self.current()
	if err != nil {
		return nil, s.internal(ctx, "issue the own SVID", err)
	}
	bundle, _ := s.ca.Bundle()
	_, chains, err := x509svid.Verify(own.Certificates, bundle, x509svid.WithTime(s.now()))
	if err != nil {
		return nil, s.internal(ctx, "verify the own SVID against the bundle", err)
	}
	info := &debugv1.GetInfoResponse{
		Uptime:       int32(s.now().Sub(s.started).Seconds()),
		AgentsCount:  int32(len(s.index.Agents())),
		EntriesCount: int32(len(s.index.Entries())),
		// SPIRE counts the own bundle too.
		FederatedBundlesCount: int32(1 + len(s.index.FederatedBundles())),
	}
	for _, cert := range chains[0] {
		info.SvidChain = append(info.SvidChain, debugCert(cert))
	}
	return info, nil
}

// debugCert has no ID for an authority that names none.
func debugCert(cert *x509.Certificate) *debugv1.GetInfoResponse_Cert {
	c := &debugv1.GetInfoResponse_Cert{ExpiresAt: cert.NotAfter.Unix(), Subject: cert.Subject.String()}
	if id, err := x509svid.IDFromCert(cert); err == nil {
		c.Id = &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
	}
	return c
}
