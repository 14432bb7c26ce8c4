package ca

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"
)

// crlBackdate is how far before its making a CRL is valid. Who meets one that is
// from the future refuses everybody, and not only what was just issued.
const crlBackdate = time.Hour

// CRLs signs a certificate revocation list (RFC 5280 section 5, DER) for each X.509
// authority of this CA that is its own root and has its key still. Those whom others
// sign have none: who verifies by the roots of others would need theirs as well.
//
// A list is good until its authority ends, since nothing that it names lives longer,
// and somebody who meets an old one refuses everybody: an issuer that is away must
// not do that. How current it is, is for those who pass it on to see to.
//
// number is the CRL number, which grows; revoked has serial numbers and times.
func (c *CA) CRLs(number *big.Int, revoked []x509.RevocationListEntry) (lists [][]byte, err error) {
	c.mu.RLock()
	all := c.x509.all()
	c.mu.RUnlock()
	now := c.Now().UTC().Truncate(time.Second)
	for _, a := range all {
		if a.signer == nil || a.ended || len(a.chain) > 0 || a.expired(now) {
			continue
		}
		from := now.Add(-crlBackdate)
		if from.Before(a.notBefore) {
			from = a.notBefore
		}
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: number, ThisUpdate: from, NextUpdate: a.notAfter, RevokedCertificateEntries: revoked,
		}, a.cert, a.signer)
		if err != nil {
			return nil, fmt.Errorf("sign CRL of authority %s: %w", a.publicID(), err)
		}
		lists = append(lists, der)
	}
	return lists, nil
}
