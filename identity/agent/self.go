package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/writ-dev/writ/identity/admit"
)

// self is the agent's own identity: what it shows the issuer, and what it knows
// the issuer by.
type self struct {
	svid atomic.Pointer[x509svid.SVID]
	// received is when svid arrived, nil for one that was kept.
	received atomic.Pointer[time.Time]
	bundle   atomic.Pointer[x509bundle.Bundle]
}

// set takes into use an SVID that has just arrived.
func (s *self) set(svid *x509svid.SVID) {
	now := time.Now()
	s.received.Store(&now)
	s.svid.Store(svid)
}

func (s *self) GetX509SVID() (*x509svid.SVID, error) {
	if svid := s.svid.Load(); svid != nil {
		return svid, nil
	}
	return nil, errors.New("the agent has no SVID")
}

func (s *self) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if b := s.bundle.Load(); b != nil {
		return b.GetX509BundleForTrustDomain(td)
	}
	return nil, errors.New("the agent has no trust bundle")
}

// expired tells whether the own SVID can no longer be shown.
func (s *self) expired(now time.Time) bool {
	svid := s.svid.Load()
	return svid == nil || !now.Before(svid.Certificates[0].NotAfter)
}

// newKey makes a private key and a signing request that carries its public half
// and nothing else: the issuer decides what is in an SVID.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, csr, err
}

// acceptSVID checks an SVID from the issuer: it must be for the key, for the ID
// if one is given, still valid, and lead to the bundle. Where only the time is
// wrong it is returned with a *skew.Error.
func acceptSVID(got *types.X509SVID, key *ecdsa.PrivateKey, want spiffeid.ID, bundle x509bundle.Source) (*x509svid.SVID, error) {
	if got == nil || len(got.CertChain) == 0 {
		return nil, errors.New("the issuer answered without an SVID")
	}
	var chain []byte
	for _, der := range got.CertChain {
		chain = append(chain, der...)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	svid, err := x509svid.ParseRaw(chain, pkcs8)
	if err != nil {
		return nil, err
	}
	if !want.IsZero() && svid.ID != want {
		return nil, fmt.Errorf("the SVID is of %s, not of %s", svid.ID, want)
	}
	if err := verify(svid.Certificates, bundle); ofClocks(err) != nil {
		return svid, fmt.Errorf("the SVID %w", err)
	} else if err != nil {
		return nil, err
	}
	return svid, nil
}

// renewal is when to renew what arrived at received and ends at notAfter: at
// half of that time, less or more a tenth, so that what was issued together is
// not renewed together. The part of a life before it arrived is backdating, or
// the delay of the network, and does not count. Where the clocks are so far apart
// that next to nothing was left, it is not asked for again and again.
func renewal(received, notAfter time.Time) time.Time {
	half := max(notAfter.Sub(received)/2, leastRenewal)
	// By the wall clock, like notAfter: the monotonic one stands still while
	// the machine sleeps.
	return received.Add(jitter(half, 0.1)).Round(0)
}

// leastRenewal is less than half of the shortest life there is.
const leastRenewal = 4 * time.Second

// jitter returns d less or more a random part of it.
func jitter(d time.Duration, part float64) time.Duration {
	return time.Duration(float64(d) * (1 + part*(2*mathrand.Float64()-1)))
}

// backoff spaces attempts: doubling from a quarter of a second to five, each
// less up to a half so that agents do not come back as one.
type backoff struct{ failures int }

const (
	backoffFirst = 250 * time.Millisecond
	backoffMost  = 5 * time.Second
	// backoffTold is the longest that an issuer can have an agent wait.
	backoffTold = time.Minute
)

func (b *backoff) next() time.Duration {
	d := min(backoffFirst<<min(b.failures, 10), backoffMost)
	b.failures++
	return jitter(d*3/4, 1.0/3)
}

// after is next, or longer where the issuer said when to come again.
func (b *backoff) after(err error) time.Duration {
	wait := b.next()
	if told, ok := admit.RetryAfter(err); ok {
		wait = max(wait, heed(told))
	}
	return wait
}

// heed is how long to wait where the issuer said when to come again: up to half as
// long as that again, for it says so to many.
func heed(told time.Duration) time.Duration {
	told = min(told, backoffTold)
	return told + time.Duration(mathrand.Int64N(int64(told/2)+1))
}

func (b *backoff) reset() { b.failures = 0 }
