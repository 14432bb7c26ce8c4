package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// planImport compares two registrations. Bundles come first, because entries
// that federate need them.
func planImport(there, here *registration, prune bool) *spireImport {
	r := &spireImport{TrustDomain: there.trustDomain, Changes: []spireChange{}, Agents: []agentInfo{}}
	r.bundles(there, here, prune)
	r.relationships(there, here, prune)
	r.entries(there, here, prune)
	for _, pb := range there.agents {
		r.Agents = append(r.Agents, agentInfoFrom(pb))
	}
	return r
}

// comparison is one kind of thing on two servers.
type comparison[T proto.Message] struct {
	kind   string
	there  []T
	here   []T
	key    func(T) string
	name   func(T) string
	plain  func(T) T // without what no client sets
	create func(context.Context, *grpc.ClientConn, T) error
	update func(context.Context, *grpc.ClientConn, T) error
	remove func(context.Context, *grpc.ClientConn, T) error
}

func (c *comparison[T]) run(r *spireImport, prune bool) {
	left := map[string]T{}
	for _, v := range c.here {
		left[c.key(v)] = v
	}
	for _, v := range c.there {
		key := c.key(v)
		change := spireChange{Kind: c.kind, ID: key, Name: c.name(v)}
		mine, exists := left[key]
		delete(left, key)
		want := c.plain(v)
		switch {
		case !exists:
			change.Do = "create"
			change.apply = func(ctx context.Context, conn *grpc.ClientConn) error { return c.create(ctx, conn, want) }
		case proto.Equal(want, c.plain(mine)):
			r.Equal++
			continue
		default:
			change.Do, change.Fields = "update", differing(want, c.plain(mine))
			change.apply = func(ctx context.Context, conn *grpc.ClientConn) error { return c.update(ctx, conn, want) }
		}
		r.Changes = append(r.Changes, change)
	}
	var only []spireChange
	for key, v := range left {
		change := spireChange{Do: "only-here", Kind: c.kind, ID: key, Name: c.name(v)}
		if prune {
			change.Do = "remove"
			change.apply = func(ctx context.Context, conn *grpc.ClientConn) error { return c.remove(ctx, conn, v) }
		}
		only = append(only, change)
	}
	slices.SortFunc(only, func(a, b spireChange) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	r.Changes = append(r.Changes, only...)
}

// differing are the fields in which two messages of one type differ.
func differing(a, b proto.Message) []string {
	var names []string
	ra, rb := a.ProtoReflect(), b.ProtoReflect()
	fields := ra.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !sameField(ra, rb, f) {
			names = append(names, string(f.Name()))
		}
	}
	return names
}

func sameField(a, b protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	if a.Has(f) != b.Has(f) {
		return false
	}
	return !a.Has(f) || a.Get(f).Equal(b.Get(f))
}

func (r *spireImport) entries(there, here *registration, prune bool) {
	c := comparison[*types.Entry]{
		kind:  "entry",
		there: movable(there.entries), here: movable(here.entries),
		key:  func(e *types.Entry) string { return e.GetId() },
		name: func(e *types.Entry) string { return idText(e.GetSpiffeId()) },
		plain: func(e *types.Entry) *types.Entry {
			e = proto.CloneOf(e)
			e.CreatedAt, e.RevisionNumber = 0, 0
			slices.SortFunc(e.Selectors, func(a, b *types.Selector) int {
				return cmp.Or(cmp.Compare(a.GetType(), b.GetType()), cmp.Compare(a.GetValue(), b.GetValue()))
			})
			slices.Sort(e.FederatesWith)
			return e
		},
		create: createEntryOn, update: updateEntryOn, remove: removeEntryOn,
	}
	c.run(r, prune)
	for i := range r.Changes {
		if e := entryOf(c.there, &r.Changes[i]); e.GetStoreSvid() {
			r.Changes[i].Note = "store_svid: writ-agent stores no SVIDs; it gives this to no workload"
		}
	}
}

func entryOf(entries []*types.Entry, c *spireChange) *types.Entry {
	if c.Kind != "entry" || c.Do == "only-here" || c.Do == "remove" {
		return nil
	}
	for _, e := range entries {
		if e.GetId() == c.ID {
			return e
		}
	}
	return nil
}

// movable leaves out what a join token made: it hangs on an agent that is
// known to one server only, and comes anew with the token that the agent
// attests with.
func movable(entries []*types.Entry) []*types.Entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e *types.Entry) bool {
		parent := "spiffe_id:" + idText(e.GetParentId())
		for _, s := range e.GetSelectors() {
			if s.GetType()+":"+s.GetValue() == parent && strings.HasPrefix(e.GetParentId().GetPath(), "/spire/agent/join_token/") {
				return true
			}
		}
		return false
	})
}

