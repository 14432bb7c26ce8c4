package issuer

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/replicav1"
)

// replicaService is writ.identity.replica.v1.Admin.
type replicaService struct {
	*Issuer
	replicav1.UnimplementedAdminServer
}

// List implements replicav1.AdminServer.
func (s *replicaService) List(ctx context.Context, _ *replicav1.ListRequest) (*replicav1.ListResponse, error) {
	all, err := s.store.Replicas(ctx)
	if err != nil {
		return nil, s.internal(ctx, "list the replicas", err)
	}
	resp := &replicav1.ListResponse{}
	for _, r := range all {
		state := r.State
		if state == "" {
			if state = "away"; r.Live {
				state = "live"
			}
		}
		resp.Replicas = append(resp.Replicas, &replicav1.Replica{Name: r.Name, State: state, JoinedAt: r.Joined.Unix(), AliveAt: r.Alive.Unix(), Self: r.Name == s.cfg.Replica, Authorities: s.authoritiesOf(r.Name)})
	}
	return resp, nil
}

// Remove implements replicav1.AdminServer.
func (s *replicaService) Remove(ctx context.Context, req *replicav1.RemoveRequest) (*replicav1.RemoveResponse, error) {
	switch {
	case !s.store.Shared():
		return nil, status.Error(codes.FailedPrecondition, "the database is SQLite, which has one control plane: there are no replicas")
	case req.GetName() == "":
		return nil, status.Error(codes.InvalidArgument, "name is missing")
	case req.GetName() == s.cfg.Replica:
		return nil, status.Errorf(codes.FailedPrecondition, "%q is the replica that you ask: ask another to remove it", req.GetName())
	}
	err := s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		if err := tx.RemoveReplica(req.GetName()); err != nil {
			return err
		}
		return record(identity.Act{Kind: identity.ActAdmin, Verb: "removed", Object: "replica", ObjectID: req.GetName()})
	})
	if errors.Is(err, registry.ErrNotFound) {
		return nil, status.Errorf(codes.NotFound, "there is no replica %q, or it was removed before", req.GetName())
	} else if err != nil {
		return nil, s.internal(ctx, "remove the replica", err)
	}
	return &replicav1.RemoveResponse{Authorities: s.authoritiesOf(req.GetName())}, nil
}

// authoritiesOf are those of another replica.
func (s *replicaService) authoritiesOf(name string) (list []*replicav1.Authority) {
	for _, a := range s.ca.PeerAuthorities() {
		if a.Replica != name {
			continue
		}
		kind := "x509"
		if a.Kind == ca.JWT {
			kind = "jwt"
		}
		list = append(list, &replicav1.Authority{Kind: kind, Id: a.ID, ExpiresAt: a.ExpiresAt.Unix(), UpstreamKeyId: a.UpstreamKeyID})
	}
	return list
}
