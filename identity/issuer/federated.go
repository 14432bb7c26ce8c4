package issuer

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

// GetFederatedBundle implements bundlev1.BundleServer.
func (s *bundleService) GetFederatedBundle(_ context.Context, req *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	td, err := s.foreign(req.GetTrustDomain())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	b := s.index.FederatedBundle(td)
	if b == nil {
		return nil, status.Error(codes.NotFound, "bundle not found")
	}
	return federatedToProto(b, req.GetOutputMask()), nil
}

// CountBundles implements bundlev1.BundleServer. Our own is one of them.
func (s *bundleService) CountBundles(context.Context, *bundlev1.CountBundlesRequest) (*bundlev1.CountBundlesResponse, error) {
	return &bundlev1.CountBundlesResponse{Count: int32(min(1+len(s.index.FederatedBundles()), math.MaxInt32))}, nil
}

// ListFederatedBundles implements bundlev1.BundleServer.
func (s *bundleService) ListFederatedBundles(_ context.Context, req *bundlev1.ListFederatedBundlesRequest) (*bundlev1.ListFederatedBundlesResponse, error) {
	p, err := newPage[*types.Bundle](req.GetPageSize())
	if err != nil {
		return nil, err
	}
	for _, b := range s.index.FederatedBundles() {
		name := b.TrustDomain.Name()
		if name > req.GetPageToken() && !p.add(name, federatedToProto(b, req.GetOutputMask())) {
			break
		}
	}
	return &bundlev1.ListFederatedBundlesResponse{Bundles: p.items, NextPageToken: p.next}, nil
}

// BatchCreateFederatedBundle implements bundlev1.BundleServer. As in all of
// these, the batch is one transaction, and an item that is refused stops no
// other.
func (s *bundleService) BatchCreateFederatedBundle(ctx context.Context, req *bundlev1.BatchCreateFederatedBundleRequest) (*bundlev1.BatchCreateFederatedBundleResponse, error) {
	resp := &bundlev1.BatchCreateFederatedBundleResponse{}
	err := s.putBundles(ctx, req.GetBundle(), nil, req.GetOutputMask(), mayCreate, func(st *types.Status, b *types.Bundle) {
		resp.Results = append(resp.Results, &bundlev1.BatchCreateFederatedBundleResponse_Result{Status: st, Bundle: b})
	})
	return resp, err
}

// BatchUpdateFederatedBundle implements bundlev1.BundleServer.
func (s *bundleService) BatchUpdateFederatedBundle(ctx context.Context, req *bundlev1.BatchUpdateFederatedBundleRequest) (*bundlev1.BatchUpdateFederatedBundleResponse, error) {
	resp := &bundlev1.BatchUpdateFederatedBundleResponse{}
	err := s.putBundles(ctx, req.GetBundle(), req.GetInputMask(), req.GetOutputMask(), mayUpdate, func(st *types.Status, b *types.Bundle) {
		resp.Results = append(resp.Results, &bundlev1.BatchUpdateFederatedBundleResponse_Result{Status: st, Bundle: b})
	})
	return resp, err
}

// BatchSetFederatedBundle implements bundlev1.BundleServer: it creates what is
// not there and replaces what is.
func (s *bundleService) BatchSetFederatedBundle(ctx context.Context, req *bundlev1.BatchSetFederatedBundleRequest) (*bundlev1.BatchSetFederatedBundleResponse, error) {
	resp := &bundlev1.BatchSetFederatedBundleResponse{}
	err := s.putBundles(ctx, req.GetBundle(), nil, req.GetOutputMask(), mayCreate|mayUpdate, func(st *types.Status, b *types.Bundle) {
		resp.Results = append(resp.Results, &bundlev1.BatchSetFederatedBundleResponse_Result{Status: st, Bundle: b})
	})
	return resp, err
}

// putBundles writes the bundles of a batch. add is told what became of each.
func (s *bundleService) putBundles(ctx context.Context, items []*types.Bundle, in, out *types.BundleMask, allowed may, add func(*types.Status, *types.Bundle)) error {
	return eachItem(ctx, s.Issuer, "write federated bundles", items, func(tx *sqlstore.Tx, record recorder, pb *types.Bundle) error {
		b, code, err := s.putBundle(tx, record, pb, in, allowed)
		if code == codes.Internal {
			return err
		}
		var written *types.Bundle
		if b != nil {
			written = federatedToProto(b, out)
		}
		add(itemStatus(code, err), written)
		return nil
	})
}

