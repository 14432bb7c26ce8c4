package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	// ErrTicketUsed: the ticket has been issued before. Prepare another.
	ErrTicketUsed = errors.New("ticket already used")
	// ErrNotReady: no authority can sign at this time. Try again later.
	ErrNotReady = errors.New("no authority is able to sign now")
)

// X509Request asks for an X509-SVID.
type X509Request struct {
	ID        spiffeid.ID
	PublicKey crypto.PublicKey
	// Life is the CA's default if zero.
	Life     time.Duration
	DNSNames []string
	// Subject may be empty; then the first DNS name, if any, becomes the
	// common name, for software that still looks there.
	Subject pkix.Name
	// Through is the agent that the SVID is issued through, zero for none. Its
	// tag is in the serial number.
	Through spiffeid.ID
	// NotBefore is the earliest that the SVID may say it was issued: what was
	// issued before then is revoked. It is at most seconds away.
	NotBefore time.Time
}

// X509Ticket is a checked request with its serial number drawn. It is issued
// once, soon.
type X509Ticket struct {
	ca       *CA
	by       *authority
	template *x509.Certificate
	key      crypto.PublicKey
	used     atomic.Bool
}

// Serial is the serial number the certificate will have, decimal as
// SPIRE writes it.
func (t *X509Ticket) Serial() string { return t.template.SerialNumber.String() }

// KeyID is the subject key identifier of a certificate that is to be an
// authority's, empty for an SVID.
func (t *X509Ticket) KeyID() string { return KeyID(t.template.SubjectKeyId) }

// ExpiresAt is when the certificate will end.
func (t *X509Ticket) ExpiresAt() time.Time { return t.template.NotAfter }

// PrepareX509 checks a request and says, by its ticket, what would be issued.
// The life is cut to what the authority has left.
func (c *CA) PrepareX509(r X509Request) (*X509Ticket, error) {
	if err := c.checkID(r.ID); err != nil {
		return nil, fmt.Errorf("prepare X509-SVID: %w", err)
	}
	if err := CheckPublicKey(r.PublicKey); err != nil {
		return nil, fmt.Errorf("prepare X509-SVID for %s: %w", r.ID, err)
	}
	for _, name := range r.DNSNames {
		if err := CheckDNSName(name); err != nil {
			return nil, fmt.Errorf("prepare X509-SVID for %s: %w", r.ID, err)
		}
	}
	c.mu.RLock()
	by := c.signing(&c.x509)
	c.mu.RUnlock()
	now := later(c.Now(), r.NotBefore)
	expires, err := expiry(by, now, r.Life, c.cfg.X509SVIDLife)
	if err != nil {
		return nil, fmt.Errorf("prepare X509-SVID for %s: %w", r.ID, err)
	}
	subject := r.Subject
	if len(r.DNSNames) > 0 && len(subject.ToRDNSequence()) == 0 && len(r.DNSNames[0]) <= 64 {
		subject.CommonName = r.DNSNames[0]
	}
	template := leafTemplate(r.ID, now, expires)
	template.SerialNumber = newSerial(r.Through)
	template.Subject, template.DNSNames = subject, slices.Clone(r.DNSNames)
	return &X509Ticket{ca: c, by: by, key: r.PublicKey, template: template}, nil
}

