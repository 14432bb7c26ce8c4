package issuer

import (
	"context"
	"errors"
	"slices"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/tracing"
)

// follow keeps the index up with other replicas, until ctx ends.
func (i *Issuer) follow(ctx context.Context) {
	if err := i.store.Follow(ctx, i.log); err != nil && ctx.Err() == nil {
		i.log.ErrorContext(ctx, "not following the registry", "error", err)
	}
}

// fresh refuses to answer by a registry that others may have changed without
// this replica knowing: what is banned or deleted there would live on here.
func (i *Issuer) fresh() error {
	err := i.store.Fresh()
	var foreign *sqlstore.ForeignError
	switch {
	case errors.As(err, &foreign):
		return status.Error(codes.Unavailable, "the database of this control plane is not as it left it, so that nothing of it is served: its alarms say more")
	case err != nil:
		return status.Error(codes.Unavailable, "this replica is cut off from its database: ask another, or again later")
	}
	return nil
}

// refresh looks into the database, before something is refused that another
// replica may have allowed a moment ago.
func (i *Issuer) refresh(ctx context.Context) error {
	reading, span := tracing.Start(ctx, "read the registry again")
	err := i.store.Refresh(reading)
	span.End(err)
	if err != nil {
		i.log.ErrorContext(ctx, "cannot read the registry", "error", err)
		return status.Error(codes.Unavailable, "the database does not answer: ask another replica, or again later")
	}
	return nil
}

// lookup is the entry if the caller may sign for it, nil otherwise.
func (i *Issuer) lookup(ctx context.Context, entryID string) (*registry.Entry, error) {
	agent := callerOf(ctx).id
	e := i.index.Lookup(agent, entryID, i.now())
	if e != nil || !i.store.Shared() {
		return e, nil
	}
	if err := i.refresh(ctx); err != nil {
		return nil, err
	}
	return i.index.Lookup(agent, entryID, i.now()), nil
}

// refreshFor does what lookup does for a batch: it looks once.
func (i *Issuer) refreshFor(ctx context.Context, params []*svidv1.NewX509SVIDParams) error {
	if !i.store.Shared() {
		return nil
	}
	agent, now := callerOf(ctx).id, i.now()
	if slices.ContainsFunc(params, func(p *svidv1.NewX509SVIDParams) bool { return i.index.Lookup(agent, p.GetEntryId(), now) == nil }) {
		return i.refresh(ctx)
	}
	return nil
}