// eachItem runs do on each item of a batch, in one transaction. An error of do ends it,
// and undoes all of it: what refuses one item is none.
func eachItem[T any](ctx context.Context, i *Issuer, what string, items []T, do func(*sqlstore.Tx, recorder, T) error) error {
	if err := checkBatch(len(items)); err != nil {
		return err
	}
	err := i.update(ctx, func(tx *sqlstore.Tx, record recorder) error {
		for _, item := range items {
			if err := do(tx, record, item); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return i.internal(ctx, what, err)
	}
	return nil
}

// may says what putBundle may do.
type may int

const (
	mayCreate may = 1 << iota
	mayUpdate
)

// putBundle writes one bundle of a batch. With codes.Internal the whole batch
// fails.
func (i *Issuer) putBundle(tx *sqlstore.Tx, record recorder, pb *types.Bundle, mask *types.BundleMask, allowed may) (*registry.FederatedBundle, codes.Code, error) {
	td, err := i.foreign(pb.GetTrustDomain())
	if err != nil {
		return nil, codes.InvalidArgument, err
	}
	old, err := tx.FederatedBundle(td)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		if allowed&mayCreate == 0 {
			return nil, codes.NotFound, errors.New("bundle not found")
		}
	case err != nil:
		return nil, codes.Internal, err
	case allowed&mayUpdate == 0:
		return nil, codes.AlreadyExists, errors.New("bundle already exists")
	}
	b, err := federatedFromProto(td, pb, old, mask)
	if err == nil {
		err = i.checkNotOurs(b)
	}
	if err != nil {
		return nil, codes.InvalidArgument, err
	}
	if old != nil && old.Equal(b) {
		return old, codes.OK, nil
	}
	if err := i.writeBundle(tx, record, old, b, ""); err != nil {
		return nil, codes.Internal, err
	}
	return b, codes.OK, nil
}

// writeBundle writes and records. from is where the bundle was fetched, or
// empty.
func (i *Issuer) writeBundle(tx *sqlstore.Tx, record recorder, old, b *registry.FederatedBundle, from string) error {
	verb := "created"
	if old != nil {
		verb = "updated"
	}
	act := bundleAct(verb, b)
	if from != "" {
		act.Actor = identity.IssuerID(i.cfg.TrustDomain).String()
		act.Details = append(act.Details, [2]string{"endpoint_url", from})
	}
	if err := tx.PutFederatedBundle(*b); err != nil {
		return err
	}
	return record(act)
}

// BatchDeleteFederatedBundle implements bundlev1.BundleServer.
func (s *bundleService) BatchDeleteFederatedBundle(ctx context.Context, req *bundlev1.BatchDeleteFederatedBundleRequest) (*bundlev1.BatchDeleteFederatedBundleResponse, error) {
	if _, known := bundlev1.BatchDeleteFederatedBundleRequest_Mode_name[int32(req.GetMode())]; !known {
		return nil, status.Errorf(codes.InvalidArgument, "mode: unknown mode %d", req.GetMode())
	}
	resp := &bundlev1.BatchDeleteFederatedBundleResponse{}
	err := eachItem(ctx, s.Issuer, "delete federated bundles", req.GetTrustDomains(), func(tx *sqlstore.Tx, record recorder, name string) error {
		code, err := s.deleteBundle(ctx, tx, record, name, req.GetMode())
		if code == codes.Internal {
			return err
		}
		resp.Results = append(resp.Results, &bundlev1.BatchDeleteFederatedBundleResponse_Result{Status: itemStatus(code, err), TrustDomain: name})
		return nil
	})
	return resp, err
}

func (s *bundleService) deleteBundle(ctx context.Context, tx *sqlstore.Tx, record recorder, name string, mode bundlev1.BatchDeleteFederatedBundleRequest_Mode) (codes.Code, error) {
	td, err := s.foreign(name)
	if err != nil {
		return codes.InvalidArgument, err
	}
	old, err := tx.FederatedBundle(td)
	if errors.Is(err, registry.ErrNotFound) {
		return codes.NotFound, errors.New("bundle not found")
	} else if err != nil {
		return codes.Internal, err
	}
	entries, err := tx.EntriesFederatingWith(td)
	if err != nil {
		return codes.Internal, err
	}
	templates := tx.TemplatesFederatingWith(td)
	if mode == bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT && len(entries)+len(templates) > 0 {
		return codes.FailedPrecondition, fmt.Errorf("%d entries federate with %s: delete or dissociate them with it, by the mode", len(entries)+len(templates), td.Name())
	}
	for _, e := range entries {
		if err := s.checkReserved(callerOf(ctx), e.SPIFFEID); err != nil {
			return codes.PermissionDenied, err
		}
	}
	for _, e := range entries {
		if err := dissociate(tx, record, e, td, mode); err != nil {
			return codes.Internal, err
		}
	}
	for _, t := range templates {
		if err := dissociateTemplate(tx, record, t, td, mode); err != nil {
			return codes.Internal, err
		}
	}
	if err := tx.DeleteFederatedBundle(td); err != nil {
		return codes.Internal, err
	}
	if err := record(bundleAct("deleted", old)); err != nil {
		return codes.Internal, err
	}
	return codes.OK, nil
}

func dissociate(tx *sqlstore.Tx, record recorder, e *registry.Entry, td spiffeid.TrustDomain, mode bundlev1.BatchDeleteFederatedBundleRequest_Mode) error {
	if mode == bundlev1.BatchDeleteFederatedBundleRequest_DELETE {
		if _, err := tx.DeleteEntry(e.ID); err != nil {
			return err
		}
		return record(entryAct("deleted", e))
	}
	next := *e
	next.FederatesWith = without(e.FederatesWith, td.Name())
	made, err := tx.UpdateEntry(next)
	if err != nil {
		return err
	}
	return record(entryAct("updated", made))
}

func dissociateTemplate(tx *sqlstore.Tx, record recorder, t *registry.Template, td spiffeid.TrustDomain, mode bundlev1.BatchDeleteFederatedBundleRequest_Mode) error {
	if mode == bundlev1.BatchDeleteFederatedBundleRequest_DELETE {
		if _, err := tx.DeleteTemplate(t.ID); err != nil {
			return err
		}
		return record(templateAct("deleted", t))
	}
	next := *t
	next.FederatesWith = without(t.FederatesWith, td.Name())
	made, err := tx.UpdateTemplate(next)
	if err != nil {
		return err
	}
	return record(templateAct("updated", made))
}

func without(list []string, name string) (rest []string) {
	for _, other := range list {
		if other != name {
			rest = append(rest, other)
		}
	}
	return rest
}

// foreign reads the name of a trust domain that is not ours.
func (i *Issuer) foreign(name string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return td, fmt.Errorf("trust_domain: %w", err)
	}
	if td == i.cfg.TrustDomain {
		return td, fmt.Errorf("trust_domain: %q is the server's own trust domain, which does not federate with itself", td.Name())
	}
	return td, nil
}

