package ca

import (
	"crypto"
	"errors"
	"fmt"
	"time"
)

// ErrPathLength: the certificate of the active authority says that it signs
// nothing but SVIDs. Rotate, if it is our own; otherwise it is the upstream's to
// permit.
var ErrPathLength = errors.New("the active authority may sign SVIDs only, by the path length in its certificate")

// X509CARequest asks for the authority of an issuer downstream of this CA.
type X509CARequest struct {
	PublicKey crypto.PublicKey
	// Life is that of this CA's own authorities if zero.
	Life time.Duration
}

// PrepareX509CA checks a request for an authority in the same trust domain, and
// says by its ticket what IssueX509 would issue. The life is cut to what the
// active authority has left.
func (c *CA) PrepareX509CA(r X509CARequest) (*X509Ticket, error) {
	if err := CheckPublicKey(r.PublicKey); err != nil {
		return nil, fmt.Errorf("prepare downstream authority: %w", err)
	}
	c.mu.RLock()
	by := c.signing(&c.x509)
	c.mu.RUnlock()
	now := c.Now().UTC().Truncate(time.Second)
	expires, err := expiry(by, now, r.Life, c.cfg.Life)
	if err != nil {
		return nil, fmt.Errorf("prepare downstream authority: %w", err)
	}
	if by.cert.MaxPathLenZero {
		return nil, fmt.Errorf("prepare downstream authority: %w", ErrPathLength)
	}
	template, err := c.template(r.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("prepare downstream authority: %w", err)
	}
	template.Subject.OrganizationalUnit = []string{"downstream"}
	template.NotBefore, template.NotAfter = now.Add(-Backdate), expires
	if by.cert.MaxPathLen > 0 {
		template.MaxPathLen = by.cert.MaxPathLen - 1
		template.MaxPathLenZero = template.MaxPathLen == 0
	}
	return &X509Ticket{ca: c, by: by, key: r.PublicKey, template: template}, nil
}
