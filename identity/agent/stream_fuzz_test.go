package agent

import (
	"bytes"
	"crypto"
	"encoding/json"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/prototest"
)

// idle is an agent that speaks to nobody, with one entry.
func idle(f *testing.F) *Agent {
	a := need(New(Config{TrustDomain: testTD.Name(), DataDir: f.TempDir(), ServerAddress: "issuer:1"}, Options{Log: slog.New(slog.DiscardHandler)}))
	a.takeEntries([]entry{need(parseEntry(entryOf("e1", "/svc/web", "unix:uid:1"), testTD))}, nil)
	return a
}

// Whatever comes in a watch: nothing that is revoked is taken back, the clock's
// difference is a number, and what is kept can be read again.
func FuzzChange(f *testing.F) {
	web := spiffeid.RequireFromPath(testTD, "/svc/web")
	cutoff := time.Now().Truncate(time.Second)
	list := []*revocation.Revocation{{Kind: revocation.SPIFFEID, Subject: web.String(), Before: cutoff, Expires: cutoff.Add(1000 * time.Hour), Number: 3}}
	good := &watchv1.Change{Revision: 5, Bundle: true, Revocations: revocation.Updates(list, 3, time.Now())[0]}
	f.Add(prototest.Delimited(good, &watchv1.Change{Revision: 4, Unchanged: true}, &watchv1.Change{}))
	f.Add(prototest.Delimited(&watchv1.Change{Revision: math.MaxUint64, Revocations: &revocationv1.Update{Number: math.MaxUint64, CurrentAt: math.MinInt64, Complete: true}}, good))
	f.Add(prototest.Delimited(&watchv1.Change{Revocations: &revocationv1.Update{CurrentAt: math.MaxInt64, Revocations: []*revocationv1.Revocation{{}, {}}}}))
	a := idle(f)
	a.tellRevoked(good.Revocations)
	old := cutoff.Add(-time.Minute)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, change := range prototest.Parted[watchv1.Change](data) {
			if len(change.GetRevocations().GetRevocations()) > 100 {
				return // it grows for ever, which is for issuers to bound
			}
			a.hearClock(change.Revocations)
			a.tellRevoked(change.Revocations)
		}
		now, _ := a.revoked.Now()
		if now.JWT(web, "", old) == nil {
			t.Fatal("a revocation was taken back")
		}
		if now.Len() > 1000 {
			a.revoked = revocation.Set{}
			a.tellRevoked(good.Revocations)
		}
		var back revocation.Set
		if err := back.Load(need(now.Marshal(time.Now())), time.Now()); err != nil {
			t.Fatalf("what is kept cannot be read: %v", err)
		}
	})
}

