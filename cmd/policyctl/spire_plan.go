package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
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
	kind  string
	there []T
	here  []T
	key   func(T) string
	name  func(T) string
	plain func(T) T // without what no client sets
	// twin, if there is one, is equal for what a server takes for the same under
	// another key; as makes it the one with that key.
	twin func(T) string
	as   func(v T, key string) T
	note func(T) string

	create, update, remove batchCall[T]
}

// batchCall changes many at a server that answers with a status for each.
type batchCall[T proto.Message] func(context.Context, *grpc.ClientConn, []T) ([]*types.Status, error)

// importBatch is how many go in one call.
const importBatch = 500

// batch are changes that one call makes.
type batch struct {
	changes []int // in spireImport.Changes
	call    func(context.Context, *grpc.ClientConn) ([]*types.Status, error)
}

func (c *comparison[T]) run(r *spireImport, prune bool) {
	left, twins := map[string]T{}, map[string]string{}
	for _, v := range c.here {
		left[c.key(v)] = v
	}
	if c.twin != nil {
		byKey := map[string]bool{}
		for _, v := range c.there {
			byKey[c.key(v)] = true
		}
		for _, v := range c.here {
			if !byKey[c.key(v)] {
				twins[c.twin(v)] = c.key(v)
			}
		}
	}
	var creates, updates, removes pending[T]
	for _, v := range c.there {
		key := c.key(v)
		mine, exists := left[key]
		if !exists && c.twin != nil {
			if other, ok := twins[c.twin(v)]; ok {
				if mine, exists = left[other]; exists {
					key, v = other, c.as(v, other)
				}
			}
		}
		delete(left, key)
		change := spireChange{Kind: c.kind, ID: key, Name: c.name(v)}
		if c.note != nil {
			change.Note = c.note(v)
		}
		want := c.plain(v)
		switch {
		case !exists:
			change.Do = "create"
			creates.add(r, change, want)
		case proto.Equal(want, c.plain(mine)):
			r.Equal++
		default:
			change.Do, change.Fields = "update", differing(want, c.plain(mine))
			updates.add(r, change, want)
		}
	}
	only := slices.SortedFunc(maps.Values(left), func(a, b T) int {
		return cmp.Or(cmp.Compare(c.name(a), c.name(b)), cmp.Compare(c.key(a), c.key(b)))
	})
	for _, v := range only {
		change := spireChange{Do: "only-here", Kind: c.kind, ID: c.key(v), Name: c.name(v)}
		if !prune {
			r.Changes = append(r.Changes, change)
			continue
		}
		change.Do = "remove"
		removes.add(r, change, v)
	}
	creates.plan(r, c.create)
	updates.plan(r, c.update)
	removes.plan(r, c.remove)
}

// pending are changes of one kind, and what is changed.
type pending[T proto.Message] struct {
	changes []int
	values  []T
}

func (p *pending[T]) add(r *spireImport, change spireChange, v T) {
	p.changes, p.values = append(p.changes, len(r.Changes)), append(p.values, v)
	r.Changes = append(r.Changes, change)
}

