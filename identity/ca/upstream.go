package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/skew"
)

// ErrUpstream: the upstream does not do what it was asked for. What is there
// goes on signing; try again later.
var ErrUpstream = errors.New("upstream authority")

// Upstream is the authority above this CA: it signs the X.509 authorities, and
// its roots are what SVIDs are verified by.
type Upstream interface {
	// MintX509CA signs the authority whose request (PKCS #10, DER) this is. The
	// chain is the authority's certificate and what is between it and its root,
	// without that; the roots are all that the upstream has.
	MintX509CA(ctx context.Context, csr []byte, life time.Duration) (chain []*x509.Certificate, roots []Root, err error)
	// PublishJWTKey makes a JWT authority known where the upstream is known.
	// The error is errors.ErrUnsupported where an upstream has no such thing.
	PublishJWTKey(ctx context.Context, key JWTAuthority) error
	// Follow calls changed with what the upstream's bundle is, and again when
	// it has changed, until ctx ends or it cannot be followed just now.
	Follow(ctx context.Context, changed func(UpstreamBundle)) error
}

// UpstreamBundle is what an upstream publishes.
type UpstreamBundle struct {
	X509 []Root
	JWT  []JWTAuthority
}

const (
	// upstreamTimeout bounds one call of an upstream.
	upstreamTimeout = 30 * time.Second
	// upstreamRetry is when to try again what an upstream refused, and
	// upstreamRetryMost when at the latest to follow one that is away: each time
	// twice as long as before, less up to a half, since others follow it too.
	upstreamRetry     = 5 * time.Second
	upstreamRetryMost = time.Minute
)

// mintUpstream gets the certificate of an authority from the upstream.
func (c *CA) mintUpstream(ctx context.Context, a *authority) ([]Root, error) {
	template, err := c.template(a.signer.Public())
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: template.Subject, URIs: template.URIs}, a.signer)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	chain, roots, err := c.cfg.Upstream.MintX509CA(limited, csr, c.cfg.Life)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUpstream, err)
	}
	// What was revoked here is in no bundle, though the upstream signs with it.
	said := c.verdictsNow()
	roots = slices.DeleteFunc(slices.Clone(roots), func(r Root) bool {
		_, revoked := said.of(X509, KeyID(r.Cert.SubjectKeyId))
		return revoked
	})
	if err := c.checkMinted(a, chain, roots); err != nil {
		return nil, fmt.Errorf("%w: it signed a certificate that is of no use: %w", ErrUpstream, err)
	}
	a.cert, a.chain, a.notAfter = chain[0], chain, chain[0].NotAfter
	if !a.mayList() {
		c.cfg.Log.WarnContext(ctx, "the upstream does not let this authority sign CRLs (key usage cRLSign): Envoys that get CRLs refuse all that it signs", "id", a.publicID())
	}
	return roots, nil
}

// checkMinted accepts a chain below which an X509-SVID verifies, as everybody
// else will verify it: it tries, with one that never leaves this function.
func (c *CA) checkMinted(a *authority, chain []*x509.Certificate, roots []Root) error {
	if len(chain) == 0 {
		return errors.New("the chain is empty")
	}
	cert := chain[0]
	if public, ok := a.signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(cert.PublicKey) {
		return errors.New("it is for another key")
	}
	now := c.Now()
	want := c.cfg.TrustDomain.IDString()
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("it is not a CA that may sign certificates")
	case len(cert.URIs) != 1 || cert.URIs[0].String() != want:
		return fmt.Errorf("its URIs are %v, want %s alone", cert.URIs, want)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("it %s", skew.Of(cert, now))
	case !now.Before(cert.NotAfter):
		return fmt.Errorf("it %s", skew.Of(cert, now))
	case !now.Add(MinLife).Before(cert.NotAfter):
		return fmt.Errorf("it ends at %s already", cert.NotAfter.UTC().Format(time.RFC3339))
	case len(cert.SubjectKeyId) == 0:
		return errors.New("it has no subject key identifier")
	}
	leaf := leafTemplate(identity.ServerID(c.cfg.TrustDomain), now, now.Add(MinSVIDLife))
	der, err := x509.CreateCertificate(rand.Reader, leaf, cert, a.signer.Public(), a.signer)
	if err != nil {
		return err
	}
	svid, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root.Cert)
	}
	for _, cert := range chain {
		between.AddCert(cert)
	}
	_, err = svid.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("an X509-SVID below it does not verify by the upstream's roots: %w", err)
	}
	return nil
}

// publishUpstream makes a JWT authority of ours known upstream, where that is
// possible.
func (c *CA) publishUpstream(ctx context.Context, a *authority) error {
	if c.cfg.Upstream == nil {
		return nil
	}
	return c.publishKeyUpstream(ctx, JWTAuthority{KeyID: a.id, PublicKey: a.pkix, ExpiresAt: a.notAfter, Tainted: a.tainted})
}

func (c *CA) publishKeyUpstream(ctx context.Context, key JWTAuthority) error {
	limited, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	err := c.cfg.Upstream.PublishJWTKey(limited, key)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return fmt.Errorf("%w: publish JWT authority %s: %w", ErrUpstream, key.KeyID, err)
}

