package issuer_test

import (
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/sqldb"
)

func (w *world) revoking() revocationv1.AdminClient { return revocationv1.NewAdminClient(w.admin) }

func revokeID(id spiffeid.ID) *revocationv1.RevokeRequest {
	return &revocationv1.RevokeRequest{Revocation: &revocationv1.Revocation{Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: id.String()}, Reason: "stolen"}}
}

func revokeSerial(serial string) *revocationv1.RevokeRequest {
	return &revocationv1.RevokeRequest{Revocation: &revocationv1.Revocation{Subject: &revocationv1.Revocation_Serial{Serial: serial}}}
}

func revokeAgent(id string) *revocationv1.RevokeRequest {
	return &revocationv1.RevokeRequest{Revocation: &revocationv1.Revocation{Subject: &revocationv1.Revocation_Agent{Agent: id}}}
}

// issue gets an X509-SVID and a JWT-SVID of an entry.
func (a *agent) issue(entryID string) (*x509.Certificate, *jwtsvid.SVID) {
	t := a.w.t
	t.Helper()
	resp, err := a.svids().BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: entryID, Csr: csr(t, newKey(t), "")}}})
	must(t, err)
	if code := resp.Results[0].Status.Code; code != 0 {
		t.Fatal(resp.Results[0].Status)
	}
	cert, err := x509.ParseCertificate(resp.Results[0].Svid.CertChain[0])
	must(t, err)
	token, err := a.svids().NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: entryID, Audience: []string{"db"}})
	must(t, err)
	svid, err := jwtsvid.ParseInsecure(token.Svid.Token, []string{"db"})
	must(t, err)
	return cert, svid
}

func jwtRevoked(list *revocation.List, s *jwtsvid.SVID) bool {
	jti, _ := s.Claims["jti"].(string)
	iat, _ := s.Claims["iat"].(float64)
	return list.JWT(s.ID, jti, time.Unix(int64(iat), 0)) != nil
}

// What is revoked is what was issued before, by name, by agent and by serial
// number; what is issued from then on, in the same second too, is not.
func TestRevoke(t *testing.T) {
	w := newWorld(t)
	a, b := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	web := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	orders := w.create(entry("/svc/orders", "/node/a", "uid:2"))[0]
	other := w.create(entry("/svc/web", "/node/b", "uid:1"))[0]
	webID := spiffeid.RequireFromString("spiffe://example.org/svc/web")
	for _, c := range []struct {
		name string
		req  func(cert *x509.Certificate) *revocationv1.RevokeRequest
		// Which of web and orders at agent A, and web at B, are revoked.
		web, orders, other bool
	}{
		{"spiffe id", func(*x509.Certificate) *revocationv1.RevokeRequest { return revokeID(webID) }, true, false, true},
		{"agent", func(*x509.Certificate) *revocationv1.RevokeRequest { return revokeAgent(a.id.String()) }, true, true, false},
		{"serial", func(c *x509.Certificate) *revocationv1.RevokeRequest { return revokeSerial(c.SerialNumber.String()) }, true, false, false},
		{"serial, as openssl writes it", func(c *x509.Certificate) *revocationv1.RevokeRequest {
			return revokeSerial("0x" + c.SerialNumber.Text(16))
		}, true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			type issued struct {
				cert *x509.Certificate
				jwt  *jwtsvid.SVID
				id   spiffeid.ID
			}
			issue := func() (all [3]issued) {
				for n, from := range []struct {
					agent *agent
					entry *types.Entry
				}{{a, web}, {a, orders}, {b, other}} {
					cert, jwt := from.agent.issue(from.entry.Id)
					all[n] = issued{cert, jwt, spiffeid.RequireFromURI(cert.URIs[0])}
				}
				return all
			}
			before := issue()
			resp, err := w.revoking().Revoke(t.Context(), c.req(before[0].cert))
			must(t, err)
			after := issue()
			list, _ := w.issuer.Revocations().Now()
			for n, want := range []bool{c.web, c.orders, c.other} {
				if got := list.X509(before[n].cert, before[n].id) != nil; got != want {
					t.Errorf("%d: X509-SVID revoked: %v", n, got)
				}
				if got := jwtRevoked(list, before[n].jwt); got != (want && !strings.HasPrefix(c.name, "serial")) {
					t.Errorf("%d: JWT-SVID revoked: %v", n, got)
				}
				if list.X509(after[n].cert, after[n].id) != nil || jwtRevoked(list, after[n].jwt) {
					t.Errorf("%d: what was issued afterwards is revoked", n)
				}
				if now := w.clock.now(); after[n].cert.NotBefore.After(now) {
					t.Errorf("%d: valid only from %v, and it is %v", n, after[n].cert.NotBefore, now)
				}
			}
			if r := resp.Revocation; r.Number == 0 || r.ExpiresAt < before[0].cert.NotAfter.Unix() || r.Actor != "unix:uid:1000" {
				t.Errorf("answer %v", r)
			}
			// The JWT-SVID by its own number.
			jti := before[0].jwt.Claims["jti"].(string)
			_, err = w.revoking().Revoke(t.Context(), revokeSerial(jti))
			must(t, err)
			if list, _ := w.issuer.Revocations().Now(); !jwtRevoked(list, before[0].jwt) {
				t.Error("a JWT-SVID is not revoked by its jti")
			}
		})
	}
	if got := len(w.did("svid", "revoked")); got != 8 {
		t.Errorf("%d revocations on record", got)
	}
	listed, err := w.revoking().List(t.Context(), &revocationv1.ListRequest{})
	must(t, err)
	if len(listed.Revocations) < 6 || listed.Revocations[0].Number > listed.Revocations[1].Number {
		t.Errorf("listed %v", listed.Revocations)
	}
}

