package x509pop

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/attest/server"
	"github.com/writ-dev/writ/identity/attest/x509pop"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/internal/testpki"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// attestor trusts the PKI.
func attestor(t testing.TB, pki *testpki.Machines, path string) *Attestor {
	a, err := New(Config{TrustDomain: td, CABundles: []string{testpki.WritePEM(t, t.TempDir(), "ca.pem", nil, pki.Cert)}, Path: path})
	must(t, err)
	return a
}

// holder is the agent's half of a certificate with a key.
func holder(t testing.TB, key crypto.Signer, chain ...*x509.Certificate) (payload []byte, challenge server.Challenge) {
	var data x509pop.Data
	for _, c := range chain {
		data.Certificates = append(data.Certificates, c.Raw)
	}
	payload, err := json.Marshal(data)
	must(t, err)
	return payload, func(_ context.Context, question []byte) ([]byte, error) {
		var c x509pop.Challenge
		must(t, json.Unmarshal(question, &c))
		r, err := x509pop.Respond(key, &c)
		if err != nil {
			return nil, err
		}
		return json.Marshal(r)
	}
}

func TestAttest(t *testing.T) {
	pki := testpki.NewMachines(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	san := func(uris ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			for _, u := range uris {
				parsed, err := url.Parse(u)
				must(t, err)
				c.URIs = append(c.URIs, parsed)
			}
		}
	}
	for _, tc := range []struct {
		name, path string
		key        crypto.Signer
		change     []func(*x509.Certificate)
		wantPath   string // FP is the fingerprint
		want       []string
	}{
		{name: "ECDSA", key: ecKey(t), wantPath: "/spire/agent/x509pop/FP",
			want: []string{"subject:cn:m1", "ca:fingerprint:CA", "serialnumber:0abc"}},
		{name: "RSA", key: rsaKey, wantPath: "/spire/agent/x509pop/FP",
			want: []string{"subject:cn:m1", "ca:fingerprint:CA", "serialnumber:0abc"}},
		{name: "path of the subject", key: ecKey(t), path: "/{{ .PluginName }}/cn/{{ .Subject.CommonName }}", wantPath: "/spire/agent/x509pop/cn/m1",
			want: []string{"subject:cn:m1", "ca:fingerprint:CA", "serialnumber:0abc"}},
		{name: "names for this purpose", key: ecKey(t), path: "/x509pop/{{ .URISanSelectors.rack }}", wantPath: "/spire/agent/x509pop/r7",
			change: []func(*x509.Certificate){san("x509pop://example.org/rack/r7", "x509pop://example.org/zone/a/b", "x509pop://other.org/rack/r8", "x509pop://example.org/nothing")},
			want:   []string{"subject:cn:m1", "ca:fingerprint:CA", "serialnumber:0abc", "san:rack:r7", "san:zone:a/b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leaf := pki.Machine(t, "m1", tc.key.Public(), tc.change...)
			payload, challenge := holder(t, tc.key, leaf)
			got, err := attestor(t, pki, tc.path).Attest(t.Context(), payload, challenge)
			must(t, err)
			if want := strings.ReplaceAll(tc.wantPath, "FP", fingerprint(leaf)); got.ID.Path() != want {
				t.Errorf("path %s, want %s", got.ID.Path(), want)
			}
			var want []registry.Selector
			for _, v := range tc.want {
				want = append(want, registry.Selector{Type: "x509pop", Value: strings.ReplaceAll(v, "CA", fingerprint(pki.Cert))})
			}
			if diff := cmp.Diff(want, got.Selectors); diff != "" {
				t.Errorf("selectors (-want +got):\n%s", diff)
			}
			if !got.CanReattest || got.Claim != nil {
				t.Error("it cannot be done again")
			}
		})
	}
}

