package agent_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os/user"
	"testing"
	"testing/synctest"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/identity/template"
	"github.com/writ-dev/writ/identity/workload"
)

func me(t testing.TB) string {
	t.Helper()
	u, err := user.Current()
	must(t, err)
	return u.Username
}

// api is the Workload API without the conveniences of go-spiffe.
func (n *node) api(t *testing.T) (context.Context, workloadpb.SpiffeWorkloadAPIClient) {
	t.Helper()
	cc, err := grpc.NewClient(n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { cc.Close() })
	return metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true"), workloadpb.NewSpiffeWorkloadAPIClient(cc)
}

// From one registration to a process whose user nobody registered, by X.509 and by
// JWT; what becomes of the template is pushed down the open stream.
func TestTemplateToWorkload(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	made := r.Template("/user/{unix:user}", "/node/n1")
	r.Template("/elsewhere/{unix:user}", "/node/n2")
	n := startNode(t, config(t, r), r.Token("/node/n1"))
	ctx, api := n.api(t)
	if s := n.agent.Status(); s.Templates != 1 || s.Instances != 0 || s.Entries != 1 { // the alias of the node
		t.Errorf("before anybody calls: %+v", s)
	}
	stream, err := api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	next := func() []*workloadpb.X509SVID {
		t.Helper()
		resp, err := stream.Recv()
		must(t, err)
		return resp.Svids
	}
	own := "spiffe://example.org/user/" + me(t)
	first := next()
	if len(first) != 1 || first[0].SpiffeId != own {
		t.Fatalf("got %v, want %s", first, own)
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(n.socket))
	must(t, err)
	defer client.Close()
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", Subject: spiffeid.RequireFromString(own)})
	must(t, err)
	if _, err := client.ValidateJWTSVID(ctx, token.Marshal(), "a"); err != nil {
		t.Error(err)
	}
	again, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a"})
	must(t, err)
	if again.Marshal() != token.Marshal() {
		t.Error("a JWT-SVID that is there was made again")
	}
	if s := n.agent.Status(); s.Instances != 1 || s.InstanceSVIDs != 1 || s.JWTSigned != 1 {
		t.Errorf("with one stream: %+v", s)
	}

	// Another process of the same user shares the instance; when it goes, the
	// instance stays.
	second, err := client.FetchX509SVID(ctx)
	must(t, err)
	if string(second.Certificates[0].Raw) != string(leafOf(t, first[0]).Raw) {
		t.Error("one instance has two SVIDs")
	}

	// Another hint is another SVID, at once.
	made.Hint, made.Revision = "inner", 0
	made = r.UpdateTemplate(made)
	for got := next(); got[0].Hint != "inner"; got = next() {
	}
	// Another pattern is another name.
	made.SpiffeId = "spiffe://example.org/person/{unix:user}"
	made = r.UpdateTemplate(made)
	for got := next(); got[0].SpiffeId != "spiffe://example.org/person/"+me(t); got = next() {
		if got[0].SpiffeId != own {
			t.Fatalf("got %v", got)
		}
	}
	// The name becomes an entry's.
	entry := r.Create("/person/"+me(t), "/node/n1", myUID())
	before := next()
	for ; before[0].Hint != ""; before = next() {
	}
	if len(before) != 1 {
		t.Errorf("one name is given twice: %v", before)
	}
	r.Delete(entry)
	last := next()
	for ; last[0].Hint != "inner"; last = next() {
	}
	// What is revoked is replaced.
	_, err = revocationv1.NewAdminClient(r.Admin).Revoke(ctx, &revocationv1.RevokeRequest{Revocation: &revocationv1.Revocation{
		Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: "spiffe://example.org/person/" + me(t)},
	}})
	must(t, err)
	if got := next(); got[0].SpiffeId != last[0].SpiffeId || string(got[0].X509Svid) == string(last[0].X509Svid) {
		t.Errorf("what is revoked is still served: %v", got)
	}
	// More is required than this process is.
	made.Selectors = []string{"unix:uid:54321"}
	made = r.UpdateTemplate(made)
	for err = nil; err == nil; {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream ends with %v", err)
	}
	made.Selectors = nil
	made = r.UpdateTemplate(made)
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(n.socket)))
	must(t, err)
	must(t, source.Close())
	r.DeleteTemplate(made.Id)
	for err = nil; status.Code(err) != codes.PermissionDenied; {
		if stream, err = api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{}); err == nil {
			_, err = stream.Recv()
		}
	}
}

