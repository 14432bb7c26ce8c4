package issuer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// maxBatch bounds the items of one batch request.
const maxBatch = 1000

// entryService is spire.api.server.entry.v1.Entry. What agents call is in
// sync.go.
type entryService struct {
	*Issuer
	entryv1.UnimplementedEntryServer
}

// CountEntries implements entryv1.EntryServer.
func (s *entryService) CountEntries(_ context.Context, req *entryv1.CountEntriesRequest) (*entryv1.CountEntriesResponse, error) {
	keep, err := s.entryFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	n := 0
	for _, e := range s.index.Entries() {
		if keep(e) {
			n++
		}
	}
	return &entryv1.CountEntriesResponse{Count: int32(min(n, math.MaxInt32))}, nil
}

// ListEntries implements entryv1.EntryServer.
func (s *entryService) ListEntries(_ context.Context, req *entryv1.ListEntriesRequest) (*entryv1.ListEntriesResponse, error) {
	keep, err := s.entryFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	p, err := newPage[*types.Entry](req.GetPageSize())
	if err != nil {
		return nil, err
	}
	for _, e := range s.index.Entries() {
		if e.ID > req.GetPageToken() && keep(e) && !p.add(e.ID, entryToProto(e, req.GetOutputMask())) {
			break
		}
	}
	return &entryv1.ListEntriesResponse{Entries: p.items, NextPageToken: p.next}, nil
}

// GetEntry implements entryv1.EntryServer.
func (s *entryService) GetEntry(_ context.Context, req *entryv1.GetEntryRequest) (*types.Entry, error) {
	if req.GetId() == "" {
		return nil, status.Error(codes.InvalidArgument, "id is missing")
	}
	e := s.index.Entry(req.GetId())
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found")
	}
	return entryToProto(e, req.GetOutputMask()), nil
}

// BatchCreateEntry implements entryv1.EntryServer. The whole batch is one
// transaction; an item that is refused changes nothing and stops no other.
func (s *entryService) BatchCreateEntry(ctx context.Context, req *entryv1.BatchCreateEntryRequest) (*entryv1.BatchCreateEntryResponse, error) {
	if err := checkBatch(len(req.GetEntries())); err != nil {
		return nil, err
	}
	results := make([]*entryv1.BatchCreateEntryResponse_Result, len(req.GetEntries()))
	err := s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		var asked []registry.Entry
		var places []int // of asked in the request
		for n, pb := range req.GetEntries() {
			e, code, err := s.checkNewEntry(ctx, tx, pb)
			if code == codes.Internal {
				return err
			}
			if err != nil {
				results[n] = &entryv1.BatchCreateEntryResponse_Result{Status: itemStatus(code, err)}
				continue
			}
			asked, places = append(asked, e), append(places, n)
		}
		created, err := tx.CreateEntries(asked)
		if err != nil {
			return err
		}
		for i, c := range created {
			result := &entryv1.BatchCreateEntryResponse_Result{Status: itemStatus(codes.OK, nil)}
			if c.Exists != nil {
				result.Status = itemStatus(codes.AlreadyExists, &registry.ExistsError{Entry: c.Exists})
				result.Entry = entryToProto(c.Exists, req.GetOutputMask())
			} else {
				result.Entry = entryToProto(c.Entry, req.GetOutputMask())
				if err := record(doubtedAct("created", c.Entry)); err != nil {
					return err
				}
			}
			results[places[i]] = result
		}
		return nil
	})
	if err != nil {
		return nil, s.internal(ctx, "create entries", err)
	}
	return &entryv1.BatchCreateEntryResponse{Results: results}, nil
}

// checkNewEntry reads an entry that is to be made, and says whether the caller may
// make it.
func (s *entryService) checkNewEntry(ctx context.Context, tx *sqlstore.Tx, pb *types.Entry) (registry.Entry, codes.Code, error) {
	asked, err := entryFromProto(s.cfg.TrustDomain, pb)
	if err != nil {
		return asked, codes.InvalidArgument, err
	}
	if err := s.checkAbove(callerOf(ctx), asked.SPIFFEID); err != nil {
		return asked, codes.PermissionDenied, err
	}
	code, err := checkFederates(tx, asked.FederatesWith, nil)
	return asked, code, err
}

// checkFederates refuses a trust domain of which there is no bundle: its workloads
// could not be verified, and mostly its name is misspelt. What was there before stays.
func checkFederates(tx *sqlstore.Tx, with, before []string) (codes.Code, error) {
	for n, name := range with {
		if slices.Contains(before, name) {
			continue
		}
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return codes.InvalidArgument, fmt.Errorf("federates_with[%d]: %w", n, err)
		}
		switch _, err := tx.FederatedBundle(td); {
		case errors.Is(err, registry.ErrNotFound):
			return codes.FailedPrecondition, fmt.Errorf("federates_with[%d]: there is no bundle of trust domain %q: set it first, or have it fetched (policyctl bundle set, federation create)", n, name)
		case err != nil:
			return codes.Internal, err
		}
	}
	return codes.OK, nil
}

