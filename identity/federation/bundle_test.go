package federation_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/federation"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/testpki"
)

var partner = spiffeid.RequireTrustDomainFromString("partner.test")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func jwtAuthority(t testing.TB, id string, public any) registry.JWTAuthority {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	must(t, err)
	return registry.JWTAuthority{KeyID: id, PublicKey: der}
}

// full is a bundle with one of everything.
func full(t testing.TB) *registry.FederatedBundle {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return &registry.FederatedBundle{
		TrustDomain:     partner,
		X509Authorities: append(testpki.New(t, partner.Name()).Bundle().X509Authorities(), testpki.New(t, partner.Name()).Bundle().X509Authorities()...),
		JWTAuthorities:  []registry.JWTAuthority{jwtAuthority(t, "ec", ecKey(t).Public()), jwtAuthority(t, "rsa", rsaKey.Public()), jwtAuthority(t, "ed", ed)},
		RefreshHint:     90 * time.Second, Sequence: 12,
	}
}

func TestDocument(t *testing.T) {
	for name, b := range map[string]*registry.FederatedBundle{"full": full(t), "empty": {TrustDomain: partner}} {
		data, err := federation.Marshal(b)
		must(t, err)
		again, err := federation.Parse(partner, data)
		if err != nil || !again.Equal(b) {
			t.Errorf("%s: read back as %+v, %v, from %s", name, again, err, data)
		}
		// As the library reads it that everybody uses.
		theirs, err := spiffebundle.Parse(partner, data)
		must(t, err)
		if len(theirs.X509Authorities()) != len(b.X509Authorities) || len(theirs.JWTAuthorities()) != len(b.JWTAuthorities) {
			t.Errorf("%s: go-spiffe reads %d and %d authorities", name, len(theirs.X509Authorities()), len(theirs.JWTAuthorities()))
		}
		if hint, ok := theirs.RefreshHint(); ok && hint != b.RefreshHint || ok != (b.RefreshHint != 0) {
			t.Errorf("%s: go-spiffe reads the hint %v", name, hint)
		}
		if sequence, ok := theirs.SequenceNumber(); ok && sequence != b.Sequence || ok != (b.Sequence != 0) {
			t.Errorf("%s: go-spiffe reads the sequence %d", name, sequence)
		}
		var raw struct{ Keys []map[string]any }
		must(t, json.Unmarshal(data, &raw))
		for _, key := range raw.Keys {
			certs, _ := key["x5c"].([]any)
			if key["use"] == "x509-svid" && (len(certs) != 1 || key["kid"] != nil) || key["use"] == "jwt-svid" && (key["kid"] == nil || certs != nil) {
				t.Errorf("%s: entry %v", name, key)
			}
		}
	}
}

