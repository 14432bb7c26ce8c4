package issuer

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// trustDomainService is spire.api.server.trustdomain.v1.TrustDomain.
type trustDomainService struct {
	*Issuer
	trustdomainv1.UnimplementedTrustDomainServer
}

// ListFederationRelationships implements trustdomainv1.TrustDomainServer.
func (s *trustDomainService) ListFederationRelationships(_ context.Context, req *trustdomainv1.ListFederationRelationshipsRequest) (*trustdomainv1.ListFederationRelationshipsResponse, error) {
	p, err := newPage[*types.FederationRelationship](req.GetPageSize())
	if err != nil {
		return nil, err
	}
	all, _ := s.index.Relationships()
	for _, r := range all {
		name := r.TrustDomain.Name()
		if name > req.GetPageToken() && !p.add(name, relationshipToProto(r, s.index.FederatedBundle(r.TrustDomain), req.GetOutputMask())) {
			break
		}
	}
	return &trustdomainv1.ListFederationRelationshipsResponse{FederationRelationships: p.items, NextPageToken: p.next}, nil
}

// GetFederationRelationship implements trustdomainv1.TrustDomainServer.
func (s *trustDomainService) GetFederationRelationship(_ context.Context, req *trustdomainv1.GetFederationRelationshipRequest) (*types.FederationRelationship, error) {
	td, err := spiffeid.TrustDomainFromString(req.GetTrustDomain())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "trust_domain: %v", err)
	}
	r := s.index.Relationship(td)
	if r == nil {
		return nil, status.Error(codes.NotFound, "federation relationship does not exist")
	}
	return relationshipToProto(r, s.index.FederatedBundle(td), req.GetOutputMask()), nil
}

// BatchCreateFederationRelationship implements trustdomainv1.TrustDomainServer.
// The batch is one transaction; an item that is refused stops no other.
func (s *trustDomainService) BatchCreateFederationRelationship(ctx context.Context, req *trustdomainv1.BatchCreateFederationRelationshipRequest) (*trustdomainv1.BatchCreateFederationRelationshipResponse, error) {
	resp := &trustdomainv1.BatchCreateFederationRelationshipResponse{}
	err := s.putRelationships(ctx, req.GetFederationRelationships(), nil, req.GetOutputMask(), mayCreate, func(st *types.Status, r *types.FederationRelationship) {
		resp.Results = append(resp.Results, &trustdomainv1.BatchCreateFederationRelationshipResponse_Result{Status: st, FederationRelationship: r})
	})
	return resp, err
}

// BatchUpdateFederationRelationship implements trustdomainv1.TrustDomainServer.
// A nil input mask means all fields.
func (s *trustDomainService) BatchUpdateFederationRelationship(ctx context.Context, req *trustdomainv1.BatchUpdateFederationRelationshipRequest) (*trustdomainv1.BatchUpdateFederationRelationshipResponse, error) {
	resp := &trustdomainv1.BatchUpdateFederationRelationshipResponse{}
	err := s.putRelationships(ctx, req.GetFederationRelationships(), req.GetInputMask(), req.GetOutputMask(), mayUpdate, func(st *types.Status, r *types.FederationRelationship) {
		resp.Results = append(resp.Results, &trustdomainv1.BatchUpdateFederationRelationshipResponse_Result{Status: st, FederationRelationship: r})
	})
	return resp, err
}

// putRelationships writes the relationships of a batch. add is told what became of each.
func (s *trustDomainService) putRelationships(ctx context.Context, items []*types.FederationRelationship, in, out *types.FederationRelationshipMask, allowed may, add func(*types.Status, *types.FederationRelationship)) error {
	return eachItem(ctx, s.Issuer, "write federation relationships", items, func(tx *sqlstore.Tx, record recorder, pb *types.FederationRelationship) error {
		r, b, code, err := s.putRelationship(tx, record, pb, in, allowed)
		if code == codes.Internal {
			return err
		}
		var written *types.FederationRelationship
		if r != nil {
			written = relationshipToProto(r, b, out)
		}
		add(itemStatus(code, err), written)
		return nil
	})
}

// putRelationship writes one relationship of a batch, and its bundle where one
// is given. With codes.Internal the whole batch fails.
func (i *Issuer) putRelationship(tx *sqlstore.Tx, record recorder, pb *types.FederationRelationship, mask *types.FederationRelationshipMask, allowed may) (*registry.Relationship, *registry.FederatedBundle, codes.Code, error) {
	fail := func(code codes.Code, err error) (*registry.Relationship, *registry.FederatedBundle, codes.Code, error) {
		return nil, nil, code, err
	}
	td, err := i.foreign(pb.GetTrustDomain())
	if err != nil {
		return fail(codes.InvalidArgument, err)
	}
	old, err := tx.Relationship(td)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		if allowed&mayCreate == 0 {
			return fail(codes.NotFound, errors.New("federation relationship does not exist"))
		}
	case err != nil:
		return fail(codes.Internal, err)
	case allowed&mayUpdate == 0:
		return fail(codes.AlreadyExists, fmt.Errorf("there is a federation relationship with %s already", td.Name()))
	}
	r, err := relationshipFromProto(td, pb, old, mask)
	if err != nil {
		return fail(codes.InvalidArgument, err)
	}
	if pb.GetTrustDomainBundle() != nil && (mask == nil || mask.GetTrustDomainBundle()) {
		if name := pb.GetTrustDomainBundle().GetTrustDomain(); name != td.Name() {
			return fail(codes.InvalidArgument, fmt.Errorf("trust_domain_bundle: it is of %q, and the relationship is with %q", name, td.Name()))
		}
		if _, code, err := i.putBundle(tx, record, pb.GetTrustDomainBundle(), nil, mayCreate|mayUpdate); err != nil {
			return fail(code, fmt.Errorf("trust_domain_bundle: %w", err))
		}
	}
	if old == nil || *old != *r {
		if err := tx.PutRelationship(*r); err != nil {
			return fail(codes.Internal, err)
		}
		verb := "created"
		if old != nil {
			verb = "updated"
		}
		if err := record(relationshipAct(verb, r)); err != nil {
			return fail(codes.Internal, err)
		}
	}
	b, err := tx.FederatedBundle(td)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return fail(codes.Internal, err)
	}
	return r, b, codes.OK, nil
}