func TestRefused(t *testing.T) {
	pki, key := testpki.NewMachines(t), ecKey(t)
	leaf := pki.Machine(t, "m1", key.Public())
	for _, tc := range []struct {
		name, path string
		chain      []*x509.Certificate
		key        crypto.Signer
		want       string
	}{
		{name: "another's PKI", chain: []*x509.Certificate{testpki.NewMachines(t).Machine(t, "m1", key.Public())}, want: "unknown authority"},
		{name: "stolen certificate without its key", chain: []*x509.Certificate{leaf}, key: ecKey(t), want: "not of the certificate's key"},
		{name: "expired", chain: []*x509.Certificate{pki.Machine(t, "m1", key.Public(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}, want: "expired"},
		{name: "not yet valid", chain: []*x509.Certificate{pki.Machine(t, "m1", key.Public(), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })}, want: "not yet valid"},
		{name: "key for encryption", chain: []*x509.Certificate{pki.Machine(t, "m1", key.Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })}, want: "key usage"},
		{name: "no certificate", want: "0 certificates"},
		{name: "many certificates", chain: []*x509.Certificate{leaf, leaf, leaf, leaf, leaf, leaf, leaf, leaf, leaf}, want: "9 certificates"},
		{name: "path that is none", path: "/a/../{{ .Fingerprint }}", chain: []*x509.Certificate{leaf}, want: "agent's path"},
		{name: "path without a slash", path: "x", chain: []*x509.Certificate{leaf}, want: "does not begin with /"},
		{name: "name that the certificate lacks", path: "/{{ .URISanSelectors.rack }}", chain: []*x509.Certificate{leaf}, want: "agent's path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.key == nil {
				tc.key = key
			}
			payload, challenge := holder(t, tc.key, tc.chain...)
			got, err := attestor(t, pki, tc.path).Attest(t.Context(), payload, challenge)
			if got != nil || !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v; want a refusal with %q", got, err, tc.want)
			}
		})
	}
}

func TestRefusedAnswers(t *testing.T) {
	pki, key := testpki.NewMachines(t), ecKey(t)
	payload, challenge := holder(t, key, pki.Machine(t, "m1", key.Public()))
	a := attestor(t, pki, "")
	recorded, err := challenge(t.Context(), []byte(`{"ecdsa_signature":{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}`))
	must(t, err)
	for name, answer := range map[string][]byte{
		"of another challenge": recorded, "nothing": nil, "no JSON": []byte("x"), "two": []byte(string(recorded) + "{}"),
		"too long": []byte(`{"ecdsa_signature":null}` + strings.Repeat(" ", maxAnswer)),
	} {
		_, err := a.Attest(t.Context(), payload, func(context.Context, []byte) ([]byte, error) { return answer, nil })
		if !errors.Is(err, server.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The authorities are read at each attestation: the PKI's next one counts
// without a restart, and a file that is broken is no refusal of the caller.
func TestAuthoritiesChange(t *testing.T) {
	pki, next, key, dir := testpki.NewMachines(t), testpki.NewMachines(t), ecKey(t), t.TempDir()
	a, err := New(Config{TrustDomain: td, CABundles: []string{testpki.WritePEM(t, dir, "ca.pem", nil, pki.Cert)}})
	must(t, err)
	payload, challenge := holder(t, key, next.Machine(t, "m1", key.Public()))
	if _, err := a.Attest(t.Context(), payload, challenge); !errors.Is(err, server.ErrRefused) {
		t.Fatalf("before: %v", err)
	}
	file := testpki.WritePEM(t, dir, "ca.pem", nil, pki.Cert, next.Cert)
	_, err = a.Attest(t.Context(), payload, challenge)
	must(t, err)
	must(t, os.WriteFile(file, []byte("oops"), 0o600))
	if _, err := a.Attest(t.Context(), payload, challenge); err == nil || errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), file) {
		t.Errorf("broken file: %v", err)
	}
}

func TestNew(t *testing.T) {
	for _, c := range []Config{
		{TrustDomain: td},
		{TrustDomain: td, CABundles: []string{"/nowhere"}},
		{TrustDomain: td, CABundles: []string{"/nowhere"}, Path: "/{{"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

func FuzzData(f *testing.F) {
	pki, key := testpki.NewMachines(f), ecKey(f)
	leaf := pki.Machine(f, "m1", key.Public())
	good, _ := holder(f, key, leaf, pki.Cert)
	f.Add(good)
	f.Add([]byte(`{"certificates":[""]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, pool, err := parseData(payload)
		if (got == nil) != (err != nil) || (pool == nil) != (err != nil) {
			t.Errorf("%v, %v, %v", got, pool, err)
		}
	})
}
