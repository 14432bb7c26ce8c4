package issuer

import (
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-dev/writ/identity/registry"
)

const (
	// maxPage is the most items in a page of a list.
	maxPage = 1000
	// maxReply keeps replies under gRPC's 4 MB, with room for the rest of the
	// message.
	maxReply = 3 << 20
)

// page collects what fits into one reply.
type page[T proto.Message] struct {
	items []T
	// next is the ID of the last item if there are more.
	next  string
	last  string
	limit int
	bytes int
}

func newPage[T proto.Message](size int32) (*page[T], error) {
	switch {
	case size < 0:
		return nil, status.Error(codes.InvalidArgument, "page_size is negative")
	case size == 0 || size > maxPage:
		size = maxPage
	}
	return &page[T]{limit: int(size)}, nil
}

// add takes the item, or says that it belongs to the next page.
func (p *page[T]) add(id string, item T) bool {
	size := proto.Size(item) + 8 // tag and length
	if len(p.items) == p.limit || len(p.items) > 0 && p.bytes+size > maxReply {
		p.next = p.last
		return false
	}
	p.items, p.bytes, p.last = append(p.items, item), p.bytes+size, id
	return true
}

// entryFilterMessage is the filter of ListEntries and of CountEntries, which
// are two messages with the same fields.
type entryFilterMessage interface {
	GetBySpiffeId() *types.SPIFFEID
	GetByParentId() *types.SPIFFEID
	GetBySelectors() *types.SelectorMatch
	GetByFederatesWith() *types.FederatesWithMatch
	GetByHint() *wrapperspb.StringValue
	GetByDownstream() *wrapperspb.BoolValue
}

func (i *Issuer) entryFilter(f entryFilterMessage) (func(*registry.Entry) bool, error) {
	var spiffeID, parentID spiffeid.ID
	var err error
	if pb := f.GetBySpiffeId(); pb != nil {
		if spiffeID, err = i.memberID("filter.by_spiffe_id", pb); err != nil {
			return nil, err
		}
	}
	if pb := f.GetByParentId(); pb != nil {
		if parentID, err = i.memberID("filter.by_parent_id", pb); err != nil {
			return nil, err
		}
	}
	selectors, err := selectorFilter("filter.by_selectors", f.GetBySelectors())
	if err != nil {
		return nil, err
	}
	federates, err := federatesFilter(f.GetByFederatesWith())
	if err != nil {
		return nil, err
	}
	hint := f.GetByHint()
	// Stock clients always send by_downstream=false and mean no filter.
	downstream := f.GetByDownstream().GetValue()
	return func(e *registry.Entry) bool {
		return (spiffeID.IsZero() || e.SPIFFEID == spiffeID) && (parentID.IsZero() || e.ParentID == parentID) &&
			(selectors == nil || selectors(e.Selectors)) && (federates == nil || federates(e.FederatesWith)) &&
			(hint == nil || e.Hint == hint.GetValue()) && (!downstream || e.Downstream)
	}, nil
}

func selectorFilter(field string, m *types.SelectorMatch) (func([]registry.Selector) bool, error) {
	if m == nil {
		return nil, nil
	}
	want, err := selectorsFromProto(m.GetSelectors())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%s: %v", field, err)
	}
	return matcher(field, want, int32(m.GetMatch()))
}

func federatesFilter(m *types.FederatesWithMatch) (func([]string) bool, error) {
	if m == nil {
		return nil, nil
	}
	want := make([]string, len(m.GetTrustDomains()))
	for n, name := range m.GetTrustDomains() {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "filter.by_federates_with.trust_domains[%d]: %v", n, err)
		}
		want[n] = td.Name()
	}
	// The two enumerations of match behaviours have the same numbers.
	return matcher("filter.by_federates_with", want, int32(m.GetMatch()))
}

// matcher compares sets: have is an entry's or agent's, want the filter's.
func matcher[T comparable](field string, want []T, behaviour int32) (func(have []T) bool, error) {
	if len(want) == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "%s: nothing to match", field)
	}
	within := func(inner, outer []T) bool {
		return !slices.ContainsFunc(inner, func(v T) bool { return !slices.Contains(outer, v) })
	}
	switch types.SelectorMatch_MatchBehavior(behaviour) {
	case types.SelectorMatch_MATCH_EXACT:
		return func(have []T) bool { return within(have, want) && within(want, have) }, nil
	case types.SelectorMatch_MATCH_SUBSET:
		return func(have []T) bool { return len(have) > 0 && within(have, want) }, nil
	case types.SelectorMatch_MATCH_SUPERSET:
		return func(have []T) bool { return within(want, have) }, nil
	case types.SelectorMatch_MATCH_ANY:
		return func(have []T) bool {
			return slices.ContainsFunc(have, func(v T) bool { return slices.Contains(want, v) })
		}, nil
	}
	return nil, status.Errorf(codes.InvalidArgument, "%s.match: unknown behaviour %d", field, behaviour)
}

// agentFilterMessage is the filter of ListAgents and of CountAgents.
type agentFilterMessage interface {
	GetByAttestationType() string
	GetBySelectorMatch() *types.SelectorMatch
	GetByBanned() *wrapperspb.BoolValue
	GetByCanReattest() *wrapperspb.BoolValue
	GetByExpiresBefore() string
}

func agentFilter(f agentFilterMessage) (func(*registry.Agent) bool, error) {
	selectors, err := selectorFilter("filter.by_selector_match", f.GetBySelectorMatch())
	if err != nil {
		return nil, err
	}
	var before time.Time
	if text := f.GetByExpiresBefore(); text != "" {
		if before, err = parseExpiry(text); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "filter.by_expires_before: %q is not a time such as 2030-01-31T12:00:00Z", text)
		}
	}
	kind, banned, reattest := f.GetByAttestationType(), f.GetByBanned(), f.GetByCanReattest()
	return func(a *registry.Agent) bool {
		return (kind == "" || a.AttestationType == kind) && (selectors == nil || selectors(a.Selectors)) &&
			(banned == nil || a.Banned == banned.GetValue()) && (reattest == nil || a.CanReattest == reattest.GetValue()) &&
			(before.IsZero() || a.ExpiresAt.Before(before))
	}, nil
}

// parseExpiry reads RFC 3339, and the form that spire-server's CLI sends:
// 2006-01-02 15:04:05 -0700 -07.
func parseExpiry(text string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if t, err := time.Parse("2006-01-02 15:04:05 -0700 -07", text); err == nil {
		return t, nil
	}
	return time.Parse("2006-01-02 15:04:05 -0700", strings.TrimSuffix(text, " UTC"))
}