func (r *spireImport) bundles(there, here *registration, prune bool) {
	set := func(ctx context.Context, conn *grpc.ClientConn, b *types.Bundle) error {
		resp, err := bundlev1.NewBundleClient(conn).BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{b}})
		return oneResult(resp.GetResults(), err)
	}
	(&comparison[*types.Bundle]{
		kind: "bundle", there: there.bundles, here: here.bundles,
		key:  func(b *types.Bundle) string { return b.GetTrustDomain() },
		name: func(b *types.Bundle) string { return b.GetTrustDomain() },
		plain: func(b *types.Bundle) *types.Bundle {
			b = proto.CloneOf(b)
			b.SequenceNumber = 0
			for _, a := range b.X509Authorities {
				a.Tainted = false
			}
			for _, k := range b.JwtAuthorities {
				k.Tainted = false
			}
			slices.SortFunc(b.X509Authorities, func(a, c *types.X509Certificate) int { return slices.Compare(a.GetAsn1(), c.GetAsn1()) })
			slices.SortFunc(b.JwtAuthorities, func(a, c *types.JWTKey) int { return cmp.Compare(a.GetKeyId(), c.GetKeyId()) })
			return b
		},
		create: set, update: set,
		remove: func(ctx context.Context, conn *grpc.ClientConn, b *types.Bundle) error {
			resp, err := bundlev1.NewBundleClient(conn).BatchDeleteFederatedBundle(ctx, &bundlev1.BatchDeleteFederatedBundleRequest{
				TrustDomains: []string{b.GetTrustDomain()}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE,
			})
			return oneResult(resp.GetResults(), err)
		},
	}).run(r, prune)
}

func (r *spireImport) relationships(there, here *registration, prune bool) {
	(&comparison[*types.FederationRelationship]{
		kind: "relationship", there: there.relationships, here: here.relationships,
		key:  func(f *types.FederationRelationship) string { return f.GetTrustDomain() },
		name: func(f *types.FederationRelationship) string { return f.GetTrustDomain() },
		plain: func(f *types.FederationRelationship) *types.FederationRelationship {
			f = proto.CloneOf(f)
			f.TrustDomainBundle = nil // moved as a bundle
			return f
		},
		create: func(ctx context.Context, conn *grpc.ClientConn, f *types.FederationRelationship) error {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchCreateFederationRelationship(ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: []*types.FederationRelationship{f}})
			return oneResult(resp.GetResults(), err)
		},
		update: func(ctx context.Context, conn *grpc.ClientConn, f *types.FederationRelationship) error {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchUpdateFederationRelationship(ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
				FederationRelationships: []*types.FederationRelationship{f},
				InputMask:               &types.FederationRelationshipMask{BundleEndpointUrl: true, BundleEndpointProfile: true},
			})
			return oneResult(resp.GetResults(), err)
		},
		remove: func(ctx context.Context, conn *grpc.ClientConn, f *types.FederationRelationship) error {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchDeleteFederationRelationship(ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{f.GetTrustDomain()}})
			return oneResult(resp.GetResults(), err)
		},
	}).run(r, prune)
}

func createEntryOn(ctx context.Context, conn *grpc.ClientConn, e *types.Entry) error {
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err == nil && len(resp.GetResults()) == 1 && codes.Code(resp.GetResults()[0].GetStatus().GetCode()) == codes.AlreadyExists {
		return fmt.Errorf("entry %s here has the same SPIFFE ID, parent and selectors under another ID", resp.GetResults()[0].GetEntry().GetId())
	}
	return oneResult(resp.GetResults(), err)
}

func updateEntryOn(ctx context.Context, conn *grpc.ClientConn, e *types.Entry) error {
	resp, err := entryv1.NewEntryClient(conn).BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}})
	return oneResult(resp.GetResults(), err)
}

func removeEntryOn(ctx context.Context, conn *grpc.ClientConn, e *types.Entry) error {
	resp, err := entryv1.NewEntryClient(conn).BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{e.GetId()}})
	return oneResult(resp.GetResults(), err)
}

// oneResult is the error of a batch of one.
func oneResult[T interface{ GetStatus() *types.Status }](results []T, err error) error {
	if err != nil {
		return rpcError(err)
	}
	if len(results) != 1 {
		return errors.New("the server gave no result")
	}
	if s := results[0].GetStatus(); codes.Code(s.GetCode()) != codes.OK {
		return errors.New(s.GetMessage())
	}
	return nil
}
