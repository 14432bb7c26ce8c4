package ca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/writ-dev/writ/identity/revocation"
)

const (
	// crlBackdate is how far before its making a CRL is valid. Who meets one that is
	// from the future refuses everybody, and not only what was just issued.
	crlBackdate = time.Hour
	// maxListed is how many serial numbers a CRL may have: Envoy gets all lists in
	// one message.
	maxListed = 20_000
)

// RevocationLists are CRLs (RFC 5280 section 5), and what is needed to verify them.
// It does not change.
type RevocationLists struct {
	// Lists, DER, one for each X.509 authority of this CA and of its peers that may
	// have signed what is valid. It holds what is revoked by serial number.
	Lists [][]byte
	// Intermediates, DER, are the certificates between the signers of Lists and the
	// roots, those of the signers among them.
	Intermediates [][]byte
}

// crls are those of this CA's own authorities, as they were signed last.
type crls struct {
	mu      sync.Mutex
	signers []*authority
	revoked *revocation.List
	// serials are the keys of what is in lists.
	serials []string
	lists   [][]byte
	at, due time.Time // when they were signed, and are to be signed anew
	number  int64
	// saved is what the other replicas have of lists.
	saved [][]byte
}

// RevocationLists returns the current lists, signed anew where the authorities, the
// serial numbers or their time call for it, and a channel that is closed when those
// of peers are others.
func (c *CA) RevocationLists() (*RevocationLists, <-chan struct{}, error) {
	c.mu.RLock()
	signers, peers, changed := c.x509.listing(), c.peers.crls, c.listed
	if c.peers.removed {
		signers = nil
	}
	c.mu.RUnlock()
	own, err := c.ownCRLs(signers)
	if err != nil {
		return nil, changed, err
	}
	all := &RevocationLists{Lists: slices.Clone(own)}
	for _, a := range signers {
		all.Intermediates = append(all.Intermediates, a.rawChain()...)
	}
	for _, p := range peers {
		all.Lists = append(all.Lists, p.lists...)
		all.Intermediates = append(all.Intermediates, p.between...)
	}
	slices.SortFunc(all.Intermediates, bytes.Compare)
	all.Intermediates = slices.CompactFunc(all.Intermediates, bytes.Equal)
	return all, changed, nil
}

// listing are the authorities that sign CRLs: those that have their key still.
func (s *slots) listing() []*authority {
	return slices.DeleteFunc(s.all(), func(a *authority) bool { return a.signer == nil || a.ended })
}

// mayList tells whether the certificate lets the authority sign CRLs (RFC 5280
// section 4.2.1.3). That of an upstream may not.
func (a *authority) mayList() bool { return a.cert.KeyUsage&x509.KeyUsageCRLSign != 0 }

// ownCRLs are the lists of these authorities.
//
// A list is good for Config.CRLLife, or until its authority ends, since nothing that
// it names lives longer. It is signed anew at half of that, so that an issuer that is
// away for less ends nobody: who meets an old list refuses everybody.
func (c *CA) ownCRLs(signers []*authority) ([][]byte, error) {
	revoked, _ := c.cfg.Revoked()
	now := c.Now().UTC()
	k := &c.crls
	k.mu.Lock()
	defer k.mu.Unlock()
	inTime := !now.Before(k.at) && now.Before(k.due)
	if inTime && k.revoked == revoked && slices.Equal(k.signers, signers) {
		return k.lists, nil
	}
	serials, entries, err := listed(revoked)
	if err != nil {
		return nil, err
	}
	if inTime && slices.Equal(k.serials, serials) && slices.Equal(k.signers, signers) {
		k.revoked = revoked
		return k.lists, nil
	}
	// Numbers grow (RFC 5280 section 5.2.3), also over a restart.
	number := max(now.UnixMicro(), k.number+1)
	var lists [][]byte
	for _, a := range signers {
		if a.expired(now) || !a.mayList() {
			continue
		}
		der, err := c.signCRL(a, number, now, entries)
		if err != nil {
			return nil, fmt.Errorf("sign CRL of authority %s: %w", a.publicID(), err)
		}
		lists = append(lists, der)
	}
	k.signers, k.revoked, k.serials, k.lists, k.number = signers, revoked, serials, lists, number
	k.at, k.due = now, now.Add(c.cfg.CRLLife/2)
	return lists, nil
}

func (c *CA) signCRL(a *authority, number int64, now time.Time, entries []x509.RevocationListEntry) ([]byte, error) {
	now = now.Truncate(time.Second)
	from, to := now.Add(-crlBackdate), now.Add(c.cfg.CRLLife)
	if from.Before(a.notBefore) {
		from = a.notBefore
	}
	if to.After(a.notAfter) {
		to = a.notAfter
	}
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: from, NextUpdate: to, RevokedCertificateEntries: entries,
	}, a.cert, a.signer)
}