func TestRevokeRefuses(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	for _, c := range []struct {
		req  *revocationv1.RevokeRequest
		code codes.Code
		says string
	}{
		{&revocationv1.RevokeRequest{}, codes.InvalidArgument, "serial, spiffe_id or agent"},
		{revokeSerial("zz"), codes.InvalidArgument, "not a serial number"},
		{revokeID(spiffeid.RequireFromString("spiffe://elsewhere.org/x")), codes.InvalidArgument, "only its own issuer"},
		{revokeID(spiffeid.RequireFromString("spiffe://example.org")), codes.InvalidArgument, "replace its authorities"},
		{revokeID(a.id), codes.InvalidArgument, "ban it"},
		{revokeAgent("spiffe://example.org/svc/web"), codes.InvalidArgument, "begins with /spire/agent/"},
		{revokeAgent("spiffe://example.org/spire/agent/join_token/none"), codes.NotFound, "is not known"},
	} {
		_, err := w.revoking().Revoke(t.Context(), c.req)
		wantCode(t, err, c.code)
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v does not say %q", err, c.says)
		}
	}
	// Agents and strangers may not.
	_, err := revocationv1.NewAdminClient(a.conn).Revoke(t.Context(), revokeSerial("7"))
	wantCode(t, err, codes.PermissionDenied)
	// What cannot be recorded is not done.
	w.refuseActs(func(act identity.Act) bool { return act.Verb == "revoked" })
	_, err = w.revoking().Revoke(t.Context(), revokeSerial("7"))
	wantCode(t, err, codes.Unavailable)
	_, err = w.agents().BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: &types.SPIFFEID{TrustDomain: td.Name(), Path: a.id.Path()}})
	wantCode(t, err, codes.Unavailable)
	if list, _ := w.issuer.Revocations().Now(); list.Len() != 0 {
		t.Errorf("%v", list.All())
	}
}

// Banning an agent revokes what was issued through it.
func TestBanRevokes(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	web := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	cert, jwt := a.issue(web.Id)
	_, err := w.agents().BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: &types.SPIFFEID{TrustDomain: td.Name(), Path: a.id.Path()}})
	must(t, err)
	list, _ := w.issuer.Revocations().Now()
	if list.X509(cert, spiffeid.RequireFromURI(cert.URIs[0])) == nil || !jwtRevoked(list, jwt) {
		t.Error("what was issued through the agent is still good")
	}
	if acts := w.did("svid", "revoked"); len(acts) != 1 || acts[0].ObjectID != a.id.String() {
		t.Errorf("on record: %v", acts)
	}
}