// BatchUpdateEntry implements entryv1.EntryServer. A nil input mask means all
// fields.
func (s *entryService) BatchUpdateEntry(ctx context.Context, req *entryv1.BatchUpdateEntryRequest) (*entryv1.BatchUpdateEntryResponse, error) {
	if err := checkBatch(len(req.GetEntries())); err != nil {
		return nil, err
	}
	var results []*entryv1.BatchUpdateEntryResponse_Result
	err := s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		for _, pb := range req.GetEntries() {
			e, code, err := s.updateEntry(ctx, tx, record, pb, req.GetInputMask())
			if code == codes.Internal {
				return err
			}
			result := &entryv1.BatchUpdateEntryResponse_Result{Status: itemStatus(code, err)}
			if e != nil {
				result.Entry = entryToProto(e, req.GetOutputMask())
			}
			results = append(results, result)
		}
		return nil
	})
	if err != nil {
		return nil, s.internal(ctx, "update entries", err)
	}
	return &entryv1.BatchUpdateEntryResponse{Results: results}, nil
}

func (s *entryService) updateEntry(ctx context.Context, tx *sqlstore.Tx, record recorder, pb *types.Entry, mask *types.EntryMask) (*registry.Entry, codes.Code, error) {
	if pb.GetId() == "" {
		return nil, codes.InvalidArgument, errors.New("id is missing")
	}
	old, err := tx.Entry(pb.GetId())
	if errors.Is(err, registry.ErrNotFound) {
		return nil, codes.NotFound, errors.New("entry not found")
	} else if err != nil {
		return nil, codes.Internal, err
	}
	whole := pb
	if mask != nil {
		whole = entryToProto(old, nil)
		copyEntry(whole, pb, mask)
	}
	asked, err := entryFromProto(s.cfg.TrustDomain, whole)
	if err != nil {
		return nil, codes.InvalidArgument, err
	}
	// Neither what it was nor what it becomes may be the control plane's name,
	// or lead to one.
	for _, id := range []registry.Entry{*old, asked} {
		if err := s.checkAbove(callerOf(ctx), id.SPIFFEID); err != nil {
			return nil, codes.PermissionDenied, err
		}
	}
	if code, err := checkFederates(tx, asked.FederatesWith, old.FederatesWith); err != nil {
		return nil, code, err
	}
	e, err := tx.UpdateEntry(asked)
	var exists *registry.ExistsError
	if errors.As(err, &exists) {
		return nil, codes.AlreadyExists, err
	} else if err != nil {
		return nil, codes.Internal, err
	}
	if err := record(doubtedAct("updated", e)); err != nil {
		return nil, codes.Internal, err
	}
	return e, codes.OK, nil
}

// BatchDeleteEntry implements entryv1.EntryServer.
func (s *entryService) BatchDeleteEntry(ctx context.Context, req *entryv1.BatchDeleteEntryRequest) (*entryv1.BatchDeleteEntryResponse, error) {
	if err := checkBatch(len(req.GetIds())); err != nil {
		return nil, err
	}
	var results []*entryv1.BatchDeleteEntryResponse_Result
	err := s.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		for _, id := range req.GetIds() {
			code, err := s.deleteEntry(ctx, tx, record, id)
			if code == codes.Internal {
				return err
			}
			results = append(results, &entryv1.BatchDeleteEntryResponse_Result{Status: itemStatus(code, err), Id: id})
		}
		return nil
	})
	if err != nil {
		return nil, s.internal(ctx, "delete entries", err)
	}
	return &entryv1.BatchDeleteEntryResponse{Results: results}, nil
}

func (s *entryService) deleteEntry(ctx context.Context, tx *sqlstore.Tx, record recorder, id string) (codes.Code, error) {
	if id == "" {
		return codes.InvalidArgument, errors.New("id is missing")
	}
	old, err := tx.Entry(id)
	if errors.Is(err, registry.ErrNotFound) {
		return s.deleteWithheld(ctx, tx, record, id)
	} else if err != nil {
		return codes.Internal, err
	}
	if err := s.checkReserved(callerOf(ctx), old.SPIFFEID); err != nil {
		return codes.PermissionDenied, err
	}
	if _, err := tx.DeleteEntry(id); err != nil {
		return codes.Internal, err
	}
	if err := record(entryAct("deleted", old)); err != nil {
		return codes.Internal, err
	}
	return codes.OK, nil
}

func checkBatch(n int) error {
	if n > maxBatch {
		return status.Errorf(codes.InvalidArgument, "batch has %d items, at most %d are accepted", n, maxBatch)
	}
	return nil
}

// itemStatus is never nil: a stock agent panics on a result without status.
func itemStatus(code codes.Code, err error) *types.Status {
	if err == nil {
		return &types.Status{Code: int32(code), Message: code.String()}
	}
	return &types.Status{Code: int32(code), Message: status.Convert(err).Message()}
}
