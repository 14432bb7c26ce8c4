package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Header and payload are go-jose's, byte for byte, and go-jose verifies the
// signature: often enough to meet numbers that are short.
func TestOwnJWSIsGoJoses(t *testing.T) {
	c := openCA(t)
	by := c.jwt.active
	if by.es256 == nil {
		t.Fatal("an authority in memory does not sign by itself")
	}
	for range 600 {
		ticket, err := c.PrepareJWT(JWTRequest{ID: spiffeid.RequireFromSegments(c.TrustDomain(), "svc", "web"), Audience: []string{"db", "<&>"}})
		if err != nil {
			t.Fatal(err)
		}
		token, err := c.IssueJWT(ticket)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		payload, err := parsed.Verify(by.signer.Public())
		if err != nil {
			t.Fatalf("%s: %v", token, err)
		}
		jws, err := by.jws.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		if ours := token[:strings.LastIndexByte(token, '.')]; ours != theirs[:strings.LastIndexByte(theirs, '.')] {
			t.Fatalf("%s, want %s", ours, theirs)
		}
	}
}

// A key that is not in this process, or on another curve, is go-jose's.
func TestOwnJWSIsForOwnKeysOnly(t *testing.T) {
	type elsewhere struct{ crypto.Signer }
	if s, err := newES256(elsewhere{openCA(t).jwt.active.signer}, "id"); s != nil || err != nil {
		t.Errorf("a signer that is elsewhere: %v, %v", s, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := newES256(key, "id"); s != nil || err != nil {
		t.Errorf("a key on P-384: %v, %v", s, err)
	}
}
