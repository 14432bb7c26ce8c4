package oidc_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coreos "github.com/coreos/go-oidc/v3/oidc"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/oidc"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/sqldb"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A verifier of OpenID Connect, which knows nothing but the issuer's URL, takes
// JWT-SVIDs, also those of a key that came later, and no others.
func TestVerifierTakesJWTSVIDs(t *testing.T) {
	ctx := t.Context()
	var handler http.Handler
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { handler.ServeHTTP(rw, req) }))
	defer s.Close()
	issuer := s.URL + "/trust"
	db, err := sqldb.OpenSQLite(ctx, filepath.Join(t.TempDir(), "writ.db"))
	must(t, err)
	defer db.Close()
	offset := time.Duration(0)
	now := func() time.Time { return time.Now().Add(offset) }
	store, err := sqlstore.Open(ctx, db, sqlstore.Config{Clock: now, KeyFile: filepath.Join(t.TempDir(), "registry.key"), Record: func(context.Context, []identity.Act) error { return nil }})
	must(t, err)
	td := spiffeid.RequireTrustDomainFromString("example.org")
	authorities, err := ca.Open(ctx, ca.Config{
		TrustDomain: td, Keys: &keys.Memory{}, Journal: store, Clock: now, JWTIssuer: issuer,
		Emit: func(context.Context, identity.Act) error { return nil },
	})
	must(t, err)
	handler, err = oidc.Handler(oidc.Config{Issuer: issuer, Now: now, Own: func() *registry.FederatedBundle {
		b, _ := authorities.Bundle()
		own := &registry.FederatedBundle{TrustDomain: td, X509Authorities: b.X509Authorities}
		for _, a := range b.JWTAuthorities {
			own.JWTAuthorities = append(own.JWTAuthorities, registry.JWTAuthority{KeyID: a.KeyID, PublicKey: a.PublicKey, ExpiresAt: a.ExpiresAt})
		}
		return own
	}})
	must(t, err)
	token := func() string {
		t.Helper()
		ticket, err := authorities.PrepareJWT(ca.JWTRequest{ID: spiffeid.RequireFromPath(td, "/svc/web"), Audience: []string{"api"}})
		must(t, err)
		text, err := authorities.IssueJWT(ticket)
		must(t, err)
		return text
	}
	provider, err := coreos.NewProvider(ctx, issuer)
	must(t, err)
	verifier := provider.Verifier(&coreos.Config{ClientID: "api", Now: now})
	first := token()
	id, err := verifier.Verify(ctx, first)
	must(t, err)
	if id.Subject != "spiffe://example.org/svc/web" || id.Issuer != issuer {
		t.Errorf("verified as %s of %s", id.Subject, id.Issuer)
	}
	if _, err := provider.Verifier(&coreos.Config{ClientID: "other", Now: now}).Verify(ctx, first); err == nil {
		t.Error("another audience takes it")
	}
	if _, err := verifier.Verify(ctx, first[:len(first)-4]+"AAAA"); err == nil {
		t.Error("a broken signature is taken")
	}
	// Prepared, then activated: the verifier finds the new key by itself.
	for _, at := range []time.Duration{13 * time.Hour, 21 * time.Hour} {
		offset = at
		must(t, authorities.Rotate(ctx))
	}
	second := token()
	if _, err := verifier.Verify(ctx, second); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	if strings.Split(first, ".")[0] == strings.Split(second, ".")[0] {
		t.Error("the same key signs: nothing was tested")
	}
}

func TestDocuments(t *testing.T) {
	b := &registry.FederatedBundle{}
	handler, err := oidc.Handler(oidc.Config{Issuer: "https://id.example.org", Own: func() *registry.FederatedBundle { return b }})
	must(t, err)
	s := httptest.NewServer(handler)
	defer s.Close()
	get := func(path string, want int) string {
		t.Helper()
		resp, err := http.Get(s.URL + path)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		if resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
		return string(body)
	}
	var doc map[string]any
	must(t, json.Unmarshal([]byte(get(oidc.Discovery, 200)), &doc))
	if doc["issuer"] != "https://id.example.org" || doc["jwks_uri"] != "https://id.example.org/keys" {
		t.Errorf("discovery: %v", doc)
	}
	if keys := get("/keys", 200); !strings.Contains(keys, `"keys": []`) {
		t.Errorf("no keys are %s", keys)
	}
	get("/", 404)
	get("/other", 404)
}