// leafTemplate is by the X509-SVID specification, sections 2 to 4 and appendix A.
// The library marks key usage critical, and the SAN where the subject is empty.
func leafTemplate(id spiffeid.ID, now, expires time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          newSerial(spiffeid.ID{}),
		NotBefore:             now.Add(-Backdate),
		NotAfter:              expires,
		URIs:                  []*url.URL{id.URL()},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

// IssueX509 signs what the ticket says and returns the chain, DER encoded, leaf
// first, with the authority in it where an upstream signed that. A ticket is good
// once, also when signing fails.
func (c *CA) IssueX509(t *X509Ticket) (chain [][]byte, err error) {
	if t == nil || t.ca != c {
		return nil, errors.New("issue X509-SVID: not a ticket of this authority")
	}
	if t.used.Swap(true) {
		return nil, fmt.Errorf("issue X509-SVID: %w", ErrTicketUsed)
	}
	der, err := c.signX509(t)
	if err != nil {
		return nil, fmt.Errorf("issue X509-SVID for %s: %w", t.template.URIs[0], err)
	}
	return append([][]byte{der}, t.by.rawChain()...), nil
}

// rawChain is what goes below a leaf: nothing where the authority is a root.
func (a *authority) rawChain() (chain [][]byte) {
	for _, cert := range a.chain {
		chain = append(chain, cert.Raw)
	}
	return chain
}

// JWTRequest asks for a JWT-SVID.
type JWTRequest struct {
	ID       spiffeid.ID
	Audience []string
	// Life is the CA's default if zero.
	Life time.Duration
	// Through and NotBefore are as those of X509Request.
	Through   spiffeid.ID
	NotBefore time.Time
}

// JWTTicket is a checked request for a JWT-SVID. It is issued once, soon.
type JWTTicket struct {
	ca     *CA
	by     *authority
	claims jwt.Claims
	used   atomic.Bool
}

// ID is the token's jti: a number, drawn as the serial numbers of X509-SVIDs
// are, decimal.
func (t *JWTTicket) ID() string { return t.claims.ID }

// IssuedAt is the token's iat.
func (t *JWTTicket) IssuedAt() time.Time { return t.claims.IssuedAt.Time() }

// ExpiresAt is the token's exp.
func (t *JWTTicket) ExpiresAt() time.Time { return t.claims.Expiry.Time() }

// KeyID names the authority that will sign.
func (t *JWTTicket) KeyID() string { return t.by.id }

// PrepareJWT checks a request. The life is cut to what the authority has left.
func (c *CA) PrepareJWT(r JWTRequest) (*JWTTicket, error) {
	if err := c.checkID(r.ID); err != nil {
		return nil, fmt.Errorf("prepare JWT-SVID: %w", err)
	}
	if len(r.Audience) == 0 || slices.Contains(r.Audience, "") {
		return nil, fmt.Errorf("prepare JWT-SVID for %s: audience is missing or has an empty member", r.ID)
	}
	c.mu.RLock()
	by := c.signing(&c.jwt)
	c.mu.RUnlock()
	now := later(c.Now(), r.NotBefore)
	expires, err := expiry(by, now, r.Life, c.cfg.JWTSVIDLife)
	if err != nil {
		return nil, fmt.Errorf("prepare JWT-SVID for %s: %w", r.ID, err)
	}
	return &JWTTicket{ca: c, by: by, claims: jwt.Claims{
		ID:       newSerial(r.Through).String(),
		Issuer:   c.cfg.JWTIssuer,
		Subject:  r.ID.String(),
		Audience: slices.Clone(r.Audience),
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(expires),
	}}, nil
}

// IssueJWT signs what the ticket says: a compact JWS, with kid and typ
// (JWT-SVID specification, sections 2 and 3).
func (c *CA) IssueJWT(t *JWTTicket) (string, error) {
	if t == nil || t.ca != c {
		return "", errors.New("issue JWT-SVID: not a ticket of this authority")
	}
	if t.used.Swap(true) {
		return "", fmt.Errorf("issue JWT-SVID: %w", ErrTicketUsed)
	}
	// jwt.Signed would read its own claims back into a map first.
	payload, err := json.Marshal(t.claims)
	if err != nil {
		return "", fmt.Errorf("issue JWT-SVID for %s: %w", t.claims.Subject, err)
	}
	if t.by.es256 != nil {
		token, err := t.by.es256.sign(payload)
		if err != nil {
			return "", fmt.Errorf("issue JWT-SVID for %s: %w", t.claims.Subject, err)
		}
		return token, nil
	}
	jws, err := t.by.jws.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("issue JWT-SVID for %s: %w", t.claims.Subject, err)
	}
	return jws.CompactSerialize()
}