// BatchDeleteFederationRelationship implements trustdomainv1.TrustDomainServer.
// The bundles stay, and are not refreshed any more.
func (s *trustDomainService) BatchDeleteFederationRelationship(ctx context.Context, req *trustdomainv1.BatchDeleteFederationRelationshipRequest) (*trustdomainv1.BatchDeleteFederationRelationshipResponse, error) {
	resp := &trustdomainv1.BatchDeleteFederationRelationshipResponse{}
	err := eachItem(ctx, s.Issuer, "delete federation relationships", req.GetTrustDomains(), func(tx *sqlstore.Tx, record recorder, name string) error {
		code, err := s.deleteRelationship(tx, record, name)
		if code == codes.Internal {
			return err
		}
		resp.Results = append(resp.Results, &trustdomainv1.BatchDeleteFederationRelationshipResponse_Result{Status: itemStatus(code, err), TrustDomain: name})
		return nil
	})
	return resp, err
}

func (s *trustDomainService) deleteRelationship(tx *sqlstore.Tx, record recorder, name string) (codes.Code, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return codes.InvalidArgument, fmt.Errorf("trust_domain: %w", err)
	}
	old, err := tx.Relationship(td)
	if errors.Is(err, registry.ErrNotFound) {
		return codes.NotFound, errors.New("federation relationship does not exist")
	} else if err != nil {
		return codes.Internal, err
	}
	if err := tx.DeleteRelationship(td); err != nil {
		return codes.Internal, err
	}
	if err := record(relationshipAct("deleted", old)); err != nil {
		return codes.Internal, err
	}
	return codes.OK, nil
}

// RefreshBundle implements trustdomainv1.TrustDomainServer. It returns when the
// bundle is fetched and kept.
func (s *trustDomainService) RefreshBundle(ctx context.Context, req *trustdomainv1.RefreshBundleRequest) (*emptypb.Empty, error) {
	td, err := spiffeid.TrustDomainFromString(req.GetTrustDomain())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "trust_domain: %v", err)
	}
	err = s.refresher.Refresh(ctx, td)
	var why *federation.Error
	switch {
	case err == nil:
		return &emptypb.Empty{}, nil
	case !errors.As(err, &why):
		return nil, s.internal(ctx, "refresh the bundle", err)
	case why.Cause == federation.NotConfigured:
		return nil, status.Error(codes.NotFound, why.Reason)
	case why.Cause == federation.NotKept:
		return nil, status.Error(codes.Internal, "the bundle was fetched and could not be kept")
	}
	return nil, status.Errorf(codes.Internal, "failed to refresh the bundle of %s: %s", td.Name(), why.Reason)
}

func relationshipToProto(r *registry.Relationship, b *registry.FederatedBundle, mask *types.FederationRelationshipMask) *types.FederationRelationship {
	out := &types.FederationRelationship{TrustDomain: r.TrustDomain.Name()}
	all := mask == nil
	set(all || mask.GetBundleEndpointUrl(), &out.BundleEndpointUrl, r.EndpointURL)
	if all || mask.GetBundleEndpointProfile() {
		if r.Profile == registry.HTTPSSPIFFE {
			out.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: r.EndpointID.String()}}
		} else {
			out.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
		}
	}
	if b != nil && (all || mask.GetTrustDomainBundle()) {
		out.TrustDomainBundle = federatedToProto(b, nil)
	}
	return out
}

// relationshipFromProto checks a relationship. With a mask, what it does not
// name stays as it was. The error names the field.
func relationshipFromProto(td spiffeid.TrustDomain, pb *types.FederationRelationship, old *registry.Relationship, mask *types.FederationRelationshipMask) (*registry.Relationship, error) {
	r := &registry.Relationship{TrustDomain: td}
	if mask != nil && old != nil {
		*r = *old
	}
	set(mask == nil || mask.GetBundleEndpointUrl(), &r.EndpointURL, pb.GetBundleEndpointUrl())
	if mask == nil || mask.GetBundleEndpointProfile() {
		r.Profile, r.EndpointID = "", spiffeid.ID{}
		switch p := pb.GetBundleEndpointProfile().(type) {
		case *types.FederationRelationship_HttpsWeb:
			r.Profile = registry.HTTPSWeb
		case *types.FederationRelationship_HttpsSpiffe:
			id, err := spiffeid.FromString(p.HttpsSpiffe.GetEndpointSpiffeId())
			if err != nil {
				return nil, fmt.Errorf("endpoint_spiffe_id: %w", err)
			}
			r.Profile, r.EndpointID = registry.HTTPSSPIFFE, id
		}
	}
	return r, federation.CheckRelationship(r)
}

func relationshipAct(verb string, r *registry.Relationship) identity.Act {
	act := identity.Act{
		Kind: identity.ActAdmin, Verb: verb, Object: "federation-relationship", ObjectID: r.TrustDomain.IDString(),
		Details: [][2]string{{"endpoint_url", r.EndpointURL}, {"profile", r.Profile}},
	}
	if !r.EndpointID.IsZero() {
		act.Details = append(act.Details, [2]string{"endpoint_spiffe_id", r.EndpointID.String()})
	}
	return act
}
