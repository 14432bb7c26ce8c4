package issuer

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/withheldv1"
)

// withheldService is writ.identity.withheld.v1.Admin.
type withheldService struct {
	*Issuer
	withheldv1.UnimplementedAdminServer
}

// Withheld are the entries that are not served since their rows are not what the
// issuer wrote, and how many more rows there are that are no entries.
func (i *Issuer) Withheld() (list []*sqlstore.Withheld, more int) { return i.store.Withheld() }

// RegistryAlarms is how often a row was found since the start that is not what the
// issuer wrote, of entries and of what has a mark beside them.
func (i *Issuer) RegistryAlarms() uint64 { return i.store.Alarms() }

// Doubt is why nothing of the registry's database is served, nil if it is.
func (i *Issuer) Doubt() error { return i.store.Doubt() }

// List implements withheldv1.AdminServer.
func (s *withheldService) List(context.Context, *withheldv1.ListRequest) (*withheldv1.ListResponse, error) {
	list, more := s.store.Withheld()
	resp := &withheldv1.ListResponse{More: uint64(more)}
	for _, w := range list {
		resp.Entries = append(resp.Entries, withheldToProto(w))
	}
	return resp, nil
}

func withheldToProto(w *sqlstore.Withheld) *withheldv1.Entry {
	pb := &withheldv1.Entry{Id: w.ID, Cause: w.Reason, Why: w.Why(), FoundAt: w.Since.Unix()}
	if w.Known {
		pb.WantDigest = w.Want[:]
	}
	if w.Entry != nil {
		pb.Digest, pb.Row = w.Digest[:], entryToProto(w.Entry, nil)
	}
	return pb
}

// Accept implements withheldv1.AdminServer. The items are one transaction; one
// that is refused changes nothing and stops no other.
func (s *withheldService) Accept(ctx context.Context, req *withheldv1.AcceptRequest) (*withheldv1.AcceptResponse, error) {
	if err := checkBatch(len(req.GetItems())); err != nil {
		return nil, err
	}
	resp := &withheldv1.AcceptResponse{}
	err := s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		for _, item := range req.GetItems() {
			result := &withheldv1.AcceptResponse_Result{Id: item.GetId()}
			code, err := s.accept(ctx, tx, record, item)
			if code == codes.Internal {
				return err
			}
			if result.Code = int32(code); err != nil {
				result.Message = itemStatus(code, err).GetMessage()
			}
			resp.Results = append(resp.Results, result)
		}
		return nil
	})
	if err != nil {
		return nil, s.internal(ctx, "accept entries", err)
	}
	return resp, nil
}

func (s *withheldService) accept(ctx context.Context, tx *sqlstore.Tx, record recorder, item *withheldv1.AcceptRequest_Item) (codes.Code, error) {
	w, err := tx.WithheldRow(item.GetId())
	if code, err := rowProblem(w, err); err != nil {
		return code, err
	}
	if w.Reason == sqlstore.Missing && len(item.GetDigest()) == 0 {
		return drop(tx, record, w.ID, "accepted as deleted")
	}
	if w.Entry == nil {
		return codes.FailedPrecondition, errors.New("there is no row that is an entry: delete it, and make the entry again")
	}
	if string(item.GetDigest()) != string(w.Digest[:]) {
		return codes.Aborted, errors.New("the row has changed since it was looked at: look again")
	}
	// It must be an entry that could be made.
	if _, err := entryFromProto(s.cfg.TrustDomain, entryToProto(w.Entry, nil)); err != nil {
		return codes.InvalidArgument, fmt.Errorf("no such entry could be made: %w", err)
	}
	if err := s.checkAbove(callerOf(ctx), w.Entry.SPIFFEID); err != nil {
		return codes.PermissionDenied, err
	}
	e, err := tx.AcceptEntry(w.ID, w.Digest)
	var exists *registry.ExistsError
	switch {
	case errors.As(err, &exists):
		return codes.AlreadyExists, err
	case err != nil:
		return codes.Internal, err
	}
	act := doubtedAct("accepted", e)
	act.Details = append(act.Details, [2]string{"cause", w.Reason}, [2]string{"row_digest", hex.EncodeToString(w.Digest[:])})
	if err := record(act); err != nil {
		return codes.Internal, err
	}
	return codes.OK, nil
}

// deleteWithheld deletes an entry that is withheld: its row, and that it is to be
// there.
func (i *Issuer) deleteWithheld(ctx context.Context, tx *sqlstore.Tx, record recorder, id string) (codes.Code, error) {
	w, err := tx.WithheldRow(id)
	if code, err := rowProblem(w, err); err != nil {
		return code, err
	}
	if w.Entry != nil {
		if err := i.checkReserved(callerOf(ctx), w.Entry.SPIFFEID); err != nil {
			return codes.PermissionDenied, err
		}
	}
	return drop(tx, record, id, "deleted")
}

// rowProblem is why nothing can be done about a row that is withheld.
func rowProblem(w *sqlstore.Withheld, err error) (codes.Code, error) {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return codes.NotFound, errors.New("entry not found")
	case err != nil:
		return codes.Internal, err
	case w.Reason == "":
		return codes.FailedPrecondition, errors.New("the entry is not withheld")
	}
	return codes.OK, nil
}

func drop(tx *sqlstore.Tx, record recorder, id, verb string) (codes.Code, error) {
	w, err := tx.DropWithheld(id)
	if err != nil {
		return codes.Internal, err
	}
	act := identity.Act{Kind: identity.ActAdmin, Verb: verb, Object: "entry", ObjectID: w.ID, Details: [][2]string{{"cause", w.Reason}}}
	if w.Entry != nil {
		act.Details = append(act.Details, [2]string{"spiffe_id", w.Entry.SPIFFEID.String()}, [2]string{"row_digest", hex.EncodeToString(w.Digest[:])})
	}
	if w.Known {
		act.Details = append(act.Details, [2]string{"digest", hex.EncodeToString(w.Want[:])})
	}
	if err := record(act); err != nil {
		return codes.Internal, err
	}
	return codes.OK, nil
}
