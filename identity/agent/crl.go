package agent

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"

	"github.com/writ-dev/writ/identity/watchv1"
)

// crls are the issuer's CRLs.
type crls struct {
	lists []*x509.RevocationList
	// proven are those that an authority of the bundle signed.
	proven []*x509.RevocationList
	// without are the authorities that had none when it was last looked, by key ID.
	without []string
}

// takeCRLs takes over the CRLs of an issuer. nil is no news.
func (a *Agent) takeCRLs(c *watchv1.CRLs) {
	if c == nil {
		return
	}
	var lists []*x509.RevocationList
	for _, der := range c.Lists {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			a.log.Error("a CRL of the issuer cannot be read: the ones of before stay", "error", err)
			return
		}
		lists = append(lists, list)
	}
	a.cache.setCRLs(lists)
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

func (c *cache) setCRLs(lists []*x509.RevocationList) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.crls.proven
	c.crls.lists = lists
	c.proveCRLs()
	// Of an authority whose key is gone no new one is signed. The last one stands.
	for _, old := range before {
		if !slices.ContainsFunc(c.crls.proven, func(list *x509.RevocationList) bool { return bytes.Equal(list.RawIssuer, old.RawIssuer) }) {
			c.crls.lists, c.crls.proven = append(c.crls.lists, old), append(c.crls.proven, old)
		}
	}
	if !slices.EqualFunc(before, c.crls.proven, func(a, b *x509.RevocationList) bool { return bytes.Equal(a.Raw, b.Raw) }) {
		c.wake()
	}
}

// proveCRLs finds those of the lists that the bundle vouches for. Each list is there
// before the bundle that has its authority.
func (c *cache) proveCRLs() {
	c.crls.proven = nil
	if c.bundle == nil || len(c.crls.lists) == 0 {
		return
	}
	authorities, _ := x509.ParseCertificates(c.bundle.X509()) // they were parsed when they arrived
	for _, list := range c.crls.lists {
		if slices.ContainsFunc(authorities, func(a *x509.Certificate) bool {
			return bytes.Equal(list.RawIssuer, a.RawSubject) && list.CheckSignatureFrom(a) == nil
		}) {
			c.crls.proven = append(c.crls.proven, list)
		}
	}
}

// withoutCRL are the authorities of the bundle that have not ended and have no list,
// and whether that has changed.
func (c *cache) withoutCRL(now time.Time) (without []string, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bundle == nil {
		return nil, false
	}
	authorities, _ := x509.ParseCertificates(c.bundle.X509()) // they were parsed when they arrived
	for _, a := range authorities {
		if now.Before(a.NotAfter) && !slices.ContainsFunc(c.crls.proven, func(list *x509.RevocationList) bool { return bytes.Equal(list.RawIssuer, a.RawSubject) }) {
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
// everybody refused, and its authority has ended with it.
func (c *crls) current(now time.Time) (der [][]byte) {
	for _, list := range c.proven {
		if now.Before(list.NextUpdate) {
			der = append(der, list.Raw)
		}
	}
	return der
}
