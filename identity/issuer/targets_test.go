package issuer_test

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/templatev1"
)

func TestTargets(t *testing.T) {
	w := newWorld(t)
	made := w.create(entry("/svc/a", "/node/one", "uid:1"))[0]
	below := entry("/svc/c", "/node/one", "uid:1")
	below.Downstream = true
	issuing := w.create(below)[0]
	tmpl := w.createTemplate(&templatev1.Template{SpiffeId: "spiffe://example.org/user/{unix:user}", ParentId: "spiffe://example.org/node/one"})
	id := func(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: td.Name(), Path: path} }
	const a, b, c, node = "spiffe://example.org/svc/a", "spiffe://example.org/svc/b", "spiffe://example.org/svc/c", "spiffe://example.org/node/one"
	for name, tt := range map[string]struct {
		req              any
		targets, parents []string
	}{
		"create":           {&entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{SpiffeId: id("/svc/b"), ParentId: id("/node/one")}}}, []string{b}, []string{node}},
		"create nothing":   {&entryv1.BatchCreateEntryRequest{}, []string{"/"}, nil},
		"create nameless":  {&entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{}}}, []string{"/"}, []string{"/"}},
		"rename":           {&entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{{Id: made.Id, SpiffeId: id("/svc/b")}}}, []string{a, b}, []string{node}},
		"administrator":    {&entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{SpiffeId: id("/svc/b"), ParentId: id("/node/one"), Admin: true}}}, []string{b, "/"}, []string{node}},
		"downstream":       {&entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{SpiffeId: id("/svc/b"), ParentId: id("/node/one"), Downstream: true}}}, []string{b, "/"}, []string{node}},
		"promote":          {&entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{{Id: made.Id, Admin: true}}, InputMask: &types.EntryMask{Admin: true}}, []string{a, "/"}, []string{node}},
		"take over":        {&entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{{Id: issuing.Id}}, InputMask: &types.EntryMask{Selectors: true}}, []string{c, "/"}, []string{node}},
		"delete issuing":   {&entryv1.BatchDeleteEntryRequest{Ids: []string{issuing.Id}}, []string{c, "/"}, []string{node}},
		"get issuing":      {&entryv1.GetEntryRequest{Id: issuing.Id}, []string{c}, []string{node}},
		"delete":           {&entryv1.BatchDeleteEntryRequest{Ids: []string{made.Id}}, []string{a}, []string{node}},
		"delete unknown":   {&entryv1.BatchDeleteEntryRequest{Ids: []string{made.Id, "?"}}, []string{a, "/"}, []string{node}},
		"get":              {&entryv1.GetEntryRequest{Id: made.Id}, []string{a}, []string{node}},
		"list":             {&entryv1.ListEntriesRequest{}, []string{"/"}, nil},
		"list some":        {&entryv1.ListEntriesRequest{Filter: &entryv1.ListEntriesRequest_Filter{BySpiffeId: id("/svc/a")}}, []string{a}, nil},
		"list by parent":   {&entryv1.ListEntriesRequest{Filter: &entryv1.ListEntriesRequest_Filter{ByParentId: id("/node/one")}}, []string{"/"}, nil},
		"ban":              {&agentv1.BanAgentRequest{Id: id("/spire/agent/x")}, []string{"spiffe://example.org/spire/agent/x"}, nil},
		"token":            {&agentv1.CreateJoinTokenRequest{AgentId: id("/node/one")}, []string{node}, nil},
		"token, no alias":  {&agentv1.CreateJoinTokenRequest{}, []string{"/"}, nil},
		"mint a JWT":       {&svidv1.MintJWTSVIDRequest{Id: id("/svc/a")}, []string{a}, nil},
		"mint by bad CSR":  {&svidv1.MintX509SVIDRequest{Csr: []byte("x")}, []string{"/"}, nil},
		"something else":   {&bundlev1.CountBundlesRequest{}, []string{"/"}, nil},
		"no request known": {nil, []string{"/"}, nil},
		"template":         {&templatev1.CreateRequest{Template: &templatev1.Template{SpiffeId: "spiffe://example.org/app/{k8s:pod-label:a/b}/{x:y}", ParentId: node}}, []string{"spiffe://example.org/app/{}/{}"}, []string{node}},
		"no template":      {&templatev1.CreateRequest{Template: &templatev1.Template{SpiffeId: "spiffe://example.org/{x:y}/a", ParentId: "?"}}, []string{"/"}, []string{"/"}},
		"update template":  {&templatev1.UpdateRequest{Template: &templatev1.Template{Id: tmpl.Id, SpiffeId: "spiffe://example.org/b/{x:y}", ParentId: node}}, []string{"spiffe://example.org/user/{}", "spiffe://example.org/b/{}"}, []string{node, node}},
		"delete template":  {&templatev1.DeleteRequest{Id: tmpl.Id}, []string{"spiffe://example.org/user/{}"}, []string{node}},
		"unknown template": {&templatev1.GetRequest{Id: "?"}, []string{"/"}, nil},
		"list templates":   {&templatev1.ListRequest{}, []string{"/"}, nil},
	} {
		targets, parents := w.issuer.Targets(tt.req)
		if diff := cmp.Diff(tt.targets, targets) + cmp.Diff(tt.parents, parents); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// What an entry marked admin may do is a matter of the admin policy, where there
// is one; what its holder may do as an agent is not.
func TestAdminPolicyRestricts(t *testing.T) {
	var asked []string
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) {
		c.AdminPolicy = func(_ context.Context, id spiffeid.ID, method string, _ any) error {
			asked = append(asked, id.Path()+" "+method)
			if method == entryv1.Entry_ListEntries_FullMethodName {
				return nil
			}
			return status.Error(codes.PermissionDenied, "no")
		}
	})
	e := entry("/people/ann", "/node/one", "uid:1")
	e.Admin = true
	w.create(e)
	operator := w.asWorkload(t, "/people/ann").conn
	if _, err := entryv1.NewEntryClient(operator).ListEntries(t.Context(), &entryv1.ListEntriesRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := agentv1.NewAgentClient(operator).ListAgents(t.Context(), &agentv1.ListAgentsRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("list agents: %v", err)
	}
	if _, err := entryv1.NewEntryClient(operator).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("as an agent: %v", err)
	}
	if _, err := w.agents().ListAgents(t.Context(), &agentv1.ListAgentsRequest{}); err != nil {
		t.Errorf("on the socket: %v", err)
	}
	want := []string{"/people/ann " + entryv1.Entry_ListEntries_FullMethodName, "/people/ann " + agentv1.Agent_ListAgents_FullMethodName}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Error(diff)
	}
}

