package issuer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
)

const (
	agentPrefix    = "/spire/agent/"
	reservedPrefix = "/spire/"
	ownPrefix      = "/writ/"
	maxEntryID     = 255
	maxHint        = 1024
	// year9999 is the last second that a certificate can name.
	year9999 = 253402300799
)

func isAgentPath(path string) bool { return strings.HasPrefix(path, agentPrefix) }

// memberID reads an ID of our trust domain that has a path.
func (i *Issuer) memberID(field string, pb *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := memberOf(i.cfg.TrustDomain, pb)
	if err != nil {
		return id, status.Errorf(codes.InvalidArgument, "%s: %v", field, err)
	}
	return id, nil
}

// workloadID reads an ID that a workload may have.
func (i *Issuer) workloadID(field string, pb *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := i.memberID(field, pb)
	if err == nil && isReserved(id) {
		err = status.Errorf(codes.InvalidArgument, "%s: %q: names under /spire/ belong to issuers and agents", field, id)
	}
	return id, err
}

func isReserved(id spiffeid.ID) bool {
	return strings.HasPrefix(id.Path(), reservedPrefix) || id.Path() == "/spire"
}

// checkReserved keeps the control plane's own names from everyone but a local
// administrator: who could make them could speak as the control plane.
func (i *Issuer) checkReserved(c Caller, id spiffeid.ID) error {
	if c.kind != local && strings.HasPrefix(id.Path(), ownPrefix) {
		return status.Errorf(codes.PermissionDenied, "%q: names under /writ/ are given on the admin socket only", id)
	}
	return nil
}

// checkAbove keeps names from everyone but a local administrator under which one
// of the control plane's own hangs, at any depth: who has a name has what is
// below it.
func (i *Issuer) checkAbove(c Caller, id spiffeid.ID) error {
	if err := i.checkReserved(c, id); err != nil || c.kind == local {
		return err
	}
	return i.checkBelow(id)
}

func (i *Issuer) checkBelow(id spiffeid.ID) error {
	own := i.index.FindBelow(id, func(e *registry.Entry) bool { return strings.HasPrefix(e.SPIFFEID.Path(), ownPrefix) })
	if own != nil {
		return status.Errorf(codes.PermissionDenied, "%q: %q hangs below it, and is given on the admin socket only", id, own.SPIFFEID)
	}
	return nil
}

func memberOf(td spiffeid.TrustDomain, pb *types.SPIFFEID) (spiffeid.ID, error) {
	if pb == nil {
		return spiffeid.ID{}, errors.New("missing")
	}
	named, err := spiffeid.TrustDomainFromString(pb.GetTrustDomain())
	if err != nil {
		return spiffeid.ID{}, err
	}
	if named != td {
		return spiffeid.ID{}, fmt.Errorf("trust domain is %q, want %q", named.Name(), td.Name())
	}
	id, err := spiffeid.FromPath(td, pb.GetPath())
	if err != nil {
		return spiffeid.ID{}, err
	}
	if id.Path() == "" {
		return spiffeid.ID{}, errors.New("path is empty: that names the trust domain")
	}
	return id, nil
}