// Whatever an issuer says that the agent missed: no workload gets a name of another
// trust domain, or one for nothing; what is taken has the digest that was named; and
// what is refused changes nothing.
func FuzzMissedReply(f *testing.F) {
	issuer := newFake()
	bundle := need(issuer.GetBundle(f.Context(), nil))
	tagged := func(e *types.Entry) *watchv1.Changed { return &watchv1.Changed{Entry: e, Tag: []byte("t")} }
	digest := func(ids ...string) []byte {
		var h holding
		for _, id := range ids {
			h = append(h, &watchv1.Held{Id: id, Tag: []byte("t")})
		}
		return h.digest()
	}
	e2 := entryOf("e2", "/svc/two", "unix:uid:2")
	e2.FederatesWith = []string{"other.org"}
	alien := entryOf("e3", "/svc/web", "unix:uid:1")
	alien.SpiffeId.TrustDomain = "evil.org"
	full := &watchv1.SyncReply{Revision: 7, Digest: digest("e2"), Bundle: &watchv1.Bundle{TrustDomain: testTD.Name(), Tag: []byte("b"), Bundle: bundle},
		Changed: []*watchv1.Changed{tagged(e2)}, Gone: []string{"e1", "e1", "never"}}
	f.Add(prototest.Delimited(full))
	f.Add(prototest.Delimited(&watchv1.SyncReply{More: true, Digest: digest("e2", "e3"), Changed: []*watchv1.Changed{tagged(e2), tagged(e2)}}, &watchv1.SyncReply{Changed: []*watchv1.Changed{tagged(alien)}, Gone: []string{"e1"},
		Federated: []*watchv1.Bundle{{TrustDomain: "other.org"}, {TrustDomain: "other.org", Bundle: bundle}, {}}}))
	f.Add(prototest.Delimited(&watchv1.SyncReply{Digest: digest(""), Changed: []*watchv1.Changed{{}, tagged(nil)}, Gone: []string{"e1"}, Revision: math.MaxUint64}))
	f.Add(prototest.Delimited(&watchv1.SyncReply{Digest: digest()}))
	a := idle(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		replies := prototest.Parted[watchv1.SyncReply](data)
		if len(replies) == 0 {
			return
		}
		_ = a.takeTold(replies[0])
		before := a.cache.all()
		entries, err := a.merge(a.cache.held(), replies)
		if err != nil {
			if diff := cmp.Diff(len(before), len(a.cache.all())); diff != "" {
				t.Error(diff)
			}
			return
		}
		a.takeEntries(entries, nil)
		a.takeFederated(replies)
		for _, e := range entries {
			if e.id == "" || e.served && (e.spiffeID.TrustDomain() != testTD || e.spiffeID.Path() == "" || len(e.selectors) == 0) {
				t.Errorf("taken: %+v", e)
			}
		}
		if got := a.cache.match(nil); len(got) > 0 {
			t.Errorf("a process without any property has %d names", len(got))
		}
		if !bytes.Equal(a.cache.held().digest(), replies[0].Digest) {
			t.Error("what is held does not have the digest that was named")
		}
		if b := a.cache.bundle; b != nil && b.TrustDomain() != testTD {
			t.Errorf("the bundle is of %s", b.TrustDomain())
		}
		for td := range a.cache.federated {
			if td == testTD || !slices.Contains(a.cache.federatesWith(), td) {
				t.Errorf("a bundle of %s", td)
			}
		}
	})
}

// Whatever is shown as a JWT-SVID: what validates says what was signed, and what we
// read of it ourselves is the same.
func FuzzToken(f *testing.F) {
	issuer := newFake()
	key := jose.JSONWebKey{Key: issuer.jwtKey, KeyID: "jwt-1"}
	signer := need(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT")))
	web := spiffeid.RequireFromPath(testTD, "/svc/web")
	claims := jwt.Claims{ID: "77", Subject: web.String(), Audience: jwt.Audience{"a"}, IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(time.Now().Add(1000 * time.Hour))}
	good := need(jwt.Signed(signer).Claims(claims).Serialize())
	f.Add(good)
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add(good[:len(good)-3])
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add(need(jwt.Signed(signer).Claims(map[string]any{"sub": web.String(), "aud": []any{1, "a"}, "exp": 1e300, "iat": -1, "jti": []string{}}).Serialize()))
	bundles := jwtbundle.FromJWTAuthorities(testTD, map[string]crypto.PublicKey{"jwt-1": issuer.jwtKey.Public()})
	want := map[string]any{}
	if err := json.Unmarshal(need(json.Marshal(claims)), &want); err != nil {
		f.Fatal(err)
	}
	a := idle(f)
	a.tellRevoked(revocation.Updates([]*revocation.Revocation{{Kind: revocation.Serial, Subject: "77", Expires: time.Now().Add(1000 * time.Hour), Number: 1}}, 1, time.Now())[0])
	f.Fuzz(func(t *testing.T, token string) {
		_ = keyIDOf(token)
		if loose, err := jwtsvid.ParseInsecure(token, []string{"a"}); err == nil {
			_ = a.jwtRevoked(loose)
		}
		svid, err := jwtsvid.ParseAndValidate(token, bundles, []string{"a"})
		if err != nil {
			return
		}
		if diff := cmp.Diff(want, svid.Claims); diff != "" {
			t.Errorf("forged: %s", diff)
		}
		if keyIDOf(token) != "jwt-1" || !a.jwtRevoked(svid) {
			t.Errorf("key %q, or not known for revoked", keyIDOf(token))
		}
	})
}