// A method of administrators that streams is no way around the policy: it is asked
// before anything is read.
func TestAdminPolicyRestrictsStreams(t *testing.T) {
	const allowed, refused = "/test.Allowed/Follow", "/test.Refused/Follow"
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) {
		c.AdminPolicy = func(_ context.Context, id spiffeid.ID, method string, req any) error {
			if method == allowed && id.Path() == "/people/ann" && req == nil {
				return nil
			}
			return status.Error(codes.PermissionDenied, "the policy says no")
		}
	})
	e := entry("/people/ann", "/node/one", "uid:1")
	e.Admin = true
	w.create(e)
	server := grpc.NewServer(w.issuer.ServerOptions()...)
	var reached atomic.Int64
	for _, service := range []string{"test.Allowed", "test.Refused"} {
		w.issuer.RegisterAdminStream(server, issuer.TLSCaller, service, "Follow", func(any, grpc.ServerStream) error {
			reached.Add(1)
			return nil
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w.addr = l.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	call := func(conn *grpc.ClientConn, method string) error {
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
		must(t, err)
		return stream.RecvMsg(&emptypb.Empty{})
	}
	ann, bob := w.asWorkload(t, "/people/ann").conn, w.asWorkload(t, "/people/bob").conn
	if err := call(ann, allowed); err != io.EOF {
		t.Errorf("what the policy allows: %v", err)
	}
	for name, err := range map[string]error{"what it does not": call(ann, refused), "no administrator": call(bob, allowed)} {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := reached.Load(); n != 1 {
		t.Errorf("%d calls were answered, want 1", n)
	}
}
