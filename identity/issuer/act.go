package issuer

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/tracing"
)

// record emits an act in the caller's name. Its error is for the wire.
func (i *Issuer) record(ctx context.Context, act identity.Act) error {
	return i.recordAll(ctx, []identity.Act{act})
}

// recordAll emits acts in the caller's name, all of them by one wait where the
// record has that form. Its error is for the wire.
func (i *Issuer) recordAll(ctx context.Context, acts []identity.Act) error {
	if len(acts) == 0 {
		return nil
	}
	ctx, span := tracing.Start(ctx, "put on record")
	span.Int(tracing.Count, len(acts))
	actor := callerOf(ctx).Actor()
	for n := range acts {
		if acts[n].Actor == "" {
			acts[n].Actor = actor
		}
	}
	err := i.emitAll(ctx, acts)
	span.End(err)
	if err != nil {
		i.log.ErrorContext(ctx, "cannot record an act, refusing it", "object", acts[0].Object, "verb", acts[0].Verb, "acts", len(acts), "error", err)
		refused := "this cannot be put on record now, so it was not done"
		if c := callerOf(ctx); c.kind == local || c.kind == remote {
			refused += ": " + err.Error() // who administers can do something about it
		}
		return status.Error(codes.Unavailable, refused)
	}
	return nil
}

func (i *Issuer) emitAll(ctx context.Context, acts []identity.Act) error {
	if i.cfg.EmitAll != nil && len(acts) > 1 {
		return i.cfg.EmitAll(ctx, acts)
	}
	for _, act := range acts {
		if err := i.cfg.Emit(ctx, act); err != nil {
			return err
		}
	}
	return nil
}

// internal is what the wire sees of an error that is ours: what failed, not
// why. Errors that are made for the wire pass.
func (i *Issuer) internal(ctx context.Context, what string, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	if foreign := (*sqlstore.ForeignError)(nil); errors.As(err, &foreign) {
		return status.Error(codes.FailedPrecondition, "cannot "+what+": the database of this control plane is not as it left it; its alarms say more")
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	if t := sqlstore.TroubleOf(err); t != nil {
		i.log.ErrorContext(ctx, "cannot "+what, "error", err)
		return status.Errorf(codes.Unavailable, "cannot %s: the registry's database %s: %s", what, t.Is, t.Do)
	}
	i.log.ErrorContext(ctx, "cannot "+what, "error", err)
	return status.Error(codes.Internal, "cannot "+what)
}

// entryAct says what was done to an entry, and by its digest what exactly it is
// now, or was.
func entryAct(verb string, e *registry.Entry) identity.Act {
	digest := e.Digest()
	return identity.Act{
		Kind: identity.ActAdmin, Verb: verb, Object: "entry", ObjectID: e.ID,
		Details: [][2]string{{"spiffe_id", e.SPIFFEID.String()}, {"parent_id", e.ParentID.String()}, {"digest", hex.EncodeToString(digest[:])}},
	}
}

// maxDoubts is how many doubts of one entry go on record.
const maxDoubts = 4

// doubtedAct is entryAct of an entry that was written, with what is doubtful
// about its selectors.
func doubtedAct(verb string, e *registry.Entry) identity.Act {
	act := entryAct(verb, e)
	doubts := registry.Doubts(e.Selectors)
	for _, d := range doubts[:min(len(doubts), maxDoubts)] {
		act.Details = append(act.Details, [2]string{"warning", d})
	}
	return act
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