func leafOf(t testing.TB, svid *workloadpb.X509SVID) *x509.Certificate {
	t.Helper()
	certs, err := x509.ParseCertificates(svid.X509Svid)
	must(t, err)
	return certs[0]
}

// The issuer refuses what an entry elsewhere names. The workload is told so, and
// does not wait for what will not come.
func TestInstanceRefusedByIssuer(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	r.Template("/user/{unix:user}", "/node/n1")
	entry := r.Create("/user/"+me(t), "/node/n2", "uid:1")
	n := startNode(t, config(t, r), r.Token("/node/n1"))
	ctx, api := n.api(t)
	stream, err := api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	_, err = stream.Recv()
	if status.Code(err) != codes.Unavailable {
		t.Errorf("X.509: %v", err)
	}
	_, err = api.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"a"}})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("JWT: %v", err)
	}
	r.Delete(entry)
	if _, err := api.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"a"}}); err != nil {
		t.Errorf("once the entry is gone: %v", err)
	}
	// Who calls for X.509 makes the instance anew, and has it.
	stream, err = api.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	must(t, err)
	_, err = stream.Recv()
	must(t, err)
}

// signedFor looks until there is an X509-SVID.
func signedFor(t *testing.T, h workload.Hold, selectors ...string) *x509.Certificate {
	t.Helper()
	for {
		g, changed, err := h.Lookup(t.Context(), selectors)
		must(t, err)
		if len(g.Identities) == 1 && g.Identities[0].Chain != nil {
			cert, err := x509.ParseCertificate(g.Identities[0].Chain)
			must(t, err)
			return cert
		}
		<-changed
	}
}

// Ten-second SVIDs of an instance for a minute: never a moment without a valid one
// while it is held, and nothing of it once nobody does.
func TestInstanceIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := agenttest.StartInMemory(t, 10*time.Second)
		r.Template("/user/{unix:user}", "/node/n1")
		a := startAgent(t, r, "/node/n1")
		h, other := a.Hold(1, true), a.Hold(1, true)
		signedFor(t, h, "unix:user:anna")
		if n := svidsInAMinute(t, h.Lookup, "unix:user:anna"); n < 10 || n > 16 {
			t.Errorf("%d SVIDs in a minute, want one each five seconds or so", n)
		}
		signedFor(t, other, "unix:user:anna")
		h.Release()
		if s := a.Status(); s.Instances != 1 {
			t.Errorf("%d instances while one still holds it", s.Instances)
		}
		other.Release()
		signed := a.Status().Signed
		<-time.After(time.Minute)
		if s := a.Status(); s.Instances != 0 || s.Signed != signed {
			t.Errorf("nobody holds it: %d instances, %d signed since", s.Instances, s.Signed-signed)
		}
		// After its end a hold holds nothing.
		if g, _, err := h.Lookup(t.Context(), []string{"unix:user:anna"}); err != nil || len(g.Identities) != 0 || a.Status().Instances != 0 {
			t.Errorf("a hold that has ended: %+v, %v", g, err)
		}
	})
}

