package agent_test

import (
	"crypto/x509"
	"encoding/hex"
	"testing"
	"testing/synctest"
	"time"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
)

// tainting runs an agent with one workload in a bubble of time.
func tainting(t *testing.T, test func(t *testing.T, a *agent.Agent, issuer localauthorityv1.LocalAuthorityClient)) {
	synctest.Test(t, func(t *testing.T) {
		r := agenttest.StartInMemory(t, time.Hour)
		r.Create("/svc/web", "/node/n1", "uid:1")
		a := startAgent(t, r, "/node/n1")
		test(t, a, localauthorityv1.NewLocalAuthorityClient(r.Admin))
	})
}

// leaf is the SVID of the one workload.
func leaf(t *testing.T, a *agent.Agent) *x509.Certificate {
	t.Helper()
	g, _, err := a.Lookup(t.Context(), []string{"unix:uid:1"})
	must(t, err)
	cert, err := x509.ParseCertificate(g.Identities[0].Chain)
	must(t, err)
	return cert
}

// A tainted authority: within the spread the workload's SVID and the agent's own
// are replaced, once; before it only the authority changed, and nothing happened.
func TestTaintedX509(t *testing.T) {
	tainting(t, func(t *testing.T, a *agent.Agent, issuer localauthorityv1.LocalAuthorityClient) {
		ctx := t.Context()
		first := leaf(t, a)
		old := hex.EncodeToString(first.AuthorityKeyId)
		prepared, err := issuer.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
		must(t, err)
		next := prepared.PreparedAuthority.AuthorityId
		_, err = issuer.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: next})
		must(t, err)
		time.Sleep(time.Minute)
		if !leaf(t, a).Equal(first) || a.Status().Renewals != 0 {
			t.Error("replaced when another authority was merely activated")
		}
		_, err = issuer.TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
		must(t, err)
		time.Sleep(16 * time.Second)
		second := leaf(t, a)
		if hex.EncodeToString(second.AuthorityKeyId) != next {
			t.Error("the SVID under the tainted authority is still there")
		}
		if n := a.Status().Renewals; n != 1 {
			t.Errorf("the agent's own SVID was renewed %d times, want once", n)
		}
		time.Sleep(5 * time.Minute)
		if !leaf(t, a).Equal(second) || a.Status().Renewals != 1 {
			t.Error("replaced again and again")
		}
		_, err = issuer.RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: old})
		must(t, err)
		time.Sleep(time.Minute)
		if !leaf(t, a).Equal(second) || a.Status().SyncErrors != 0 {
			t.Error("the revocation disturbed what is sound")
		}
	})
}

func TestTaintedJWTKey(t *testing.T) {
	tainting(t, func(t *testing.T, a *agent.Agent, issuer localauthorityv1.LocalAuthorityClient) {
		ctx := t.Context()
		fetch := func() string {
			t.Helper()
			g, _, err := a.Lookup(t.Context(), []string{"unix:uid:1"})
			must(t, err)
			token, err := a.JWTSVID(ctx, 1, g.Identities[0], []string{"db"})
			must(t, err)
			return token
		}
		first := fetch()
		state, err := issuer.GetJWTAuthorityState(ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
		must(t, err)
		prepared, err := issuer.PrepareJWTAuthority(ctx, &localauthorityv1.PrepareJWTAuthorityRequest{})
		must(t, err)
		_, err = issuer.ActivateJWTAuthority(ctx, &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: prepared.PreparedAuthority.AuthorityId})
		must(t, err)
		synctest.Wait()
		if fetch() != first {
			t.Error("dropped when another key was merely activated")
		}
		_, err = issuer.TaintJWTAuthority(ctx, &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: state.Active.AuthorityId})
		must(t, err)
		time.Sleep(time.Second)
		second := fetch()
		if second == first {
			t.Error("a token under the tainted key was given")
		}
		_, err = issuer.RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: state.Active.AuthorityId})
		must(t, err)
		time.Sleep(time.Second)
		if fetch() != second {
			t.Error("the revocation dropped a token under a good key")
		}
	})
}
