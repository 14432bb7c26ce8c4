package agent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity/agent/agenttest"
	"github.com/writ-dev/writ/internal/testpki"
)

// Bundles of other trust domains reach the workloads whose entries federate
// with them, as they come, change and go.
func TestFederatedBundles(t *testing.T) {
	partner := spiffeid.RequireTrustDomainFromString("partner.test")
	r := agenttest.Start(t, time.Hour)
	id := r.Create("/svc/web", "/node/n1", myUID())
	n := startNode(t, config(t, r), r.Token("/node/n1"))
	at := workloadapi.WithClientOptions(workloadapi.WithAddr(n.socket))
	source, err := workloadapi.NewX509Source(t.Context(), at)
	must(t, err)
	defer source.Close()
	tokens, err := workloadapi.NewBundleSource(t.Context(), at)
	must(t, err)
	defer tokens.Close()
	holds := func(authorities, keys int) bool {
		x, err := source.GetX509BundleForTrustDomain(partner)
		if err == nil && len(x.X509Authorities()) != authorities || err != nil && authorities != 0 {
			return false
		}
		all, err := tokens.GetX509BundleForTrustDomain(partner)
		if err == nil && len(all.X509Authorities()) != authorities || err != nil && authorities != 0 {
			return false
		}
		j, err := tokens.GetJWTBundleForTrustDomain(partner)
		return err == nil && len(j.JWTAuthorities()) == keys || err != nil && keys == 0
	}
	until := func(what string, authorities, keys int) {
		t.Helper()
		for deadline := time.After(20 * time.Second); !holds(authorities, keys); {
			select {
			case <-source.Updated():
			case <-tokens.Updated():
			case <-deadline:
				t.Fatalf("%s: %d authorities and %d keys did not arrive", what, authorities, keys)
			}
		}
	}
	bundles := bundlev1.NewBundleClient(r.Admin)
	set := func(authorities, keys int) {
		t.Helper()
		b := &types.Bundle{TrustDomain: partner.Name()}
		for range authorities {
			b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: testpki.New(t, partner.Name()).Bundle().X509Authorities()[0].Raw})
		}
		for n := range keys {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			must(t, err)
			der, err := x509.MarshalPKIXPublicKey(key.Public())
			must(t, err)
			b.JwtAuthorities = append(b.JwtAuthorities, &types.JWTKey{KeyId: string(rune('a' + n)), PublicKey: der})
		}
		_, err := bundles.BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{b}})
		must(t, err)
	}
	federate := func(with ...string) {
		t.Helper()
		resp, err := entryv1.NewEntryClient(r.Admin).BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{
			Entries: []*types.Entry{{Id: id, FederatesWith: with}}, InputMask: &types.EntryMask{FederatesWith: true}})
		must(t, err)
		if s := resp.Results[0].Status; s.Code != 0 {
			t.Fatal(s.Message)
		}
	}
	set(1, 1)
	federate(partner.Name())
	until("the entry federates", 1, 1)
	set(2, 3)
	until("the bundle changed", 2, 3)
	set(0, 1)
	until("no X.509 authority any more", 0, 1)
	set(0, 0)
	until("all is revoked", 0, 0)
	set(1, 1)
	until("again", 1, 1)
	federate()
	until("the entry does not federate any more", 0, 0)
	set(2, 2)
	federate(partner.Name())
	until("it does, and the bundle is another", 2, 2)
	_, err = bundles.BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{partner.Name()}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE})
	must(t, err)
	until("the bundle is gone", 0, 0)
	if b, err := source.GetX509BundleForTrustDomain(agenttest.TrustDomain); err != nil || b.Empty() {
		t.Errorf("the own bundle is gone as well: %v", err)
	}
}