// listed is what of the revocations goes into a CRL, and their keys, sorted.
func listed(list *revocation.List) (serials []string, entries []x509.RevocationListEntry, err error) {
	for _, r := range list.All() {
		if r.Kind != revocation.Serial {
			continue
		}
		serial, err := revocation.ParseSerial(r.Subject)
		if err != nil {
			return nil, nil, fmt.Errorf("CRL: %w", err)
		}
		serials = append(serials, r.Subject)
		entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.Revoked})
	}
	if len(serials) > maxListed {
		return nil, nil, fmt.Errorf("CRL: %d serial numbers are revoked, and a list has %d at most: revoke by SPIFFE ID or agent instead", len(serials), maxListed)
	}
	slices.Sort(serials)
	return serials, entries, nil
}

// saveCRLs gives the other replicas the lists of these authorities. Hold rotating.
func (c *CA) saveCRLs(ctx context.Context, s *slots) error {
	if c.cfg.Peers == nil {
		return nil
	}
	lists, err := c.ownCRLs(s.listing())
	if err != nil {
		// Rotation is not held up: the lists of before stand.
		c.cfg.Log.ErrorContext(ctx, "no new CRLs", "error", err)
		return nil
	}
	c.crls.mu.Lock()
	same := c.crls.saved != nil && slices.EqualFunc(lists, c.crls.saved, sameList)
	c.crls.mu.Unlock()
	if same {
		return nil
	}
	if err := c.cfg.Peers.SaveCRLs(ctx, slices.Concat(lists...)); err != nil {
		return fmt.Errorf("give other replicas the CRLs: %w", err)
	}
	c.crls.mu.Lock()
	c.crls.saved = append(make([][]byte, 0, len(lists)), lists...)
	c.crls.mu.Unlock()
	c.mu.Lock()
	c.listedNow()
	c.mu.Unlock()
	return nil
}

// refreshCRLs has the other replicas have what is current of this one.
func (c *CA) refreshCRLs(ctx context.Context) error {
	if c.cfg.Peers == nil || c.peersNow().removed {
		return nil
	}
	c.rotating.Lock()
	defer c.rotating.Unlock()
	return c.saveCRLs(ctx, &c.x509)
}

// revokedChanges is closed when more is revoked; nil where no peer has to be told.
func (c *CA) revokedChanges() <-chan struct{} {
	if c.cfg.Peers == nil {
		return nil
	}
	_, changed := c.cfg.Revoked()
	return changed
}

// crlsDue is when the own lists are to be signed anew though nothing happens.
func (c *CA) crlsDue() time.Time {
	c.crls.mu.Lock()
	defer c.crls.mu.Unlock()
	return c.crls.due
}

// sameList compares two lists that mostly are the same memory.
func sameList(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || bytes.Equal(a, b))
}

// listedNow has RevocationLists asked again. Hold mu.
func (c *CA) listedNow() {
	close(c.listed)
	c.listed = make(chan struct{})
}

// peerCRLs are the lists of one peer that its authorities signed, and what they were
// made of.
type peerCRLs struct {
	name           string
	doc, journal   []byte
	lists, between [][]byte
}

// crls are the lists of a peer, verified. before is what there was.
func (p *Peer) crls(jn *journal, before []peerCRLs) (peerCRLs, error) {
	if n := slices.IndexFunc(before, func(o peerCRLs) bool { return o.name == p.Name }); n >= 0 && bytes.Equal(before[n].doc, p.CRLs) && bytes.Equal(before[n].journal, p.Journal) {
		return before[n], nil
	}
	out := peerCRLs{name: p.Name, doc: p.CRLs, journal: p.Journal}
	var signers []*x509.Certificate
	for _, r := range jn.X509 {
		cert, err := x509.ParseCertificate(r.Cert)
		if err != nil {
			return out, err
		}
		signers = append(signers, cert)
		out.between = append(out.between, r.Chain...)
	}
	for rest := p.CRLs; len(rest) > 0; {
		var one asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &one); err != nil {
			return out, err
		}
		list, err := x509.ParseRevocationList(one.FullBytes)
		if err != nil {
			return out, err
		}
		// Of one that was made a moment ago the journal comes after its list.
		if slices.ContainsFunc(signers, func(s *x509.Certificate) bool { return signed(list, s) }) {
			out.lists = append(out.lists, one.FullBytes)
		}
	}
	return out, nil
}

func signed(list *x509.RevocationList, by *x509.Certificate) bool {
	return bytes.Equal(list.RawIssuer, by.RawSubject) && list.CheckSignatureFrom(by) == nil
}