func idToProto(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

func selectorsToProto(selectors []registry.Selector) []*types.Selector {
	list := make([]*types.Selector, len(selectors))
	for n, s := range selectors {
		list[n] = &types.Selector{Type: s.Type, Value: s.Value}
	}
	return list
}

func selectorsFromProto(list []*types.Selector) ([]registry.Selector, error) {
	selectors := make([]registry.Selector, 0, len(list))
	for n, s := range list {
		switch {
		case s.GetType() == "" || s.GetValue() == "":
			return nil, fmt.Errorf("selectors[%d]: type and value are both required", n)
		case strings.Contains(s.GetType(), ":"):
			return nil, fmt.Errorf("selectors[%d]: type %q has a ':'", n, s.GetType())
		}
		selectors = append(selectors, registry.Selector{Type: s.GetType(), Value: s.GetValue()})
	}
	return selectors, nil
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// entryToProto is the entry with the fields that mask names; all of them for a
// nil mask. The ID is always there.
func entryToProto(e *registry.Entry, mask *types.EntryMask) *types.Entry {
	full := &types.Entry{
		Id: e.ID, SpiffeId: idToProto(e.SPIFFEID), ParentId: idToProto(e.ParentID), Selectors: selectorsToProto(e.Selectors),
		X509SvidTtl: ttlToProto(e.X509SVIDTTL), JwtSvidTtl: ttlToProto(e.JWTSVIDTTL),
		FederatesWith: e.FederatesWith, Admin: e.Admin, Downstream: e.Downstream, ExpiresAt: seconds(e.ExpiresAt),
		DnsNames: e.DNSNames, RevisionNumber: e.RevisionNumber, StoreSvid: e.StoreSVID, Hint: e.Hint, CreatedAt: seconds(e.CreatedAt),
	}
	if mask == nil {
		return full
	}
	masked := &types.Entry{Id: e.ID}
	copyEntry(masked, full, mask)
	if mask.RevisionNumber {
		masked.RevisionNumber = full.RevisionNumber
	}
	if mask.CreatedAt {
		masked.CreatedAt = full.CreatedAt
	}
	return masked
}

// copyEntry copies the fields that can be written and that mask names.
func copyEntry(dst, src *types.Entry, mask *types.EntryMask) {
	set(mask.SpiffeId, &dst.SpiffeId, src.SpiffeId)
	set(mask.ParentId, &dst.ParentId, src.ParentId)
	set(mask.Selectors, &dst.Selectors, src.Selectors)
	set(mask.X509SvidTtl, &dst.X509SvidTtl, src.X509SvidTtl)
	set(mask.JwtSvidTtl, &dst.JwtSvidTtl, src.JwtSvidTtl)
	set(mask.FederatesWith, &dst.FederatesWith, src.FederatesWith)
	set(mask.Admin, &dst.Admin, src.Admin)
	set(mask.Downstream, &dst.Downstream, src.Downstream)
	set(mask.ExpiresAt, &dst.ExpiresAt, src.ExpiresAt)
	set(mask.DnsNames, &dst.DnsNames, src.DnsNames)
	set(mask.StoreSvid, &dst.StoreSvid, src.StoreSvid)
	set(mask.Hint, &dst.Hint, src.Hint)
}

func set[T any](really bool, dst *T, src T) {
	if really {
		*dst = src
	}
}

// entryFromProto checks an entry. The error names the field.
func entryFromProto(td spiffeid.TrustDomain, pb *types.Entry) (e registry.Entry, err error) {
	if pb == nil {
		return e, errors.New("entry is missing")
	}
	e = registry.Entry{
		ID: pb.GetId(), Admin: pb.GetAdmin(), Downstream: pb.GetDownstream(), StoreSVID: pb.GetStoreSvid(), Hint: pb.GetHint(),
	}
	if err := checkEntryID(e.ID); err != nil {
		return e, err
	}
	if e.SPIFFEID, err = memberOf(td, pb.GetSpiffeId()); err != nil {
		return e, fmt.Errorf("spiffe_id: %w", err)
	}
	if isReserved(e.SPIFFEID) {
		return e, fmt.Errorf("spiffe_id: %q: names under /spire/ belong to issuers and agents", e.SPIFFEID)
	}
	if e.ParentID, err = memberOf(td, pb.GetParentId()); err != nil {
		return e, fmt.Errorf("parent_id: %w", err)
	}
	if e.ParentID == e.SPIFFEID {
		return e, errors.New("parent_id: an entry cannot be its own parent")
	}
	if e.Selectors, err = selectorsFromProto(pb.GetSelectors()); err != nil {
		return e, err
	}
	if len(e.Selectors) == 0 {
		return e, errors.New("selectors: at least one is required")
	}
	if e.X509SVIDTTL, err = ttlFromProto(pb.GetX509SvidTtl()); err != nil {
		return e, fmt.Errorf("x509_svid_ttl: %w", err)
	}
	if e.JWTSVIDTTL, err = ttlFromProto(pb.GetJwtSvidTtl()); err != nil {
		return e, fmt.Errorf("jwt_svid_ttl: %w", err)
	}
	if e.FederatesWith, err = federatesFromProto(td, pb.GetFederatesWith()); err != nil {
		return e, err
	}
	for n, name := range pb.GetDnsNames() {
		if err := ca.CheckDNSName(name); err != nil {
			return e, fmt.Errorf("dns_names[%d]: %w", n, err)
		}
		e.DNSNames = append(e.DNSNames, name)
	}
	if len(e.Hint) > maxHint {
		return e, fmt.Errorf("hint has %d bytes, at most %d are accepted", len(e.Hint), maxHint)
	}
	switch at := pb.GetExpiresAt(); {
	case at < 0 || at > year9999:
		return e, errors.New("expires_at: want seconds since 1970, 0 for never")
	case at > 0:
		e.ExpiresAt = time.Unix(at, 0).UTC()
	}
	return e, nil
}

// federatesFromProto reads names of other trust domains; they come out sorted.
func federatesFromProto(td spiffeid.TrustDomain, list []string) ([]string, error) {
	var names []string
	for n, name := range list {
		other, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("federates_with[%d]: %w", n, err)
		}
		if other == td {
			return nil, fmt.Errorf("federates_with[%d]: %q is the own trust domain", n, name)
		}
		names = append(names, other.Name())
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func checkEntryID(id string) error {
	if len(id) > maxEntryID {
		return fmt.Errorf("id has %d characters, at most %d are accepted", len(id), maxEntryID)
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._~", rune(c)) {
			return fmt.Errorf("id %q: want letters, digits, '-', '.', '_', '~'", id)
		}
	}
	return nil
}

// ttlToProto is a life in seconds. One that is longer than the API can say, which only
// somebody else can have written into the database, stays the longest.
func ttlToProto(ttl time.Duration) int32 { return int32(min(ttl/time.Second, math.MaxInt32)) }

func ttlFromProto(sec int32) (time.Duration, error) {
	ttl := time.Duration(sec) * time.Second
	if sec != 0 && ttl < ca.MinSVIDLife {
		return 0, fmt.Errorf("%d seconds, want at least %d, or 0 for the default", sec, int(ca.MinSVIDLife/time.Second))
	}
	return ttl, nil
}

// agentToProto is the agent with the fields that mask names; all of them for a
// nil mask. The ID is always there.
func agentToProto(a *registry.Agent, mask *types.AgentMask) *types.Agent {
	out := &types.Agent{Id: idToProto(a.ID)}
	all := mask == nil
	set(all || mask.GetAttestationType(), &out.AttestationType, a.AttestationType)
	set(all || mask.GetX509SvidSerialNumber(), &out.X509SvidSerialNumber, a.Serial)
	set(all || mask.GetX509SvidExpiresAt(), &out.X509SvidExpiresAt, seconds(a.ExpiresAt))
	set(all || mask.GetSelectors(), &out.Selectors, selectorsToProto(a.Selectors))
	set(all || mask.GetBanned(), &out.Banned, a.Banned)
	set(all || mask.GetCanReattest(), &out.CanReattest, a.CanReattest)
	return out
}

// unsigned is what the wire sees when an SVID cannot be prepared.
func (i *Issuer) unsigned(ctx context.Context, err error) error {
	if errors.Is(err, ca.ErrNotReady) {
		i.log.ErrorContext(ctx, "cannot sign", "error", err)
		return status.Error(codes.Unavailable, "the issuer cannot sign at the moment, try again")
	}
	return status.Error(codes.InvalidArgument, err.Error())
}
