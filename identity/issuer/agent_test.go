package issuer_test

import (
	"bytes"
	"crypto/tls"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/registry"
)

// What a stock agent calls, in its order.
func TestAgentLife(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	token := w.token("/node/laptop")
	made := w.create(entry("/svc/web", "/node/laptop", "uid:1000"))

	a := w.join(token)
	if want := "spiffe://example.org/spire/agent/join_token/" + token; a.id.String() != want {
		t.Fatalf("agent ID %s, want %s", a.id, want)
	}
	if _, err := a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{}); err != nil {
		t.Fatal(err)
	}
	list, err := a.entries().GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{})
	must(t, err)
	var paths []string
	for _, e := range list.Entries {
		paths = append(paths, e.SpiffeId.Path)
		if e.Id == "" || len(e.Selectors) == 0 || e.CreatedAt == 0 {
			t.Errorf("entry lacks what agents need: %v", e)
		}
		if e.SpiffeId.Path == "/node/laptop" {
			want := []*types.Selector{{Type: "spiffe_id", Value: a.id.String()}}
			if len(e.Selectors) != 1 || e.Selectors[0].Type != want[0].Type || e.Selectors[0].Value != want[0].Value || e.ParentId.Path != a.id.Path() {
				t.Errorf("alias entry is %v", e)
			}
		}
	}
	if len(paths) != 2 {
		t.Fatalf("authorized for %v, want the alias and /svc/web", paths)
	}
	key := newKey(t)
	svids, err := a.svids().BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{
		{EntryId: made[0].Id, Csr: csr(t, key, "spiffe://example.org/svc/web")},
	}})
	must(t, err)
	if svids.Results[0].Status == nil || svids.Results[0].Status.Code != 0 || svids.Results[0].Svid.Id.Path != "/svc/web" {
		t.Fatalf("result %v", svids.Results[0])
	}
	if got := len(w.did("x509-svid", "issued")); got < 2 { // the listener's own, and this
		t.Errorf("%d X509-SVIDs on record", got)
	}
	// The bundle is there for anyone, before attestation too.
	anon := w.dial(nil)
	defer anon.Close()
	b, err := bundlev1.NewBundleClient(anon).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	must(t, err)
	if len(b.X509Authorities) != 1 || len(b.JwtAuthorities) != 1 || b.JwtAuthorities[0].KeyId == "" || b.SequenceNumber == 0 || b.RefreshHint == 0 {
		t.Errorf("bundle %v", b)
	}
	health, err := healthv1.NewHealthClient(anon).Check(ctx, &healthv1.HealthCheckRequest{})
	must(t, err)
	if health.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health is %v", health.Status)
	}
	watched, err := healthv1.NewHealthClient(anon).Watch(ctx, &healthv1.HealthCheckRequest{})
	must(t, err)
	// Not serving is what it says until it has asked itself.
	for health.Status = healthv1.HealthCheckResponse_UNKNOWN; health.Status != healthv1.HealthCheckResponse_SERVING; {
		health, err = watched.Recv()
		must(t, err)
	}
}

func TestRenewActivatesOnFirstUse(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := w.join(w.token(""))
	old := *a
	old.conn = w.dial(&old)
	defer old.conn.Close()

	key := newKey(t)
	renewed, err := a.agents().RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, key, "")}})
	must(t, err)
	if renewed.Svid == nil {
		t.Fatal("renewal without an SVID")
	}
	// Not used yet: the old one still works.
	_, err = old.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	a.adopt(renewed.Svid, key)
	_, err = a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	_, err = old.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
	if got := len(w.did("agent", "renewed")); got != 1 {
		t.Errorf("%d renewals on record", got)
	}
	got, err := w.agents().GetAgent(ctx, &agentv1.GetAgentRequest{Id: id(a.id.Path())})
	must(t, err)
	if got.X509SvidSerialNumber != a.cert.SerialNumber.String() || got.X509SvidExpiresAt != a.cert.NotAfter.Unix() {
		t.Errorf("registry has serial %s, agent %s", got.X509SvidSerialNumber, a.cert.SerialNumber)
	}
}

func TestJoinTokenIsUsedOnce(t *testing.T) {
	w := newWorld(t)
	token := w.token("/node/n1")
	w.join(token)
	_, err := w.tryJoin(token)
	wantCode(t, err, codes.InvalidArgument)
	alarms := w.did("token", "reused")
	if len(alarms) != 1 || alarms[0].Kind != identity.ActAlarm || !alarms[0].Failed || !strings.HasPrefix(alarms[0].Actor, "ip:127.0.0.1") {
		t.Fatalf("alarms %+v", alarms)
	}
	for _, bad := range []string{"", "no-such-token-was-ever-made", "../../admin", "a/b", strings.Repeat("a", 300)} {
		_, err := w.tryJoin(bad)
		wantCode(t, err, codes.InvalidArgument)
	}
	late := w.token("")
	w.clock.advance(10*time.Minute + time.Second)
	_, err = w.tryJoin(late)
	wantCode(t, err, codes.InvalidArgument)
	var reasons []string
	for _, a := range w.did("agent", "attested") {
		if a.Failed {
			reasons = append(reasons, a.Reason)
		}
		for _, d := range a.Details {
			if strings.Contains(d[1], late) {
				t.Error("an unused token is on record")
			}
		}
	}
	if n := len(reasons); n != 6 || reasons[n-1] != "join token expired" {
		t.Errorf("refusals on record: %q", reasons)
	}
}

