package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/mesh"
)

// nodeName is the alias of the one node: entries hang on it, so that they
// outlive agents and their join tokens.
const nodeName = "local"

// tokenLife is how long a join token is good for. It is used at once.
const tokenLife = time.Minute

// newToken makes a join token and leaves it for the agent to read. An agent
// that is still known needs none, so that without a control plane it starts
// all the same.
func (u *upRun) newToken(ctx context.Context) error {
	alias, err := identity.NodeAlias(u.mesh.Domain(), nodeName)
	if err != nil {
		return err
	}
	token, err := agentv1.NewAgentClient(u.conn).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{
		Ttl: int32(tokenLife / time.Second), AgentId: protoID(alias),
	})
	if err != nil {
		u.view.warn("no join token for the agent: %v", rpcError(err))
		return nil
	}
	return writeFile(u.tokenFile(), []byte(token.GetValue()+"\n"))
}

func (u *upRun) dropToken() {
	if err := os.Remove(u.tokenFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		u.view.warn("the join token is still there: %v", err)
	}
}

func protoID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// entries makes the registry hold exactly one entry for each sidecar of the
// mesh. Others, made by hand, are left alone.
func (u *upRun) entries(ctx context.Context) error {
	alias, err := identity.NodeAlias(u.mesh.Domain(), nodeName)
	if err != nil {
		return err
	}
	client := entryv1.NewEntryClient(u.conn)
	have, err := listEntries(ctx, client, &entryv1.ListEntriesRequest_Filter{ByParentId: protoID(alias)})
	if err != nil {
		return fmt.Errorf("list entries: %w", rpcError(err))
	}
	var create []*types.Entry
	keep := map[string]bool{}
	for i := range u.mesh.Services {
		want := u.entry(&u.mesh.Services[i], alias)
		at := slices.IndexFunc(have, func(e *types.Entry) bool { return sameEntry(e, want) })
		if at < 0 {
			create = append(create, want)
			continue
		}
		keep[have[at].GetId()] = true
	}
	var stale []string
	for _, e := range have {
		if !keep[e.GetId()] && u.ours(e) {
			stale = append(stale, e.GetId())
		}
	}
	if len(stale) > 0 {
		resp, err := client.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: stale})
		if err != nil {
			return fmt.Errorf("delete entries: %w", rpcError(err))
		}
		for _, r := range resp.GetResults() {
			if c := codes.Code(r.GetStatus().GetCode()); c != codes.OK && c != codes.NotFound {
				return fmt.Errorf("delete entry %s: %s", r.GetId(), r.GetStatus().GetMessage())
			}
		}
	}
	if len(create) == 0 {
		return nil
	}
	resp, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: create})
	if err != nil {
		return fmt.Errorf("create entries: %w", rpcError(err))
	}
	for i, r := range resp.GetResults() {
		if c := codes.Code(r.GetStatus().GetCode()); c != codes.OK && c != codes.AlreadyExists {
			return fmt.Errorf("create entry for %s: %s", create[i].GetSpiffeId().GetPath(), r.GetStatus().GetMessage())
		}
	}
	return nil
}

// entry gives the service's SPIFFE ID to the processes of this user that run
// from the sidecar's own path.
func (u *upRun) entry(s *mesh.Service, parent spiffeid.ID) *types.Entry {
	return &types.Entry{
		SpiffeId: protoID(s.ID()),
		ParentId: protoID(parent),
		Selectors: []*types.Selector{
			{Type: "unix", Value: "path:" + u.dir.path("sidecars", s.Name, "writ-sidecar")},
			{Type: "unix", Value: fmt.Sprintf("uid:%d", os.Getuid())},
		},
		X509SvidTtl: int32(u.mesh.SVIDTTL / time.Second),
	}
}

// ours reports whether the entry is for a sidecar in this data directory.
func (u *upRun) ours(e *types.Entry) bool {
	return slices.ContainsFunc(e.GetSelectors(), func(s *types.Selector) bool {
		return s.GetType() == "unix" && strings.HasPrefix(s.GetValue(), "path:"+u.dir.path("sidecars")+string(filepath.Separator))
	})
}

func sameEntry(x, y *types.Entry) bool {
	return x.GetSpiffeId().GetPath() == y.GetSpiffeId().GetPath() && x.GetSpiffeId().GetTrustDomain() == y.GetSpiffeId().GetTrustDomain() &&
		x.GetX509SvidTtl() == y.GetX509SvidTtl() && slices.Equal(selectors(x), selectors(y))
}

func selectors(e *types.Entry) []string {
	var all []string
	for _, s := range e.GetSelectors() {
		all = append(all, s.GetType()+":"+s.GetValue())
	}
	slices.Sort(all)
	return all
}