// checkNotOurs refuses a bundle that holds what is ours: whoever published it
// claims to be us, or an endpoint is not the one that was meant.
func (i *Issuer) checkNotOurs(b *registry.FederatedBundle) error {
	own, _ := i.ca.Bundle()
	for n, cert := range b.X509Authorities {
		for _, uri := range cert.URIs {
			if id, err := spiffeid.FromURI(uri); err == nil && id.TrustDomain() == i.cfg.TrustDomain {
				return fmt.Errorf("x509_authorities[%d]: it names %s: a bundle of %s cannot claim our own trust domain", n, id, b.TrustDomain.Name())
			}
		}
	}
	for n, key := range b.JWTAuthorities {
		for _, ours := range own.JWTAuthorities {
			if string(key.PublicKey) == string(ours.PublicKey) {
				return fmt.Errorf("jwt_authorities[%d]: key %q is one of our own trust domain", n, key.KeyID)
			}
		}
	}
	return nil
}

func federatedToProto(b *registry.FederatedBundle, mask *types.BundleMask) *types.Bundle {
	out := &types.Bundle{TrustDomain: b.TrustDomain.Name()}
	all := mask == nil
	if all || mask.GetX509Authorities() {
		for _, cert := range b.X509Authorities {
			out.X509Authorities = append(out.X509Authorities, &types.X509Certificate{Asn1: cert.Raw})
		}
	}
	if all || mask.GetJwtAuthorities() {
		for _, a := range b.JWTAuthorities {
			out.JwtAuthorities = append(out.JwtAuthorities, &types.JWTKey{PublicKey: a.PublicKey, KeyId: a.KeyID, ExpiresAt: seconds(a.ExpiresAt)})
		}
	}
	set(all || mask.GetRefreshHint(), &out.RefreshHint, int64(b.RefreshHint/time.Second))
	set(all || mask.GetSequenceNumber(), &out.SequenceNumber, b.Sequence)
	return out
}