func TestJoinTokenRace(t *testing.T) {
	w := newWorld(t)
	token := w.token("/node/n1")
	var joined atomic.Int32
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if _, err := w.tryJoin(token); err == nil {
				joined.Add(1)
			}
		})
	}
	wg.Wait()
	if joined.Load() != 1 {
		t.Fatalf("one token attested %d agents", joined.Load())
	}
	if got := len(w.did("token", "reused")); got != 11 {
		t.Errorf("%d alarms, want 11", got)
	}
	if got := len(w.did("token", "used")); got != 1 {
		t.Errorf("%d uses on record", got)
	}
}

// A refused CSR must not cost the token.
func TestBadCSRKeepsToken(t *testing.T) {
	w := newWorld(t)
	token := w.token("")
	conn := w.dial(nil)
	defer conn.Close()
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(t.Context())
	must(t, err)
	must(t, stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token)},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, newKey(t), "spiffe://example.org/spire/server")},
	}}}))
	_, err = stream.Recv()
	wantCode(t, err, codes.InvalidArgument)
	w.join(token)
}

func TestTokenAtRestIsHashed(t *testing.T) {
	w := newWorld(t)
	token := w.token("/node/n1")
	hash := registry.HashToken(token)
	hashed := false
	for _, file := range []string{w.file, w.file + "-wal"} {
		content, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte(token)) {
			t.Errorf("%s holds the token", file)
		}
		hashed = hashed || bytes.Contains(content, hash[:])
	}
	if !hashed {
		t.Error("the token's hash is not in the database either")
	}
	if len(token) < 22 {
		t.Fatalf("token %q is short", token)
	}
	w.mu.Lock()
	for _, a := range w.acts {
		if strings.Contains(a.ObjectID, token) {
			t.Error("the token is on record")
		}
	}
	w.mu.Unlock()
	for _, e := range w.store.Index().Entries() {
		if strings.Contains(e.ParentID.String(), token) {
			t.Error("an entry holds the token before it was used")
		}
	}
	_, err := w.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Token: "short"})
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Token: strings.Repeat("a/", 20)})
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Token: token})
	wantCode(t, err, codes.AlreadyExists)
	_, err = w.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: -1})
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 30*24*3600 + 1})
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.agents().CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{AgentId: id("/spire/server")})
	wantCode(t, err, codes.InvalidArgument)
}

func TestBanAndEvict(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := w.join(w.token("/node/a"))
	_, err := w.agents().BanAgent(ctx, &agentv1.BanAgentRequest{Id: id(a.id.Path())})
	must(t, err)
	_, err = a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_BANNED)
	_, err = a.agents().RenewAgent(ctx, &agentv1.RenewAgentRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_BANNED)

	// A ban outlives the SVID.
	w.clock.advance(3 * time.Hour)
	must(t, w.issuer.Prune(ctx))
	banned, err := w.agents().GetAgent(ctx, &agentv1.GetAgentRequest{Id: id(a.id.Path())})
	must(t, err)
	if !banned.Banned {
		t.Error("the ban is gone")
	}
	_, err = w.agents().DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id(a.id.Path())})
	must(t, err)
	_, err = w.agents().DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id(a.id.Path())})
	wantCode(t, err, codes.NotFound)
	if n := len(w.store.Index().Entries()); n != 0 {
		t.Errorf("%d entries are left of an evicted agent", n)
	}

	b := w.join(w.token(""))
	_, err = w.agents().DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id(b.id.Path())})
	must(t, err)
	_, err = b.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED)
	for verb, n := range map[string]int{"banned": 1, "deleted": 2} {
		if got := len(w.did("agent", verb)); got != n {
			t.Errorf("%d agents %s on record, want %d", got, verb, n)
		}
	}
	_, err = w.agents().BanAgent(ctx, &agentv1.BanAgentRequest{Id: id("/svc/web")})
	wantCode(t, err, codes.InvalidArgument)
}