// Ready says whether both authorities are able to sign.
func (c *CA) Ready() bool {
	_, _, err := c.Readiness()
	return err == nil
}

// Readiness is why the CA cannot sign, nil where it can, with how long that
// stands if nothing happens (zero is for ever) and a channel that is closed when
// something has happened.
func (c *CA) Readiness() (until time.Time, changed <-chan struct{}, err error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	now := c.Now()
	for _, kind := range []struct {
		slots *slots
		of    Kind
	}{{&c.x509, X509}, {&c.jwt, JWT}} {
		a := c.signing(kind.slots)
		switch {
		case c.peers.removed:
			return time.Time{}, c.turned, ErrRemoved
		case a != nil && now.Before(a.notBefore):
			return a.notBefore, c.turned, fmt.Errorf("the %s authority is not valid yet: %w", kind.of, ErrNotReady)
		case !a.able(now):
			return time.Time{}, c.turned, fmt.Errorf("no %s authority: %w", kind.of, ErrNotReady)
		case until.IsZero() || a.notAfter.Before(until):
			until = a.notAfter
		}
	}
	return until, c.turned, nil
}

// turnedNow has Readiness asked again. Hold mu.
func (c *CA) turnedNow() {
	close(c.turned)
	c.turned = make(chan struct{})
}

func (a *authority) able(now time.Time) bool {
	return a != nil && !a.ended && !now.Before(a.notBefore) && !a.expired(now)
}

func (c *CA) checkID(id spiffeid.ID) error {
	switch {
	case !id.MemberOf(c.cfg.TrustDomain):
		return fmt.Errorf("%q is not a member of trust domain %q", id, c.cfg.TrustDomain.Name())
	case id.Path() == "":
		return fmt.Errorf("%q names a trust domain, not a workload", id)
	}
	return nil
}

// later is the whole second at which an SVID is issued.
func later(now, notBefore time.Time) time.Time {
	if notBefore.After(now) {
		now = notBefore
	}
	return now.UTC().Truncate(time.Second)
}

// expiry is when an SVID made now ends.
func expiry(by *authority, now time.Time, asked, usual time.Duration) (time.Time, error) {
	if asked == 0 {
		asked = usual
	}
	if asked < MinSVIDLife {
		return time.Time{}, fmt.Errorf("life of %v is too short, want at least %v", asked, MinSVIDLife)
	}
	if !by.able(now) {
		return time.Time{}, ErrNotReady
	}
	expires := now.Add(asked)
	if expires.After(by.notAfter) {
		expires = by.notAfter
	}
	return expires.UTC().Truncate(time.Second), nil
}

// CheckPublicKey accepts the keys that an X509-SVID may have: ECDSA on P-256,
// P-384 and P-521, Ed25519, and RSA of 2048 to 8192 bits (longer ones cost too
// much to check). The X509-SVID specification leaves the choice to RFC 5280.
func CheckPublicKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return errors.New("ECDSA key is not on P-256, P-384 or P-521")
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key has %d bits, want 2048 to 8192", n)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("key is %T, want ECDSA, Ed25519 or RSA", key)
}

// checkSigningKey accepts the keys that may sign JWT-SVIDs.
func checkSigningKey(key crypto.PublicKey) error {
	if _, ok := key.(ed25519.PublicKey); ok {
		return errors.New("JWT-SVIDs are not signed with Ed25519 keys")
	}
	return CheckPublicKey(key)
}

// CheckDNSName accepts host names (RFC 1123 section 2.1, and '_'), and a
// wildcard in place of the first label.
func CheckDNSName(name string) error {
	if len(name) == 0 || len(name) > 253 {
		return fmt.Errorf("DNS name %q: want 1 to 253 characters", name)
	}
	for i, start := 0, 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '.' {
			continue
		}
		label := name[start:i]
		wildcard := start == 0 && label == "*" && i < len(name)
		if !wildcard && !validLabel(label) {
			return fmt.Errorf("DNS name %q: %q is not a label", name, label)
		}
		start = i + 1
	}
	return nil
}

func validLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
