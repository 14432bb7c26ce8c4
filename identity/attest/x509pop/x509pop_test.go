package x509pop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/testpki"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func keys(t testing.TB) map[string]crypto.Signer {
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	return map[string]crypto.Signer{"ecdsa": ec, "rsa": rs}
}

func TestProof(t *testing.T) {
	others := keys(t)
	for name, key := range keys(t) {
		t.Run(name, func(t *testing.T) {
			c, err := NewChallenge(key.Public())
			must(t, err)
			r, err := Respond(key, c)
			must(t, err)
			must(t, Verify(key.Public(), c, r))
			// Over the wire and back it proves the same.
			wire, err := json.Marshal(r)
			must(t, err)
			var back Response
			must(t, Decode(wire, 8<<10, &back))
			must(t, Verify(key.Public(), c, &back))

			if Verify(others[name].Public(), c, r) == nil {
				t.Error("it proves another key")
			}
			again, err := NewChallenge(key.Public())
			must(t, err)
			if Verify(key.Public(), again, r) == nil {
				t.Error("an answer serves twice")
			}
			if Verify(key.Public(), c, &Response{}) == nil {
				t.Error("no answer is an answer")
			}
			for other, k := range others {
				if other == name {
					continue
				}
				if _, err := Respond(k, c); err == nil {
					t.Errorf("an %s key answers a challenge for %s", other, name)
				}
			}
		})
	}
}

// What SPIRE sends has these names, and byte strings in base64.
func TestWire(t *testing.T) {
	for _, tc := range []struct {
		value any
		want  string
	}{
		{Data{Certificates: [][]byte{{1}, {2}}}, `{"certificates":["AQ==","Ag=="]}`},
		{Challenge{ECDSA: &Nonce{[]byte{1}}}, `{"rsa_signature":null,"ecdsa_signature":{"nonce":"AQ=="}}`},
		{Response{ECDSA: &ECDSAResponse{[]byte{1}, []byte{2}, []byte{3}}}, `{"rsa_signature":null,"ecdsa_signature":{"nonce":"AQ==","r":"Ag==","s":"Aw=="}}`},
		{Response{RSA: &RSAResponse{[]byte{1}, []byte{2}}}, `{"rsa_signature":{"nonce":"AQ==","signature":"Ag=="},"ecdsa_signature":null}`},
	} {
		got, err := json.Marshal(tc.value)
		must(t, err)
		if diff := cmp.Diff(tc.want, string(got)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestShortNonces(t *testing.T) {
	key := keys(t)["ecdsa"]
	for _, n := range []int{0, nonceLen - 1, nonceLen + 1} {
		if _, err := Respond(key, &Challenge{ECDSA: &Nonce{make([]byte, n)}}); err == nil {
			t.Errorf("a nonce of %d bytes is signed", n)
		}
	}
}

func TestKeysThatCannotAnswer(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	t.Setenv("GODEBUG", "rsa1024min=0")
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	for _, key := range []crypto.PublicKey{pub, short.Public()} {
		if _, err := NewChallenge(key); err == nil {
			t.Errorf("a %T is asked", key)
		}
	}
}

func TestAgent(t *testing.T) {
	pki := testpki.NewMachines(t)
	dir := t.TempDir()
	for name, key := range keys(t) {
		leaf := pki.Machine(t, "m1", key.Public())
		a := Attestor{Config{
			Cert: testpki.WritePEM(t, dir, name+".pem", nil, leaf), Key: testpki.WritePEM(t, dir, name+".key", key),
			Intermediates: testpki.WritePEM(t, dir, "more.pem", nil, pki.Cert),
		}}
		payload, answer, err := a.Begin(t.Context())
		must(t, err)
		var data Data
		must(t, Decode(payload, 64<<10, &data))
		if diff := cmp.Diff([][]byte{leaf.Raw, pki.Cert.Raw}, data.Certificates); diff != "" {
			t.Error(diff)
		}
		c, err := NewChallenge(leaf.PublicKey)
		must(t, err)
		question, err := json.Marshal(c)
		must(t, err)
		got, err := answer(question)
		must(t, err)
		var r Response
		must(t, Decode(got, 8<<10, &r))
		must(t, Verify(leaf.PublicKey, c, &r))
		if _, err := answer([]byte("{}")); err == nil {
			t.Error("a challenge without a nonce is answered")
		}
	}
}

func TestAgentFiles(t *testing.T) {
	pki, dir, key := testpki.NewMachines(t), t.TempDir(), keys(t)["ecdsa"]
	cert := testpki.WritePEM(t, dir, "c", nil, pki.Machine(t, "m1", key.Public()))
	keyFile := testpki.WritePEM(t, dir, "k", key)
	other := testpki.WritePEM(t, dir, "o", keys(t)["ecdsa"])
	empty := testpki.WritePEM(t, dir, "e", nil)
	for _, tc := range []struct {
		name string
		Config
		want string
	}{
		{"no certificate", Config{Cert: dir + "/x", Key: keyFile}, "no such file"},
		{"another's key", Config{Cert: cert, Key: other}, "does not match"},
		{"no intermediates", Config{Cert: cert, Key: keyFile, Intermediates: empty}, "no certificate"},
	} {
		_, _, err := Attestor{tc.Config}.Begin(t.Context())
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// Whatever answer comes, only one that signs this challenge is taken; whatever
// challenge comes, what is signed is never chosen by its sender.
func FuzzResponse(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(f, err)
	c, err := NewChallenge(key.Public())
	must(f, err)
	r, err := Respond(key, c)
	must(f, err)
	good, err := json.Marshal(r)
	must(f, err)
	f.Add(good)
	f.Add([]byte(`{"ecdsa_signature":{"nonce":"","r":"","s":""}}`))
	f.Add([]byte(`{"rsa_signature":{"nonce":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got Response
		if Decode(data, 4096, &got) != nil || Verify(key.Public(), c, &got) != nil {
			return
		}
		if diff := cmp.Diff(r, &got); diff != "" && string(got.ECDSA.Nonce) != string(r.ECDSA.Nonce) {
			t.Errorf("another answer is taken: %s", diff)
		}
	})
}

func FuzzChallenge(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(f, err)
	f.Add([]byte(`{"ecdsa_signature":{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Challenge
		if Decode(data, maxChallenge, &c) != nil {
			return
		}
		if r, err := Respond(key, &c); err == nil && Verify(key.Public(), &c, r) != nil {
			t.Error("the answer does not fit the challenge")
		}
	})
}
