package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
)

// From the administrator to the workload and back: the revoked SVID is replaced
// on the open stream, its JWT-SVIDs are refused, every local follower knows, and
// a restart forgets nothing.
func TestRevoked(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	r.Create("/svc/web", "/node/n1", myUID())
	cfg := config(t, r)
	n := startNode(t, cfg, r.Token("/node/n1"))
	ctx := t.Context()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(n.socket))
	must(t, err)
	defer client.Close()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(client))
	must(t, err)
	defer source.Close()
	before, err := source.GetX509SVID()
	must(t, err)
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a"})
	must(t, err)
	_, err = client.ValidateJWTSVID(ctx, token.Marshal(), "a")
	must(t, err)
	f, err := revocation.Follow(revocation.FollowConfig{Address: n.socket, MaxAge: time.Minute})
	must(t, err)
	following, stop := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { f.Run(following) })
	defer func() { stop(); done.Wait() }()
	<-f.First()
	if f.Problem() != "" {
		t.Errorf("problem: %s", f.Problem())
	}

	changed := f.Changed()
	web := spiffeid.RequireFromPath(td, "/svc/web")
	began := time.Now()
	_, err = revocationv1.NewAdminClient(r.Admin).Revoke(ctx, &revocationv1.RevokeRequest{Revocation: &revocationv1.Revocation{
		Subject: &revocationv1.Revocation_SpiffeId{SpiffeId: web.String()},
	}})
	must(t, err)
	<-changed
	t.Logf("at a follower after %v", time.Since(began))
	if err := f.Check(before.Certificates[0], web); err == nil {
		t.Error("the follower takes the revoked SVID for good")
	}
	after := before
	for after.Certificates[0].SerialNumber.Cmp(before.Certificates[0].SerialNumber) == 0 {
		<-source.Updated()
		after, err = source.GetX509SVID()
		must(t, err)
	}
	t.Logf("replaced after %v", time.Since(began))
	if err := f.Check(after.Certificates[0], web); err != nil {
		t.Errorf("the new one is refused: %v", err)
	}
	if _, err := client.ValidateJWTSVID(ctx, token.Marshal(), "a"); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the JWT-SVID of before: %v", err)
	}
	another, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a"})
	must(t, err)
	if another.Marshal() == token.Marshal() {
		t.Error("the revoked JWT-SVID was handed out again")
	}
	_, err = client.ValidateJWTSVID(ctx, another.Marshal(), "a")
	must(t, err)

	// The list outlives the agent, even if the issuer is not there.
	must(t, n.stop())
	data, err := os.ReadFile(filepath.Join(cfg.DataDir, "revocations"))
	must(t, err)
	var kept revocation.Set
	must(t, kept.Load(data, time.Now()))
	if list, _ := kept.Now(); list.X509(before.Certificates[0], web) == nil {
		t.Error("not kept")
	}
	cfg.ServerAddress = "127.0.0.1:1"
	away := startNodeUnready(t, cfg, "")
	g, err := revocation.Follow(revocation.FollowConfig{Address: away.socket})
	must(t, err)
	done.Go(func() { g.Run(following) })
	<-g.First()
	if err := g.Check(before.Certificates[0], web); err == nil {
		t.Error("an agent without its issuer forgot what is revoked")
	}
}

// A list that was damaged on disk keeps nobody from starting: the issuer sends
// it again.
func TestDamagedListOfRevocations(t *testing.T) {
	r := agenttest.Start(t, time.Hour)
	cfg := config(t, r)
	must(t, os.MkdirAll(cfg.DataDir, 0o700))
	must(t, os.WriteFile(filepath.Join(cfg.DataDir, "revocations"), []byte("\xff\xff"), 0o600))
	_, err := revocationv1.NewAdminClient(r.Admin).Revoke(t.Context(), &revocationv1.RevokeRequest{Revocation: &revocationv1.Revocation{
		Subject: &revocationv1.Revocation_Serial{Serial: "7"},
	}})
	must(t, err)
	n := startNode(t, cfg, r.Token("/node/n1"))
	for {
		list, changed := n.agent.Revocations().Now()
		if list.Len() == 1 {
			break
		}
		<-changed
	}
}