// maxRefreshHint is the longest refresh hint that is kept: a year.
const maxRefreshHint = 366 * 24 * 60 * 60

// federatedFromProto checks a bundle. With a mask, what it does not name stays
// as it was. The error names the field.
func federatedFromProto(td spiffeid.TrustDomain, pb *types.Bundle, old *registry.FederatedBundle, mask *types.BundleMask) (*registry.FederatedBundle, error) {
	b := &registry.FederatedBundle{TrustDomain: td}
	if mask != nil && old != nil {
		*b = *old
	}
	all := mask == nil
	if all || mask.GetX509Authorities() {
		b.X509Authorities = nil
		seen := map[string]bool{}
		for n, a := range pb.GetX509Authorities() {
			certs, err := x509.ParseCertificates(a.GetAsn1())
			if err != nil || len(certs) == 0 {
				return nil, fmt.Errorf("x509_authorities[%d]: not a certificate", n)
			}
			for _, cert := range certs {
				if !seen[string(cert.Raw)] {
					seen[string(cert.Raw)] = true
					b.X509Authorities = append(b.X509Authorities, cert)
				}
			}
		}
	}
	if all || mask.GetJwtAuthorities() {
		keys, err := jwtAuthoritiesFromProto(pb.GetJwtAuthorities())
		if err != nil {
			return nil, err
		}
		b.JWTAuthorities = keys
	}
	if all || mask.GetRefreshHint() {
		if hint := pb.GetRefreshHint(); hint < 0 || hint > maxRefreshHint {
			return nil, fmt.Errorf("refresh_hint: want 0 to %d seconds, got %d", maxRefreshHint, hint)
		}
		b.RefreshHint = time.Duration(pb.GetRefreshHint()) * time.Second
	}
	if all || mask.GetSequenceNumber() {
		if pb.GetSequenceNumber() > math.MaxInt64 {
			return nil, errors.New("sequence_number: too large to be kept")
		}
		b.Sequence = pb.GetSequenceNumber()
	}
	return b, nil
}

func jwtAuthoritiesFromProto(list []*types.JWTKey) ([]registry.JWTAuthority, error) {
	var keys []registry.JWTAuthority
	seen := map[string]bool{}
	for n, k := range list {
		switch {
		case k.GetKeyId() == "":
			return nil, fmt.Errorf("jwt_authorities[%d]: key_id is missing: agents discard the whole bundle for it", n)
		case seen[k.GetKeyId()]:
			return nil, fmt.Errorf("jwt_authorities[%d]: key_id %q is there twice", n, k.GetKeyId())
		case k.GetExpiresAt() < 0 || k.GetExpiresAt() > year9999:
			return nil, fmt.Errorf("jwt_authorities[%d]: expires_at: want seconds since 1970, 0 for unknown", n)
		}
		seen[k.GetKeyId()] = true
		if _, err := x509.ParsePKIXPublicKey(k.GetPublicKey()); err != nil {
			return nil, fmt.Errorf("jwt_authorities[%d]: public_key is not a PKIX public key: %w", n, err)
		}
		a := registry.JWTAuthority{KeyID: k.GetKeyId(), PublicKey: k.GetPublicKey()}
		if k.GetExpiresAt() != 0 {
			a.ExpiresAt = time.Unix(k.GetExpiresAt(), 0).UTC()
		}
		keys = append(keys, a)
	}
	return keys, nil
}

func bundleAct(verb string, b *registry.FederatedBundle) identity.Act {
	digest := b.Digest()
	return identity.Act{
		Kind: identity.ActAdmin, Verb: verb, Object: "federated-bundle", ObjectID: b.TrustDomain.IDString(),
		Details: [][2]string{
			{"sequence", strconv.FormatUint(b.Sequence, 10)},
			{"x509_authorities", strconv.Itoa(len(b.X509Authorities))},
			{"jwt_authorities", strconv.Itoa(len(b.JWTAuthorities))},
			{"sha256", hex.EncodeToString(digest[:])},
		},
	}
}
