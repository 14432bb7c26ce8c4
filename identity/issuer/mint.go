package issuer

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/ca"
)

// MintX509SVID implements svidv1.SVIDServer: an SVID without an entry, for an
// administrator. Its ID, DNS names and subject are those of the CSR.
func (s *svidService) MintX509SVID(ctx context.Context, req *svidv1.MintX509SVIDRequest) (*svidv1.MintX509SVIDResponse, error) {
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if len(csr.URIs) != 1 {
		return nil, status.Errorf(codes.InvalidArgument, "csr has %d URIs, want one: the SPIFFE ID", len(csr.URIs))
	}
	id, err := spiffeid.FromURI(csr.URIs[0])
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "csr: %v", err)
	}
	life, leave, err := s.enterMint(ctx, id, req.GetTtl())
	if err != nil {
		return nil, err
	}
	defer leave()
	notBefore, err := s.notBefore(id, spiffeid.ID{})
	if err != nil {
		return nil, err
	}
	ticket, err := s.ca.PrepareX509(ca.X509Request{ID: id, PublicKey: csr.PublicKey, Life: life, DNSNames: csr.DNSNames, Subject: csr.Subject, NotBefore: notBefore})
	if err != nil {
		return nil, s.unsigned(ctx, err)
	}
	if err := s.record(ctx, svidAct("minted", "x509-svid", id, ticket.ExpiresAt(), [2]string{"serial", ticket.Serial()})); err != nil {
		return nil, err
	}
	svid, err := s.issueX509(ctx, ticket, id)
	if err != nil {
		return nil, s.internal(ctx, "sign an X509-SVID", err)
	}
	return &svidv1.MintX509SVIDResponse{Svid: svid}, nil
}

// MintJWTSVID implements svidv1.SVIDServer.
func (s *svidService) MintJWTSVID(ctx context.Context, req *svidv1.MintJWTSVIDRequest) (*svidv1.MintJWTSVIDResponse, error) {
	id, err := s.workloadID("id", req.GetId())
	if err != nil {
		return nil, err
	}
	life, leave, err := s.enterMint(ctx, id, req.GetTtl())
	if err != nil {
		return nil, err
	}
	defer leave()
	svid, err := s.newJWT(ctx, "minted", ca.JWTRequest{ID: id, Audience: req.GetAudience(), Life: life})
	if err != nil {
		return nil, err
	}
	return &svidv1.MintJWTSVIDResponse{Svid: svid}, nil
}

// enterMint checks what an SVID is to be minted for, and returns when it is its turn.
func (s *svidService) enterMint(ctx context.Context, id spiffeid.ID, ttl int32) (life time.Duration, leave func(), err error) {
	if err := s.checkMint(ctx, id); err != nil {
		return 0, nil, err
	}
	if life, err = lifeFromProto(ttl); err != nil {
		return 0, nil, err
	}
	leave, err = s.enterSigningAs(ctx, turn{admit.Bulk, 0}, 1)
	return life, leave, err
}

// checkMint keeps names that speak for the control plane from being minted.
func (s *svidService) checkMint(ctx context.Context, id spiffeid.ID) error {
	err := func() error {
		switch {
		case !id.MemberOf(s.cfg.TrustDomain):
			return fmt.Errorf("%q is not in trust domain %q", id, s.cfg.TrustDomain.Name())
		case isReserved(id):
			return fmt.Errorf("%q: names under /spire/ belong to issuers and agents", id)
		}
		return nil
	}()
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return s.checkReserved(callerOf(ctx), id)
}

// MintWITSVID implements svidv1.SVIDServer.
func (s *svidService) MintWITSVID(context.Context, *svidv1.MintWITSVIDRequest) (*svidv1.MintWITSVIDResponse, error) {
	return nil, status.Error(codes.Unimplemented, "WIT-SVIDs are not issued")
}

// BatchNewWITSVID implements svidv1.SVIDServer.
func (s *svidService) BatchNewWITSVID(context.Context, *svidv1.BatchNewWITSVIDRequest) (*svidv1.BatchNewWITSVIDResponse, error) {
	return nil, status.Error(codes.Unimplemented, "WIT-SVIDs are not issued")
}
