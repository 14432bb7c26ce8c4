package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
)

// checkDownstream admits an issuer below this one. Administrators are not: a CA
// certificate is for a process that keeps its key, not for a person.
func (i *Issuer) checkDownstream(c Caller) error {
	if err := i.fresh(); err != nil {
		return err
	}
	if c.kind == svid && i.now().Before(c.expires) && i.index.Downstream(c.id, i.now()) != nil {
		return nil
	}
	return status.Error(codes.PermissionDenied, "only nested issuers may call this, with the X509-SVID of an entry marked downstream")
}

// NewDownstreamX509CA implements svidv1.SVIDServer: the authority of an issuer
// below this one.
func (s *svidService) NewDownstreamX509CA(ctx context.Context, req *svidv1.NewDownstreamX509CARequest) (*svidv1.NewDownstreamX509CAResponse, error) {
	caller := callerOf(ctx)
	entry := s.index.Downstream(caller.id, s.now())
	if entry == nil {
		return nil, s.checkDownstream(caller)
	}
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	life, err := lifeFromProto(req.GetPreferredTtl())
	if err != nil {
		return nil, err
	}
	if err := s.waitToSign(ctx, 1); err != nil {
		return nil, err
	}
	ticket, err := s.ca.PrepareX509CA(ca.X509CARequest{PublicKey: csr.PublicKey, Life: life})
	if errors.Is(err, ca.ErrPathLength) {
		return nil, status.Error(codes.FailedPrecondition, ca.ErrPathLength.Error()+": rotate the X.509 authority (policyctl authority prepare, activate), or have the upstream permit it")
	} else if err != nil {
		return nil, s.unsigned(ctx, err)
	}
	err = s.record(ctx, identity.Act{
		Kind: identity.ActCredential, Verb: "issued", Object: "x509-ca", ObjectID: caller.id.String(),
		Details: [][2]string{
			{"entry", entry.ID}, {"serial", ticket.Serial()}, {"key_id", ticket.KeyID()},
			{"expires_at", ticket.ExpiresAt().UTC().Format(time.RFC3339)},
		},
	})
	if err != nil {
		return nil, err
	}
	chain, err := s.ca.IssueX509(ticket)
	if err != nil {
		return nil, s.internal(ctx, "sign a downstream authority", err)
	}
	bundle, _ := s.ca.Bundle()
	resp := &svidv1.NewDownstreamX509CAResponse{CaCertChain: chain}
	for _, cert := range bundle.X509Authorities {
		resp.X509Authorities = append(resp.X509Authorities, cert.Raw)
	}
	return resp, nil
}

// PublishJWTAuthority implements bundlev1.BundleServer: the JWT authority of an
// issuer below this one.
func (s *bundleService) PublishJWTAuthority(ctx context.Context, req *bundlev1.PublishJWTAuthorityRequest) (*bundlev1.PublishJWTAuthorityResponse, error) {
	if req.GetJwtAuthority() == nil {
		return nil, status.Error(codes.InvalidArgument, "jwt_authority is missing")
	}
	key, err := signingKeyFromProto(req.GetJwtAuthority())
	if err != nil {
		return nil, err
	}
	if err := s.waitToSign(ctx, 1); err != nil {
		return nil, err
	}
	caller := callerOf(ctx)
	all, err := s.ca.PublishJWT(ctx, "downstream "+caller.id.String(), key, caller.Actor())
	if err != nil {
		return nil, s.authorityError(ctx, err)
	}
	resp := &bundlev1.PublishJWTAuthorityResponse{}
	for _, a := range all {
		resp.JwtAuthorities = append(resp.JwtAuthorities, jwtKeyToProto(a))
	}
	return resp, nil
}

// AppendBundle implements bundlev1.BundleServer: authorities that an
// administrator vouches for.
func (s *bundleService) AppendBundle(ctx context.Context, req *bundlev1.AppendBundleRequest) (*types.Bundle, error) {
	if len(req.GetX509Authorities())+len(req.GetJwtAuthorities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "x509_authorities and jwt_authorities are empty")
	}
	var roots []ca.Root
	for n, a := range req.GetX509Authorities() {
		certs, err := x509.ParseCertificates(a.GetAsn1())
		if err != nil || len(certs) == 0 {
			return nil, status.Errorf(codes.InvalidArgument, "x509_authorities[%d]: not a certificate", n)
		}
		for _, cert := range certs {
			if !cert.IsCA || len(cert.SubjectKeyId) == 0 {
				return nil, status.Errorf(codes.InvalidArgument, "x509_authorities[%d]: not a certificate of an authority (CA, with a subject key identifier)", n)
			}
			roots = append(roots, ca.Root{Cert: cert, Tainted: a.GetTainted()})
		}
	}
	var keys []ca.JWTAuthority
	for _, k := range req.GetJwtAuthorities() {
		key, err := signingKeyFromProto(k)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if err := s.ca.Append(ctx, roots, keys, callerOf(ctx).Actor()); err != nil {
		return nil, s.authorityError(ctx, err)
	}
	b, _ := s.ca.Bundle()
	return bundleToProto(b, req.GetOutputMask()), nil
}

// signingKeyFromProto reads a JWT authority. The CA checks what is in it.
func signingKeyFromProto(k *types.JWTKey) (ca.JWTAuthority, error) {
	key := ca.JWTAuthority{KeyID: k.GetKeyId(), PublicKey: k.GetPublicKey(), Tainted: k.GetTainted()}
	switch at := k.GetExpiresAt(); {
	case at < 0 || at > year9999:
		return key, status.Errorf(codes.InvalidArgument, "JWT authority %q: expires_at: want seconds since 1970, got %d", key.KeyID, at)
	case at > 0:
		key.ExpiresAt = time.Unix(at, 0).UTC()
	}
	return key, nil
}