// follow keeps the upstream's part of the bundle what it is there.
func (c *CA) follow(ctx context.Context) {
	latest := make(chan UpstreamBundle, 1)
	wait := upstreamRetry
	put := func(b UpstreamBundle) {
		wait = upstreamRetry // it answers
		select {
		case <-latest: // nobody needs the one before
		default:
		}
		latest <- b
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := c.cfg.Upstream.Follow(ctx, put); err != nil && ctx.Err() == nil {
				c.cfg.Log.WarnContext(ctx, "cannot follow the upstream's bundle, trying again", "error", err)
			}
			pause(ctx, wait-mathrand.N(wait/2))
			wait = min(2*wait, upstreamRetryMost)
		}
	}()
	defer func() { <-done }()
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-latest:
			for ctx.Err() == nil {
				err := c.applyUpstream(ctx, b)
				if err == nil {
					break
				}
				c.cfg.Log.ErrorContext(ctx, "cannot take over the upstream's bundle, trying again", "error", err)
				pause(ctx, upstreamRetry)
				select {
				case b = <-latest:
				default:
				}
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// applyUpstream puts the upstream's bundle into ours. Where it taints what signs
// here, another authority is signed and put to work first, so that those who
// then replace their SVIDs get better ones.
func (c *CA) applyUpstream(ctx context.Context, b UpstreamBundle) error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	now, gone := c.Now(), c.gone()
	ch := c.begin("")
	set := ch.mergeUpstream(b, gone)
	sound := x509.NewCertPool()
	for _, root := range set.X509 {
		if !root.Tainted && !root.revoked {
			sound.AddCert(root.Cert)
		}
	}
	unsound := func(a *authority) bool { return a != nil && len(a.chain) > 0 && !leadsTo(a.chain, sound) }
	if unsound(ch.x509.next) {
		ch.drop("discarded", X509, ch.x509.next)
		ch.x509.next = nil
	}
	if unsound(ch.x509.active) {
		if ch.x509.next == nil {
			if err := c.prepare(ctx, ch, X509, now); err != nil {
				return fmt.Errorf("replace an authority that a tainted one signed: %w", err)
			}
			for _, root := range ch.foreign.of(ownerUpstream).X509 {
				if !root.Tainted && !root.revoked {
					sound.AddCert(root.Cert)
				}
			}
			if unsound(ch.x509.next) {
				c.discard(ch.made)
				return fmt.Errorf("%w: it goes on signing with an authority that it has tainted", ErrUpstream)
			}
			set = ch.mergeUpstream(UpstreamBundle{X509: append(slices.Clone(set.X509), ch.foreign.of(ownerUpstream).X509...), JWT: set.JWT}, gone)
		}
		ch.activate(X509)
	}
	ch.setForeign(set, gone)
	if err := c.commit(ctx, ch); err != nil {
		return err
	}
	// What the upstream does not know, because it is new or has forgotten.
	for _, a := range c.jwt.all() {
		if !a.tainted && !a.expired(now) && !slices.ContainsFunc(b.JWT, func(o JWTAuthority) bool { return o.KeyID == a.id }) {
			if err := c.publishUpstream(ctx, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// mergeUpstream is the upstream's set to be: what it has, and the roots that it
// does not list any more while an authority of ours leads to them, unless they
// are tainted. It may be another upstream than before.
func (ch *change) mergeUpstream(b UpstreamBundle, gone time.Time) Foreign {
	old := ch.foreign.of(ownerUpstream)
	set := Foreign{Owner: ownerUpstream}
	for _, root := range b.X509 {
		if n := slices.IndexFunc(old.X509, root.same); n >= 0 {
			root.Tainted, root.revoked = root.Tainted || old.X509[n].Tainted, old.X509[n].revoked
		}
		tainted, revoked := ch.said.of(X509, KeyID(root.Cert.SubjectKeyId))
		root.Tainted, root.revoked = root.Tainted || tainted, root.revoked || revoked
		if !slices.ContainsFunc(set.X509, root.same) {
			set.X509 = append(set.X509, root)
		}
	}
	for _, root := range old.X509 {
		if !root.Tainted && !root.expired(gone) && !slices.ContainsFunc(set.X509, root.same) && ch.leadTo(root) {
			set.X509 = append(set.X509, root)
		}
	}
	for _, key := range b.JWT {
		if !slices.ContainsFunc(ch.jwt.all(), func(a *authority) bool { return a.id == key.KeyID }) {
			set.JWT = append(set.JWT, key)
		}
	}
	return set
}

// leadTo tells whether one of the CA's own authorities is below a root.
func (ch *change) leadTo(root Root) bool {
	pool := x509.NewCertPool()
	pool.AddCert(root.Cert)
	return slices.ContainsFunc(ch.x509.all(), func(a *authority) bool { return len(a.chain) > 0 && leadsTo(a.chain, pool) })
}

// addRoots puts roots that came with a signature into the upstream's set.
func (ch *change) addRoots(roots []Root, gone time.Time) {
	old := ch.foreign.of(ownerUpstream)
	set := ch.mergeUpstream(UpstreamBundle{X509: roots, JWT: old.JWT}, gone)
	// A signature's answer may lack what the bundle says of a tainted root.
	for _, root := range old.X509 {
		if root.Tainted && !slices.ContainsFunc(set.X509, root.same) {
			set.X509 = append(set.X509, root)
		}
	}
	ch.setForeign(set, gone)
}