// A revocation survives the process, and is forgotten with the last SVID it
// could concern.
func TestRevocationsAreKept(t *testing.T) {
	w := newWorld(t)
	_, err := w.revoking().Revoke(t.Context(), revokeID(spiffeid.RequireFromString("spiffe://example.org/svc/web")))
	must(t, err)
	open := func() *revocation.List {
		t.Helper()
		db, err := sqldb.OpenSQLite(t.Context(), filepath.Clean(w.file))
		must(t, err)
		defer db.Close()
		store, err := sqlstore.Open(t.Context(), db, w.storeConfig(filepath.Dir(w.file)))
		must(t, err)
		list, _ := store.Revocations().Now()
		return list
	}
	list, _ := w.issuer.Revocations().Now()
	if got := open(); got.Len() != 1 || *got.All()[0] != *list.All()[0] {
		t.Errorf("kept %v, want %v", got.All(), list.All())
	}
	must(t, w.issuer.Prune(t.Context()))
	if got := open(); got.Len() != 1 {
		t.Error("pruned while SVIDs that it concerns are valid")
	}
	// A day longer, for clocks that are ahead.
	w.clock.advance(25 * time.Hour)
	must(t, w.issuer.Prune(t.Context()))
	if got := open(); got.Len() != 1 {
		t.Error("pruned while a clock that is two hours behind takes SVIDs that it concerns for valid")
	}
	w.clock.advance(24 * time.Hour)
	must(t, w.issuer.Prune(t.Context()))
	if got := open(); got.Len() != 0 {
		t.Errorf("kept for ever: %v", got.All())
	}
	if list, _ := w.issuer.Revocations().Now(); list.Len() != 0 {
		t.Errorf("in memory for ever: %v", list.All())
	}
}

// A revoked agent SVID opens nothing any more, on a connection that is open and
// on a new one, and its watch ends.
func TestRevokedCallerIsRefused(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	watch, _ := startWatch(t, a)
	_, err := w.revoking().Revoke(t.Context(), revokeSerial(a.cert.SerialNumber.String()))
	must(t, err)
	_, err = watch.Recv()
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
	_, err = a.entries().GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
	again := w.dial(a)
	defer again.Close()
	_, err = entryv1.NewEntryClient(again).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)

	admin := w.asWorkload(t, "/svc/admin")
	e := entry("/svc/admin", "/node/x", "uid:1")
	e.Admin = true
	w.create(e)
	_, err = admin.agents().CountAgents(t.Context(), &agentv1.CountAgentsRequest{})
	must(t, err)
	_, err = w.revoking().Revoke(t.Context(), revokeID(admin.id))
	must(t, err)
	_, err = admin.agents().CountAgents(t.Context(), &agentv1.CountAgentsRequest{})
	wantCode(t, err, codes.PermissionDenied)
}

// Agents that ask hear of revocations, at once all of them and then each, and
// nobody is made to sync for one.
func TestWatchCarriesRevocations(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	_, err := w.revoking().Revoke(t.Context(), revokeSerial("41"))
	must(t, err)
	stream, err := a.watch().Watch(t.Context(), &watchv1.WatchRequest{Revocations: true})
	must(t, err)
	first, err := stream.Recv()
	must(t, err)
	u := first.GetRevocations()
	if first.Unchanged || len(u.GetRevocations()) != 1 || !u.GetComplete() || u.GetCurrentAt() == 0 {
		t.Fatalf("first %v", first)
	}
	_, err = w.revoking().Revoke(t.Context(), revokeSerial("42"))
	must(t, err)
	for {
		next, err := stream.Recv()
		must(t, err)
		got := next.GetRevocations().GetRevocations()
		if !next.Unchanged {
			t.Errorf("a revocation made the agent sync: %v", next)
		}
		if len(got) == 1 && got[0].GetSerial() == "42" {
			if got[0].Actor != "" || got[0].Reason != "" {
				t.Error("agents need not know who revoked what, and why")
			}
			break
		} else if len(got) != 0 {
			t.Fatalf("sent %v", got)
		}
	}
}

// An issuer whose clock went back does not sign what it would take for revoked.
func TestRevokedBeforeAClockThatWentBack(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	web := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	w.clock.advance(time.Hour / 2)
	_, err := w.revoking().Revoke(t.Context(), revokeID(spiffeid.RequireFromString("spiffe://example.org/svc/web")))
	must(t, err)
	w.clock.advance(-time.Hour / 2)
	_, err = a.svids().BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: web.Id, Csr: csr(t, newKey(t), "")}}})
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), "clock has not reached") {
		t.Error(err)
	}
	w.clock.advance(time.Hour / 2)
	resp, err := a.svids().BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: web.Id, Csr: csr(t, newKey(t), "")}}})
	must(t, err)
	if code := resp.Results[0].Status.Code; code != 0 {
		t.Error(resp.Results[0].Status)
	}
}
