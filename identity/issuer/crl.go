package issuer

import (
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/watchv1"
)

// maxListed is how many serial numbers a CRL may have: the lists of all authorities
// have to go into one message.
const maxListed = 20_000

// crls are the CRLs as they were signed last.
type crls struct {
	mu     sync.Mutex
	bundle *ca.Bundle
	list   *revocation.List
	// revoked are the keys of what is in signed.
	revoked []string
	signed  *watchv1.CRLs
}

// currentCRLs are the CRLs of a list, signed anew only where the authorities or the
// serial numbers are others. Each is a new message; nobody changes it.
func (i *Issuer) currentCRLs(list *revocation.List) (*watchv1.CRLs, error) {
	bundle, _ := i.ca.Bundle()
	i.crls.mu.Lock()
	defer i.crls.mu.Unlock()
	if i.crls.signed != nil && i.crls.bundle == bundle && i.crls.list == list {
		return i.crls.signed, nil
	}
	var keys []string
	var entries []x509.RevocationListEntry
	for _, r := range list.All() {
		if r.Kind != revocation.Serial {
			continue
		}
		serial, err := revocation.ParseSerial(r.Subject)
		if err != nil {
			return nil, fmt.Errorf("CRL: %w", err)
		}
		keys = append(keys, r.Subject)
		entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.Revoked})
	}
	if len(entries) > maxListed {
		return nil, fmt.Errorf("CRL: %d serial numbers are revoked, and a list has %d at most: revoke by SPIFFE ID or agent instead", len(entries), maxListed)
	}
	slices.Sort(keys)
	if i.crls.signed == nil || i.crls.bundle != bundle || !slices.Equal(keys, i.crls.revoked) {
		// Numbers of revocations begin at 1, those of CRLs may be 0.
		signed, err := i.ca.CRLs(new(big.Int).SetUint64(list.Number()), entries)
		if err != nil {
			return nil, err
		}
		i.crls.signed = &watchv1.CRLs{Lists: signed}
	}
	i.crls.bundle, i.crls.list, i.crls.revoked = bundle, list, keys
	return i.crls.signed, nil
}
