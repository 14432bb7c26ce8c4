package agent

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// taintSpread is the time over which agents replace SVIDs under a tainted
// authority, each at a moment of its own. All of them learn of it at once, and
// the issuer has to live through it; one that was revoked already leaves nothing
// to wait for.
const taintSpread = 15 * time.Second

// trust is by what the agent judges what it holds. It does not change.
type trust struct {
	// sound are the X.509 authorities that are not tainted.
	sound, all *x509.CertPool
	// jwt says of the key IDs of JWT authorities whether they are tainted.
	jwt map[string]bool
	// digest differs where the trust does.
	digest [sha256.Size]byte
}

func newTrust(b *types.Bundle, certs []*x509.Certificate, keys []string) *trust {
	t := &trust{sound: x509.NewCertPool(), all: x509.NewCertPool(), jwt: map[string]bool{}}
	tainted := map[string]bool{}
	sum := sha256.New()
	note := func(what []byte, tainted bool) { fmt.Fprintf(sum, "%d:%s:%t;", len(what), what, tainted) }
	for _, a := range b.X509Authorities {
		tainted[string(a.Asn1)] = a.Tainted
	}
	for _, cert := range certs {
		t.all.AddCert(cert)
		if !tainted[string(cert.Raw)] {
			t.sound.AddCert(cert)
		}
		note(cert.Raw, tainted[string(cert.Raw)])
	}
	for _, k := range b.JwtAuthorities {
		if slices.Contains(keys, k.KeyId) {
			t.jwt[k.KeyId] = k.Tainted
			note([]byte(k.KeyId), k.Tainted)
		}
	}
	t.digest = [sha256.Size]byte(sum.Sum(nil))
	return t
}

// taintsKey tells whether a JWT authority is known to be tainted.
func (t *trust) taintsKey(id string) bool { return t != nil && t.jwt[id] }

// replaceIn says how soon an X509-SVID should be replaced, other than by its
// age: after wait where its authority is tainted, now where it is in no bundle
// any more; false if it need not be.
func (t *trust) replaceIn(chain []*x509.Certificate, wait time.Duration) (time.Duration, bool) {
	switch {
	case len(chain) == 0 || leadsTo(chain, t.sound):
		return 0, false
	case leadsTo(chain, t.all):
		return wait, true
	}
	return 0, true
}

// leadsTo verifies a chain at a time at which its leaf was valid.
func leadsTo(chain []*x509.Certificate, roots *x509.CertPool) bool {
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: chain[0].NotAfter.Add(-time.Second),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

// follow replaces what a bundle, that has just come into force, taints or no
// longer has. Each SVID is looked at once for each bundle, so that an issuer
// that signs with what it has tainted is not asked forever.
func (a *Agent) follow(b *bundle) {
	if old := a.trusted.Load(); old != nil && old.digest == b.trust.digest {
		return
	}
	a.trusted.Store(b.trust)
	now, wait := time.Now(), time.Duration(rand.Int64N(int64(taintSpread)))
	if n := a.cache.judge(b.trust, now, wait); n > 0 {
		a.log.Info("SVIDs are replaced, because their authority is tainted or revoked", slog.Int("count", n), slog.Duration("in", wait))
	}
	if n := a.jwt.judge(b.trust); n > 0 {
		a.log.Info("JWT-SVIDs are dropped, because their key is tainted or revoked", slog.Int("count", n))
	}
	a.renewBy = time.Time{}
	if own := a.self.svid.Load(); own != nil {
		if in, ok := b.trust.replaceIn(own.Certificates, wait); ok {
			a.renewBy = now.Add(in)
		}
	}
}

// judge brings forward the signing of what should be replaced.
func (c *cache) judge(t *trust, now time.Time, wait time.Duration) (count int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.every() {
		if r.identity.Chain == nil {
			continue
		}
		chain, err := x509.ParseCertificates(r.identity.Chain)
		if err != nil {
			continue // it was parsed when it arrived
		}
		if in, ok := t.replaceIn(chain, wait); ok {
			count++
			if due := now.Add(in); due.Before(r.due) {
				r.due = due
			}
		}
	}
	return count
}

// judge drops the tokens that are not signed by a key that is good.
func (t *tokens) judge(by *trust) (count int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, tok := range t.kept {
		if tainted, known := by.jwt[tok.keyID]; tainted || !known {
			delete(t.kept, key)
			count++
		}
	}
	return count
}

// keyIDOf is the kid of a JWT-SVID, or "".
func keyIDOf(token string) string {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{
		jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	})
	if err != nil || len(parsed.Headers) != 1 {
		return ""
	}
	return parsed.Headers[0].KeyID
}