// A hold follows the selectors that it is asked about.
func TestHoldMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := agenttest.StartInMemory(t, time.Hour)
		r.Template("/user/{unix:user}", "/node/n1")
		r.Template("/group/{unix:group}", "/node/n1", "unix:user:anna")
		a := startAgent(t, r, "/node/n1")
		h := a.Hold(1, true)
		if got := signedFor(t, h, "unix:user:anna").URIs[0].Path; got != "/user/anna" {
			t.Errorf("got %s", got)
		}
		if got := signedFor(t, h, "unix:user:bert", "unix:group:staff").URIs[0].Path; got != "/user/bert" || a.Status().Instances != 1 {
			t.Errorf("got %s, %d instances", got, a.Status().Instances)
		}
		g, _, err := h.Lookup(t.Context(), []string{"unix:user:anna", "unix:group:staff"})
		if err != nil || len(g.Identities) != 2 || !g.Pending || a.Status().Instances != 2 {
			t.Errorf("got %+v, %v", g, err)
		}
		// Which of two groups is meant nobody knows, and that is said once.
		for range 3 {
			if g, _, err = h.Lookup(t.Context(), []string{"unix:user:anna", "unix:group:staff", "unix:group:wheel"}); err != nil || len(g.Identities) != 1 {
				t.Errorf("got %+v, %v", g, err)
			}
		}
		if n := a.TemplateRefusals(template.Ambiguous); n != 1 {
			t.Errorf("%d refusals are counted, want 1", n)
		}
		if g, _, err = h.Lookup(t.Context(), []string{"unix:uid:1"}); err != nil || len(g.Identities) != 0 || a.Status().Instances != 0 {
			t.Errorf("got %+v, %v", g, err)
		}
		h.Release()
	})
}

// What nobody holds costs nothing, however many names there could be.
func TestInstancesNobodyHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := agenttest.StartInMemory(t, time.Hour)
		r.Template("/user/{unix:user}", "/node/n1")
		a := startAgent(t, r, "/node/n1")
		for n := range 100_000 {
			g, _, err := a.Lookup(t.Context(), []string{fmt.Sprint("unix:user:u", n)})
			if err != nil || len(g.Identities) != 1 || g.Identities[0].ID.Path() != fmt.Sprint("/user/u", n) || g.Pending {
				t.Fatalf("got %+v, %v", g, err)
			}
		}
		if s := a.Status(); s.Instances != 0 || s.Signed != 0 {
			t.Errorf("%d instances, %d signed", s.Instances, s.Signed)
		}
		// A user has only so many made at a time, and others have theirs.
		made := 0
		var err error
		holds := []workload.Hold{}
		for err == nil {
			h := a.Hold(7, true)
			holds = append(holds, h)
			if _, _, err = h.Lookup(t.Context(), []string{fmt.Sprint("unix:user:u", made)}); err == nil {
				made++
			}
		}
		if !errors.Is(err, workload.ErrTooMany) || made != 100 {
			t.Errorf("%d made, then %v", made, err)
		}
		h := a.Hold(8, true)
		signedFor(t, h, "unix:user:x")
		h.Release()
		for _, h := range holds {
			h.Release()
		}
		if n := a.Status().Instances; n != 0 {
			t.Errorf("%d instances are left", n)
		}
	})
}

// A key that was made for some is not given to others, though they have the same
// name.
func TestKeyOfInstanceIsNotHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := agenttest.StartInMemory(t, time.Hour)
		made := r.Template("/user/{unix:user}", "/node/n1", "unix:uid:1")
		a := startAgent(t, r, "/node/n1")
		first, second := a.Hold(1, true), a.Hold(1, true)
		before := signedFor(t, first, "unix:user:anna", "unix:uid:1")
		_, changed, err := second.Lookup(t.Context(), []string{"unix:user:anna", "unix:uid:2"})
		must(t, err)
		made.Selectors = []string{"unix:uid:2"}
		r.UpdateTemplate(made)
		<-changed
		// The first has not looked yet.
		g, _, err := second.Lookup(t.Context(), []string{"unix:user:anna", "unix:uid:2"})
		must(t, err)
		if len(g.Identities) != 1 || g.Identities[0].Chain != nil {
			t.Fatalf("got %+v", g.Identities)
		}
		if after := signedFor(t, second, "unix:user:anna", "unix:uid:2"); after.SerialNumber.Cmp(before.SerialNumber) == 0 {
			t.Error("the key was handed on")
		}
		if g, _, err := first.Lookup(t.Context(), []string{"unix:user:anna", "unix:uid:1"}); err != nil || len(g.Identities) != 0 {
			t.Errorf("the first still has %+v, %v", g.Identities, err)
		}
		if n := a.Status().Instances; n != 1 {
			t.Errorf("%d instances", n)
		}
	})
}
