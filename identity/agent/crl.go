package agent

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity/watchv1"
)

// maxCRLs bounds what is kept of lists and intermediates, in a fleet of any sense.
const maxCRLs = 256

// crls are the issuers' CRLs.
type crls struct {
	// lists are the latest of each authority, intermediates what may be between
	// their signers and the bundle.
	lists         []*x509.RevocationList
	intermediates []*x509.Certificate
	// proven are those that the bundle vouches for.
	proven []provenCRL
	// without are the authorities that had none when it was last looked, by key ID.
	without []string
}

// provenCRL is a list whose signer is an authority of the bundle, or leads to one.
type provenCRL struct {
	list *x509.RevocationList
	root *x509.Certificate
}

// takeCRLs takes over CRLs of an issuer. nil is no news.
func (a *Agent) takeCRLs(c *watchv1.CRLs) {
	if c != nil {
		var lists []*x509.RevocationList
		var intermediates []*x509.Certificate
		for _, der := range c.Lists {
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				a.log.Error("a CRL of the issuer cannot be read: the ones of before stay", "error", err)
				return
			}
			lists = append(lists, list)
		}
		for _, der := range c.Intermediates {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				a.log.Error("a certificate that belongs to CRLs of the issuer cannot be read: the ones of before stay", "error", err)
				return
			}
			intermediates = append(intermediates, cert)
		}
		a.cache.addCRLs(lists, intermediates, time.Now())
	}
	a.noteCRLs()
}

// noteCRLs says which authorities have no CRL: Envoys that get CRLs refuse all that
// those signed.
func (a *Agent) noteCRLs() {
	if !a.cfg.SDS.CRL {
		return
	}
	switch without, changed := a.cache.withoutCRL(time.Now()); {
	case changed && len(without) > 0:
		a.log.Error("authorities have no CRL: what they signed is refused by Envoys that get CRLs", "key_ids", without)
	case changed:
		a.log.Info("each authority has a CRL")
	}
}

// addCRLs takes lists in place of those of the same authorities. The others stand:
// of an authority whose key is gone, or whose replica is away, none is signed.
func (c *cache) addCRLs(lists []*x509.RevocationList, intermediates []*x509.Certificate, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.crls
	for _, list := range lists {
		k.lists = append(slices.DeleteFunc(k.lists, func(o *x509.RevocationList) bool { return sameSigner(o, list) }), list)
	}
	k.lists = slices.DeleteFunc(k.lists, func(l *x509.RevocationList) bool { return !now.Before(l.NextUpdate) })
	for _, cert := range intermediates {
		k.intermediates = append(slices.DeleteFunc(k.intermediates, cert.Equal), cert)
	}
	k.intermediates = slices.DeleteFunc(k.intermediates, func(c *x509.Certificate) bool { return !now.Before(c.NotAfter) })
	k.lists, k.intermediates = latest(k.lists), latest(k.intermediates)
	before := k.proven
	c.proveCRLs()
	if !slices.EqualFunc(before, k.proven, func(a, b provenCRL) bool { return bytes.Equal(a.list.Raw, b.list.Raw) }) {
		c.wake()
	}
}

func sameSigner(a, b *x509.RevocationList) bool {
	return bytes.Equal(a.RawIssuer, b.RawIssuer) && bytes.Equal(a.AuthorityKeyId, b.AuthorityKeyId)
}

func latest[T any](list []T) []T { return list[max(0, len(list)-maxCRLs):] }

// proveCRLs finds those of the lists that the bundle vouches for. Each list is there
// before the bundle that has its authority.
func (c *cache) proveCRLs() {
	c.crls.proven = nil
	if c.bundle == nil || len(c.crls.lists) == 0 {
		return
	}
	authorities, _ := x509.ParseCertificates(c.bundle.X509()) // they were parsed when they arrived
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, a := range authorities {
		roots.AddCert(a)
	}
	for _, cert := range c.crls.intermediates {
		between.AddCert(cert)
	}
	for _, list := range c.crls.lists {
		if root := c.crls.prove(list, authorities, roots, between); root != nil {
			c.crls.proven = append(c.crls.proven, provenCRL{list, root})
		}
	}
}

// prove is the authority of the bundle that vouches for a list, nil if none does.
func (c *crls) prove(list *x509.RevocationList, authorities []*x509.Certificate, roots, between *x509.CertPool) *x509.Certificate {
	by := func(cert *x509.Certificate) bool {
		return bytes.Equal(list.RawIssuer, cert.RawSubject) && list.CheckSignatureFrom(cert) == nil
	}
	if n := slices.IndexFunc(authorities, by); n >= 0 {
		return authorities[n]
	}
	n := slices.IndexFunc(c.intermediates, by)
	if n < 0 {
		return nil
	}
	signer := c.intermediates[n]
	chains, err := signer.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: signer.NotAfter.Add(-time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil
	}
	return chains[0][len(chains[0])-1]
}

// withoutCRL are the authorities of the bundle that have not ended and have no list
// that is good, nor an authority below them that has, and whether that has changed.
func (c *cache) withoutCRL(now time.Time) (without []string, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bundle == nil {
		return nil, false
	}
	authorities, _ := x509.ParseCertificates(c.bundle.X509()) // they were parsed when they arrived
	for _, a := range authorities {
		if now.Before(a.NotAfter) && !slices.ContainsFunc(c.crls.proven, func(p provenCRL) bool { return p.root.Equal(a) && now.Before(p.list.NextUpdate) }) {
			without = append(without, hex.EncodeToString(a.SubjectKeyId))
		}
	}
	changed = !slices.Equal(without, c.crls.without)
	c.crls.without = without
	return without, changed
}

func (c *cache) countWithoutCRL() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.crls.without)
}

// current are the CRLs to give to workloads, DER. One that has ended would have
// everybody refused whom its authority signed, as none has.
func (c *crls) current(now time.Time) (der [][]byte) {
	for _, p := range c.proven {
		if now.Before(p.list.NextUpdate) {
			der = append(der, p.list.Raw)
		}
	}
	return der
}
