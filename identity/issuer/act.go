package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// recorder puts an act on record within a transaction.
type recorder func(identity.Act) error

// record emits an act in the caller's name. Its error is for the wire.
func (i *Issuer) record(ctx context.Context, act identity.Act) error {
	if act.Actor == "" {
		act.Actor = callerOf(ctx).Actor()
	}
	if err := i.cfg.Emit(ctx, act); err != nil {
		i.log.ErrorContext(ctx, "cannot record an act, refusing it", "object", act.Object, "verb", act.Verb, "error", err)
		return status.Error(codes.Unavailable, "this cannot be put on record now, so it was not done")
	}
	return nil
}

// update runs fn in a transaction of the registry. What fn recorded precedes
// the commit; if the transaction then fails, the record says so.
func (i *Issuer) update(ctx context.Context, fn func(*sqlstore.Tx, recorder) error) error {
	var recorded []identity.Act
	err := i.store.Update(ctx, func(tx *sqlstore.Tx) error {
		return fn(tx, func(act identity.Act) error {
			err := i.record(ctx, act)
			if err == nil {
				recorded = append(recorded, act)
			}
			return err
		})
	})
	if err == nil {
		return nil
	}
	reason := "rolled back"
	var unknown *sqlstore.CommitError
	if errors.As(err, &unknown) {
		reason = "commit failed"
	}
	for _, act := range recorded {
		act.Failed, act.Reason = true, reason
		if i.record(context.WithoutCancel(ctx), act) != nil {
			break // logged; the call fails anyway
		}
	}
	return err
}

// internal is what the wire sees of an error that is ours: what failed, not
// why. Errors that are made for the wire pass.
func (i *Issuer) internal(ctx context.Context, what string, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	i.log.ErrorContext(ctx, "cannot "+what, "error", err)
	return status.Error(codes.Internal, "cannot "+what)
}

func entryAct(verb string, e *registry.Entry) identity.Act {
	return identity.Act{
		Kind: identity.ActAdmin, Verb: verb, Object: "entry", ObjectID: e.ID,
		Details: [][2]string{{"spiffe_id", e.SPIFFEID.String()}, {"parent_id", e.ParentID.String()}},
	}
}

func agentAct(verb string, id spiffeid.ID) identity.Act {
	return identity.Act{Kind: identity.ActCredential, Verb: verb, Object: "agent", ObjectID: id.String()}
}

func svidAct(verb, object string, id spiffeid.ID, expires time.Time, details ...[2]string) identity.Act {
	return identity.Act{
		Kind: identity.ActCredential, Verb: verb, Object: object, ObjectID: id.String(),
		Details: append(details, [2]string{"expires_at", expires.UTC().Format(time.RFC3339)}),
	}
}