func (p *pending[T]) plan(r *spireImport, call batchCall[T]) {
	for from := 0; from < len(p.values); from += importBatch {
		to := min(from+importBatch, len(p.values))
		r.batches = append(r.batches, batch{p.changes[from:to], func(ctx context.Context, conn *grpc.ClientConn) ([]*types.Status, error) {
			return call(ctx, conn, p.values[from:to])
		}})
	}
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
			slices.SortFunc(e.Selectors, compareSelectors)
			slices.Sort(e.FederatesWith)
			return e
		},
		twin: func(e *types.Entry) string {
			var key strings.Builder
			fmt.Fprintf(&key, "%q %q", idText(e.GetSpiffeId()), idText(e.GetParentId()))
			for _, s := range slices.SortedFunc(slices.Values(e.GetSelectors()), compareSelectors) {
				fmt.Fprintf(&key, " %q %q", s.GetType(), s.GetValue())
			}
			return key.String()
		},
		as: func(e *types.Entry, id string) *types.Entry {
			e = proto.CloneOf(e)
			e.Id = id
			return e
		},
		note: func(e *types.Entry) string {
			if e.GetStoreSvid() {
				return "store_svid: writ-agent stores no SVIDs; it gives this to no workload"
			}
			return ""
		},
		create: func(ctx context.Context, conn *grpc.ClientConn, entries []*types.Entry) ([]*types.Status, error) {
			resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: entries})
			return statuses(resp.GetResults(), err)
		},
		update: func(ctx context.Context, conn *grpc.ClientConn, entries []*types.Entry) ([]*types.Status, error) {
			resp, err := entryv1.NewEntryClient(conn).BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: entries})
			return statuses(resp.GetResults(), err)
		},
		remove: func(ctx context.Context, conn *grpc.ClientConn, entries []*types.Entry) ([]*types.Status, error) {
			req := &entryv1.BatchDeleteEntryRequest{}
			for _, e := range entries {
				req.Ids = append(req.Ids, e.GetId())
			}
			resp, err := entryv1.NewEntryClient(conn).BatchDeleteEntry(ctx, req)
			return statuses(resp.GetResults(), err)
		},
	}
	c.run(r, prune)
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
	set := func(ctx context.Context, conn *grpc.ClientConn, bundles []*types.Bundle) ([]*types.Status, error) {
		resp, err := bundlev1.NewBundleClient(conn).BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: bundles})
		return statuses(resp.GetResults(), err)
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
		remove: func(ctx context.Context, conn *grpc.ClientConn, bundles []*types.Bundle) ([]*types.Status, error) {
			resp, err := bundlev1.NewBundleClient(conn).BatchDeleteFederatedBundle(ctx, &bundlev1.BatchDeleteFederatedBundleRequest{
				TrustDomains: trustDomains(bundles), Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE,
			})
			return statuses(resp.GetResults(), err)
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
		create: func(ctx context.Context, conn *grpc.ClientConn, list []*types.FederationRelationship) ([]*types.Status, error) {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchCreateFederationRelationship(ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: list})
			return statuses(resp.GetResults(), err)
		},
		update: func(ctx context.Context, conn *grpc.ClientConn, list []*types.FederationRelationship) ([]*types.Status, error) {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchUpdateFederationRelationship(ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
				FederationRelationships: list,
				InputMask:               &types.FederationRelationshipMask{BundleEndpointUrl: true, BundleEndpointProfile: true},
			})
			return statuses(resp.GetResults(), err)
		},
		remove: func(ctx context.Context, conn *grpc.ClientConn, list []*types.FederationRelationship) ([]*types.Status, error) {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchDeleteFederationRelationship(ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: trustDomains(list)})
			return statuses(resp.GetResults(), err)
		},
	}).run(r, prune)
}

func trustDomains[T interface{ GetTrustDomain() string }](list []T) []string {
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = v.GetTrustDomain()
	}
	return names
}

func compareSelectors(a, b *types.Selector) int {
	return cmp.Or(cmp.Compare(a.GetType(), b.GetType()), cmp.Compare(a.GetValue(), b.GetValue()))
}

func statuses[T interface{ GetStatus() *types.Status }](results []T, err error) ([]*types.Status, error) {
	if err != nil {
		return nil, rpcError(err)
	}
	all := make([]*types.Status, len(results))
	for i, r := range results {
		all[i] = r.GetStatus()
	}
	return all, nil
}

// apply makes the planned changes, and notes what the server says to each.
// progress is told how many are done. A batch that fails as a whole fails all that
// are in it, and the next is tried all the same.
func (r *spireImport) apply(ctx context.Context, conn *grpc.ClientConn, progress func(done, of int)) {
	done, of := 0, 0
	for _, b := range r.batches {
		of += len(b.changes)
	}
	for _, b := range r.batches {
		results, err := b.call(ctx, conn)
		if err == nil && len(results) != len(b.changes) {
			err = fmt.Errorf("the server gave %d results for %d", len(results), len(b.changes))
		}
		for i, at := range b.changes {
			switch {
			case err != nil:
				r.Changes[at].Error = err.Error()
			case codes.Code(results[i].GetCode()) != codes.OK:
				r.Changes[at].Error = results[i].GetMessage()
			default:
				continue
			}
			r.Failed++
		}
		done += len(b.changes)
		progress(done, of)
	}
}