// entry makes one key of a document, with members changed; nil removes one.
func entry(t testing.TB, key jose.JSONWebKey, change map[string]any) map[string]any {
	t.Helper()
	data, err := key.MarshalJSON()
	must(t, err)
	m := map[string]any{}
	must(t, json.Unmarshal(data, &m))
	for k, v := range change {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	return m
}

func TestParse(t *testing.T) {
	pki := testpki.New(t, partner.Name())
	cert := pki.Bundle().X509Authorities()[0]
	x := jose.JSONWebKey{Key: cert.PublicKey, Certificates: []*x509.Certificate{cert}, Use: "x509-svid"}
	private := ecKey(t)
	j := jose.JSONWebKey{Key: private.Public(), KeyID: "k", Use: "jwt-svid"}
	both := entry(t, x, nil)
	both["x5c"] = append(both["x5c"].([]any), both["x5c"].([]any)[0])
	set := func(keys ...any) string {
		data, err := json.Marshal(map[string]any{"keys": append([]any{}, keys...)})
		must(t, err)
		return string(data)
	}
	for name, tc := range map[string]struct {
		doc       string
		x509, jwt int
		want      string // in the error
	}{
		"all revoked":          {`{"keys":[]}`, 0, 0, ""},
		"one of each":          {set(entry(t, x, nil), entry(t, j, nil)), 1, 1, ""},
		"the same twice":       {set(entry(t, x, nil), entry(t, x, nil), entry(t, j, nil), entry(t, j, nil)), 1, 1, ""},
		"unknown use":          {set(entry(t, x, map[string]any{"use": "wit-svid"}), entry(t, j, map[string]any{"use": "sig"}), entry(t, j, map[string]any{"use": nil})), 0, 0, ""},
		"unknown type":         {set(entry(t, j, map[string]any{"kty": "PQ"}), map[string]any{"kty": "oct", "k": "AAAA", "use": "jwt-svid", "kid": "o"}), 0, 0, ""},
		"unknown curve":        {set(entry(t, j, map[string]any{"crv": "secp256k1"})), 0, 0, ""},
		"without x5c":          {set(entry(t, x, map[string]any{"x5c": nil})), 0, 0, ""},
		"unknown member":       {`{"keys":[],"spiffe_new":{"a":1}}`, 0, 0, ""},
		"not JSON":             {`<html>`, 0, 0, "not a bundle document"},
		"nothing":              {``, 0, 0, "not a bundle document"},
		"a list":               {`[]`, 0, 0, "not a bundle document"},
		"two documents":        {`{"keys":[]}{"keys":[]}`, 0, 0, "not a bundle document"},
		"no keys":              {`{"spiffe_sequence":1}`, 0, 0, "keys is missing"},
		"null keys":            {`{"keys":null}`, 0, 0, "keys is missing"},
		"negative sequence":    {`{"keys":[],"spiffe_sequence":-1}`, 0, 0, "not a bundle document"},
		"large sequence":       {`{"keys":[],"spiffe_sequence":9223372036854775808}`, 0, 0, "spiffe_sequence"},
		"negative hint":        {`{"keys":[],"spiffe_refresh_hint":-1}`, 0, 0, "spiffe_refresh_hint"},
		"hint of a century":    {`{"keys":[],"spiffe_refresh_hint":3200000000}`, 0, 0, "spiffe_refresh_hint"},
		"two certificates":     {set(both), 0, 0, "keys[0]: x5c has 2"},
		"no certificate":       {set(entry(t, x, map[string]any{"x5c": []any{}})), 0, 0, "keys[0]: x5c has 0"},
		"not a certificate":    {set(entry(t, x, map[string]any{"x5c": []any{"AAAA"}})), 0, 0, "keys[0]"},
		"key of another":       {set(entry(t, j, map[string]any{"use": "x509-svid", "x5c": entry(t, x, nil)["x5c"], "kid": nil})), 0, 0, "keys[0]"},
		"no kid":               {set(entry(t, x, nil), entry(t, j, map[string]any{"kid": nil})), 0, 0, "keys[1]: a jwt-svid key without kid"},
		"kid twice":            {set(entry(t, j, nil), entry(t, jose.JSONWebKey{Key: ecKey(t).Public(), KeyID: "k", Use: "jwt-svid"}, nil)), 0, 0, "twice"},
		"private key":          {set(entry(t, jose.JSONWebKey{Key: private, KeyID: "k", Use: "jwt-svid"}, nil)), 0, 0, "not a public key"},
		"point not on a curve": {set(entry(t, j, map[string]any{"x": "AAAA"})), 0, 0, "keys[0]"},
	} {
		b, err := federation.Parse(partner, []byte(tc.doc))
		switch {
		case tc.want != "":
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v, want %q", name, err, tc.want)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case len(b.X509Authorities) != tc.x509 || len(b.JWTAuthorities) != tc.jwt || b.TrustDomain != partner:
			t.Errorf("%s: %d and %d authorities of %s", name, len(b.X509Authorities), len(b.JWTAuthorities), b.TrustDomain)
		}
	}
}

// What can be read can be written and read again as the same.
func FuzzParse(f *testing.F) {
	data, err := federation.Marshal(full(f))
	must(f, err)
	f.Add(data)
	f.Add([]byte(`{"keys":[],"spiffe_sequence":1,"spiffe_refresh_hint":60}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","use":"jwt-svid","crv":"P-256","kid":"a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := federation.Parse(partner, data)
		if err != nil {
			return
		}
		written, err := federation.Marshal(b)
		if err != nil {
			t.Fatalf("read and cannot be written: %v", err)
		}
		again, err := federation.Parse(partner, written)
		if err != nil || !again.Equal(b) {
			t.Fatalf("read back as another: %v, %s", err, written)
		}
	})
}