func TestExpiredAgents(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := w.join(w.token("/node/a"))
	_, err := a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	w.clock.advance(time.Hour + time.Second)
	// The connection is from before; the call is refused all the same.
	_, err = a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_EXPIRED)
	// It is kept for a day, in case it was the clock.
	must(t, w.issuer.Prune(ctx))
	w.clock.advance(-time.Hour)
	_, err = a.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	w.clock.advance(25 * time.Hour)
	must(t, w.issuer.Prune(ctx))
	if agents, entries := w.store.Index().Agents(), w.store.Index().Entries(); len(agents)+len(entries) != 0 {
		t.Errorf("left over: %v %v", agents, entries)
	}
	if len(w.did("agent", "expired")) != 1 || len(w.did("entry", "deleted")) != 1 {
		t.Error("pruning is not on record")
	}
	// A new connection does not even complete its handshake.
	raw, err := net.Dial("tcp", w.addr)
	must(t, err)
	defer raw.Close()
	conn := tls.Client(raw, w.clientTLS(a))
	if err := conn.Handshake(); err == nil {
		if _, err = conn.Read(make([]byte, 64)); err == nil {
			_, err = conn.Read(make([]byte, 64))
		}
		if err == nil {
			t.Error("an expired SVID was let in")
		}
	}
}

func TestListAgents(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	var all []*agent
	for range 5 {
		all = append(all, w.join(w.token("")))
	}
	_, err := w.agents().BanAgent(ctx, &agentv1.BanAgentRequest{Id: id(all[2].id.Path())})
	must(t, err)
	var seen []string
	token := ""
	for {
		page, err := w.agents().ListAgents(ctx, &agentv1.ListAgentsRequest{PageSize: 2, PageToken: token, OutputMask: &types.AgentMask{Banned: true}})
		must(t, err)
		for _, a := range page.Agents {
			seen = append(seen, a.Id.Path)
			if a.AttestationType != "" || a.X509SvidSerialNumber != "" {
				t.Error("mask was not applied")
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if len(seen) != 5 {
		t.Errorf("saw %d agents", len(seen))
	}
	for _, c := range []struct {
		filter *agentv1.CountAgentsRequest_Filter
		want   int32
	}{
		{nil, 5},
		{&agentv1.CountAgentsRequest_Filter{ByAttestationType: "join_token"}, 5},
		{&agentv1.CountAgentsRequest_Filter{ByAttestationType: "x509pop"}, 0},
		{&agentv1.CountAgentsRequest_Filter{ByExpiresBefore: "2006-01-02 15:04:05 -0700 -07"}, 0},
		{&agentv1.CountAgentsRequest_Filter{ByExpiresBefore: "2100-01-01T00:00:00Z"}, 5},
	} {
		n, err := w.agents().CountAgents(ctx, &agentv1.CountAgentsRequest{Filter: c.filter})
		must(t, err)
		if n.Count != c.want {
			t.Errorf("%v: %d, want %d", c.filter, n.Count, c.want)
		}
	}
	_, err = w.agents().CountAgents(ctx, &agentv1.CountAgentsRequest{Filter: &agentv1.CountAgentsRequest_Filter{ByExpiresBefore: "soon"}})
	wantCode(t, err, codes.InvalidArgument)
}

// Whatever cannot be put on record does not happen.
func TestEmitFailureFailsTheCall(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	token := w.token("/node/a")
	a := w.join(token)
	made := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	second := w.token("")
	before, _ := w.store.Index().Revision()

	w.refuseActs(func(identity.Act) bool { return true })
	_, err := w.agents().CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{})
	wantCode(t, err, codes.Unavailable)
	_, err = w.entries().BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{entry("/svc/x", "/node/a", "uid:2")}})
	wantCode(t, err, codes.Unavailable)
	_, err = w.entries().BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{made.Id}})
	wantCode(t, err, codes.Unavailable)
	_, err = w.agents().BanAgent(ctx, &agentv1.BanAgentRequest{Id: id(a.id.Path())})
	wantCode(t, err, codes.Unavailable)
	_, err = a.svids().BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: made.Id, Csr: csr(t, newKey(t), "")}}})
	wantCode(t, err, codes.Unavailable)
	_, err = a.svids().NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: made.Id, Audience: []string{"x"}})
	wantCode(t, err, codes.Unavailable)
	_, err = w.tryJoin(second)
	wantCode(t, err, codes.Unavailable)
	if now, _ := w.store.Index().Revision(); now != before {
		t.Errorf("the registry went from revision %d to %d", before, now)
	}
	// The token was not used up, and what was recorded halfway is taken back.
	w.refuseActs(func(act identity.Act) bool { return act.Verb == "attested" && !act.Failed })
	_, err = w.tryJoin(second)
	wantCode(t, err, codes.Unavailable)
	used := w.did("token", "used")
	if last := used[len(used)-1]; !last.Failed {
		t.Error("a rolled-back use of a token stands on record as done")
	}
	w.refuseActs(nil)
	w.join(second)
}

func TestAttestationLimit(t *testing.T) {
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) { c.AttestPerSecond, c.AttestBurst = 0.0001, 3 })
	var limited int
	for range 5 {
		_, err := w.tryJoin("no-such-token-was-ever-made")
		if err == nil {
			t.Fatal("joined")
		}
		if status.Code(err) == codes.ResourceExhausted {
			limited++
		}
	}
	if limited != 2 {
		t.Errorf("%d of 5 attempts were limited, want 2", limited)
	}
}
