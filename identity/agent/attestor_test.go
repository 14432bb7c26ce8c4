package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
	serverpop "github.com/writ-dev/writ/identity/attest/server/x509pop"
	"github.com/writ-dev/writ/internal/testpki"
)

// machine is an issuer that takes certificates, and an agent's configuration
// with one. Its time is a bubble's.
func machine(t *testing.T, life time.Duration) (*agenttest.Issuer, agent.Config) {
	t.Helper()
	pki, dir := testpki.NewMachines(t), t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	pop, err := serverpop.New(serverpop.Config{TrustDomain: td, CABundles: []string{testpki.WritePEM(t, dir, "ca.pem", nil, pki.Cert)}})
	must(t, err)
	r := agenttest.StartInMemory(t, life, pop)
	cfg := config(t, r)
	cfg.Attestor = &agent.AttestorConfig{X509PoP: &agent.X509PoP{
		Cert: testpki.WritePEM(t, dir, "m.pem", nil, pki.Machine(t, "m1", key.Public())), Key: testpki.WritePEM(t, dir, "m.key", key),
	}}
	return r, cfg
}

func start(t *testing.T, r *agenttest.Issuer, cfg agent.Config) (*agent.Agent, chan error, context.CancelFunc) {
	t.Helper()
	a, err := agent.New(cfg, agent.Options{Attestor: cfg.Attestor.New(), Log: slog.New(slog.DiscardHandler), Dial: r.Dial})
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, done, stop
}

// A node with a certificate joins without a token, attests again where it would
// have renewed, comes back by itself after an eviction, and not after a ban.
func TestCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, cfg := machine(t, 20*time.Second)
		r.Node("/node/n1", "x509pop", "subject:cn:m1")
		r.Create("/svc/web", "/node/n1", "uid:1")
		agents := agentv1.NewAgentClient(r.Admin)
		a, done, stop := start(t, r, cfg)
		defer stop()
		<-a.Ready()
		if got := served(a); got != "/svc/web" {
			t.Fatalf("the workload is %q", got)
		}
		id := &types.SPIFFEID{TrustDomain: td.Name(), Path: a.Status().ID.Path()}
		first, err := agents.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: id})
		must(t, err)
		time.Sleep(15 * time.Second) // of the bubble
		second, err := agents.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: id})
		must(t, err)
		if a.Status().Renewals != 1 || first.X509SvidSerialNumber == second.X509SvidSerialNumber {
			t.Errorf("%d renewals, serial %s and then %s", a.Status().Renewals, first.X509SvidSerialNumber, second.X509SvidSerialNumber)
		}

		_, err = agents.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: id})
		must(t, err)
		time.Sleep(15 * time.Second)
		_, err = agents.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: id})
		must(t, err)
		if got := served(a); got != "/svc/web" {
			t.Errorf("after the eviction the workload is %q", got)
		}

		_, err = agents.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: id})
		must(t, err)
		if err := <-done; !errors.Is(err, agent.ErrBanned) {
			t.Errorf("run ended with %v, want ErrBanned", err)
		}
		// Nor does a new start help, with or without what was kept.
		for range 2 {
			_, done, stop := start(t, r, cfg)
			if err := <-done; !errors.Is(err, agent.ErrBanned) {
				t.Errorf("run ended with %v, want ErrBanned", err)
			}
			stop()
			must(t, os.RemoveAll(cfg.DataDir))
		}
	})
}

// served is the path of the X509-SVID that user 1 has now.
func served(a *agent.Agent) string {
	g, _, err := a.Lookup(context.Background(), []string{"unix:uid:1"})
	if err != nil || len(g.Identities) != 1 || g.Identities[0].Chain == nil {
		return ""
	}
	return g.Identities[0].ID.Path()
}

// What was kept while the node was off for long is of no use; a certificate
// gets the node in again.
func TestCertificateAfterLongStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, cfg := machine(t, 10*time.Second)
		a, done, stop := start(t, r, cfg)
		<-a.Ready()
		expires := a.Status().Expires
		stop()
		must(t, <-done)
		time.Sleep(time.Until(expires) + time.Second)
		a, done, stop = start(t, r, cfg)
		defer stop()
		select {
		case <-a.Ready():
		case err := <-done:
			t.Fatal(err)
		}
		if !a.Status().Expires.After(expires) {
			t.Error("the agent goes on with an expired SVID")
		}
	})
}

func TestAttestorConfig(t *testing.T) {
	for _, tc := range []struct {
		agent.AttestorConfig
		token, want string
	}{
		{want: "want one method"},
		{AttestorConfig: agent.AttestorConfig{X509PoP: &agent.X509PoP{}, K8sPSAT: &agent.K8sPSAT{}}, want: "want one method"},
		{AttestorConfig: agent.AttestorConfig{X509PoP: &agent.X509PoP{Key: "k"}}, want: "attestor.x509pop.cert"},
		{AttestorConfig: agent.AttestorConfig{X509PoP: &agent.X509PoP{Cert: "c"}}, want: "attestor.x509pop.key"},
		{AttestorConfig: agent.AttestorConfig{K8sPSAT: &agent.K8sPSAT{}}, want: "attestor.k8s_psat.cluster"},
		{AttestorConfig: agent.AttestorConfig{K8sPSAT: &agent.K8sPSAT{Cluster: "c"}}, token: "t", want: "join_token_file"},
	} {
		c := agent.Default()
		c.TrustDomain, c.DataDir, c.Socket, c.Attestor, c.JoinTokenFile = "example.org", "d", "/s", &tc.AttestorConfig, tc.token
		err := c.Validate(func(key, format string, args ...any) error { return fmt.Errorf(key+": "+format, args...) })
		if err == nil || strings.Count(err.Error(), "\n") > 0 || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q alone", tc.AttestorConfig, err, tc.want)
		}
	}
}
