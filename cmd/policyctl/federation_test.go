package main

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/testpki"
)

// knows sets a bundle of another trust domain.
func (r *registrar) knows(td string) {
	r.t.Helper()
	pem, err := testpki.New(r.t, td).Bundle().Marshal()
	if err != nil {
		r.t.Fatal(err)
	}
	file := filepath.Join(r.t.TempDir(), "bundle.pem")
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.ok("bundle", "set", td, file)
}

func TestBundles(t *testing.T) {
	r := newRegistrar(t)
	pki := testpki.New(t, "partner.org")
	partner := &registry.FederatedBundle{TrustDomain: pki.TrustDomain(), X509Authorities: pki.Bundle().X509Authorities(), RefreshHint: time.Minute, Sequence: 4}
	doc, err := federation.Marshal(partner)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := pki.Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if got := r.ok("bundle", "set", "spiffe://partner.org", file("b.json", doc)); got != "bundle of partner.org: 1 X.509 and 0 JWT authorities\n" {
		t.Errorf("set: %q", got)
	}
	shown, err := federation.Parse(pki.TrustDomain(), []byte(r.ok("bundle", "show", "partner.org")))
	if err != nil || !shown.Equal(partner) {
		t.Errorf("shown is %+v, %v", shown, err)
	}
	if got := r.ok("bundle", "show", "partner.org", "--format", "pem"); got != string(pem) {
		t.Errorf("as PEM:\n%s", got)
	}
	own, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("example.org"), []byte(r.ok("bundle", "show")))
	if err != nil || len(own.X509Authorities()) == 0 || len(own.JWTAuthorities()) == 0 {
		t.Errorf("our own: %v", err)
	}
	r.ok("bundle", "set", "other.org", file("b.pem", pem))
	if got := r.ok("bundle", "count"); got != "3\n" {
		t.Errorf("count: %q", got)
	}
	var list struct{ Bundles []bundleInfo }
	if err := json.Unmarshal([]byte(r.ok("bundle", "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range list.Bundles {
		got = append(got, b.TrustDomain)
		if len(b.X509Authorities) != 1 || len(b.X509Authorities[0].SHA256) != 64 || b.X509Authorities[0].ExpiresAt == nil {
			t.Errorf("%+v", b)
		}
	}
	if diff := cmp.Diff([]string{"other.org", "partner.org"}, got); diff != "" {
		t.Error(diff)
	}
	if text := r.ok("bundle", "list"); !strings.Contains(text, "partner.org   1                  0                4") {
		t.Errorf("list:\n%s", text)
	}
	r.ok("entry", "create", "--spiffe-id", "spiffe://example.org/a", "--parent-id", "spiffe://example.org/node/n", "--selector", "unix:uid:1", "--federates-with", "partner.org")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"bundle", "delete", "partner.org"}, "1 entries federate with partner.org"},
		{[]string{"bundle", "delete", "partner.org", "--mode", "both"}, "want restrict, dissociate or delete"},
		{[]string{"bundle", "delete", "nobody.org"}, "bundle not found"},
		{[]string{"bundle", "show", "nobody.org"}, "bundle not found"},
		{[]string{"bundle", "show", "--format", "der"}, "want spiffe or pem"},
		{[]string{"bundle", "set", "example.org", filepath.Join(dir, "b.pem")}, "own trust domain"},
		{[]string{"bundle", "set", "partner.org", file("x", []byte("hello"))}, "neither a SPIFFE bundle document nor PEM"},
		{[]string{"bundle", "set", "partner.org", file("y", []byte(`{"a":1}`))}, "keys is missing"},
		{[]string{"bundle", "set", "partner.org", file("z", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))}, "PRIVATE KEY in it"},
		{[]string{"bundle", "set", "partner.org", filepath.Join(dir, "absent")}, "no such file"},
		{[]string{"bundle", "set", "A B", filepath.Join(dir, "b.pem")}, "is not a trust domain"},
	} {
		if code, _, stderr := r.run(tc.args...); code != 1 || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: %d, %s", tc.args, code, stderr)
		}
	}
	if got := r.ok("bundle", "delete", "partner.org", "--mode", "dissociate"); got != "deleted partner.org\n" {
		t.Errorf("delete: %q", got)
	}
}

func TestFederation(t *testing.T) {
	r := newRegistrar(t)
	pki := testpki.New(t, "partner.org")
	doc, err := federation.Marshal(&registry.FederatedBundle{TrustDomain: pki.TrustDomain(), X509Authorities: pki.Bundle().X509Authorities(), Sequence: 2})
	if err != nil {
		t.Fatal(err)
	}
	svid := pki.SVID(t, "/spire/server", time.Hour)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(doc) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}}
	s.StartTLS()
	defer s.Close()
	pem, err := pki.Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b.pem")
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--url", s.URL, "--profile", "https_spiffe", "--endpoint-spiffe-id", "spiffe://partner.org/spire/server"}
	got := r.ok(append([]string{"federation", "create", "partner.org", "--bundle", file}, flags...)...)
	if !strings.Contains(got, "endpoint      spiffe://partner.org/spire/server") || !strings.Contains(got, "1 X.509, 0 JWT, sequence 0") {
		t.Errorf("create:\n%s", got)
	}
	if got := r.ok("federation", "refresh", "partner.org"); got != "refreshed partner.org\n" {
		t.Errorf("refresh: %q", got)
	}
	var shown relationshipInfo
	if err := json.Unmarshal([]byte(r.ok("federation", "show", "partner.org", "-o", "json")), &shown); err != nil || shown.Profile != "https_spiffe" || shown.Bundle.Sequence != 2 {
		t.Errorf("show: %+v, %v", shown, err)
	}
	r.ok("federation", "create", "web.org", "--url", "https://web.org/b", "--profile", "https_web")
	r.ok("federation", "update", "web.org", "--url", "https://web.org/c", "--profile", "https_web")
	if text := r.ok("federation", "list"); !strings.Contains(text, "web.org") || !strings.Contains(text, "https://web.org/c") || !strings.Contains(text, "not known yet") {
		t.Errorf("list:\n%s", text)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{append([]string{"federation", "create", "partner.org"}, flags...), "there is a federation relationship with partner.org already"},
		{append([]string{"federation", "create", "example.org"}, flags...), "own trust domain"},
		{append([]string{"federation", "update", "nobody.org"}, flags...), "does not exist"},
		{[]string{"federation", "show", "nobody.org"}, "does not exist"},
		{[]string{"federation", "delete", "nobody.org"}, "does not exist"},
		{[]string{"federation", "refresh", "nobody.org"}, "no federation relationship with nobody.org"},
		{[]string{"federation", "create", "a.org", "--url", "https://a.org", "--profile", "web"}, "want https_spiffe or https_web"},
		{[]string{"federation", "create", "a.org", "--url", "https://a.org", "--profile", "https_spiffe"}, "--endpoint-spiffe-id is missing"},
		{[]string{"federation", "create", "a.org", "--url", "https://a.org", "--profile", "https_web", "--endpoint-spiffe-id", "x"}, "is for --profile https_spiffe"},
		{[]string{"federation", "create", "a.org", "--url", "http://a.org", "--profile", "https_web"}, "bundle_endpoint_url: want https"},
	} {
		if code, _, stderr := r.run(tc.args...); code != 1 || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: %d, %s", tc.args, code, stderr)
		}
	}
	r.ok("federation", "delete", "partner.org")
	if text := r.ok("bundle", "list"); !strings.Contains(text, "partner.org") {
		t.Error("the bundle went with the relationship")
	}
}
