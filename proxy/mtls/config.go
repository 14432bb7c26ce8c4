package mtls

import (
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ALPN protocol names (RFC 7301).
const (
	HTTP1 = "http/1.1"
	HTTP2 = "h2"
)

// Source gives SVID and bundles; an identity.Source is one.
type Source interface {
	x509svid.Source
	x509bundle.Source
}

// certificates gives the source's SVID as crypto/tls wants it, made once per
// SVID.
type certificates struct {
	source x509svid.Source
	last   atomic.Pointer[cached]
}

type cached struct {
	svid *x509svid.SVID
	cert *tls.Certificate
}

func (c *certificates) get() (*tls.Certificate, error) {
	svid, err := c.source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("no SVID to show: %w", err)
	}
	if last := c.last.Load(); last != nil && last.svid == svid {
		return last.cert, nil
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, x := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, x.Raw)
	}
	c.last.Store(&cached{svid: svid, cert: cert})
	return cert, nil
}

// base is what both ends have in common.
func base(protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The hybrid first: what is recorded today must not be readable by a
		// quantum computer later.
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
	}
}

// ClientConfig makes connections to exactly one workload.
type ClientConfig struct {
	Source Source
	// Peer is the SPIFFE ID that the other end must prove.
	Peer spiffeid.ID
	// Protocols offered by ALPN.
	Protocols []string
	// Revoked may be nil.
	Revoked Revoked
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Client gives a tls.Config that shows the source's SVID and accepts only Peer.
// Host names play no part.
func Client(cfg ClientConfig) *tls.Config {
	c, _ := client(cfg)
	return c
}

// ClientVerify is the check that Client makes of the other end, for connections
// that are open.
func ClientVerify(cfg ClientConfig) func(tls.ConnectionState) error {
	_, v := client(cfg)
	return func(state tls.ConnectionState) error {
		_, _, err := v.verify(state)
		return err
	}
}

func client(cfg ClientConfig) (*tls.Config, *verifier) {
	certs := &certificates{source: cfg.Source}
	v := &verifier{bundles: cfg.Source, revoked: cfg.Revoked, now: cfg.Now, accept: func(id spiffeid.ID) error {
		if id != cfg.Peer {
			return refuse(WrongID, "the peer claims %s, and %s is wanted", id, cfg.Peer)
		}
		return nil
	}}
	if v.now == nil {
		v.now = time.Now
	}
	c := base(cfg.Protocols)
	// The chain is verified by VerifyConnection against the trust bundle;
	// what is skipped is the check of a DNS name that SVIDs do not have.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(state tls.ConnectionState) error {
		_, _, err := v.verify(state)
		return err
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certs.get() }
	return c, v
}

// ServerConfig accepts connections from workloads of its own trust domain, and of
// those whose bundles the source has: it has them where the workload's entry
// federates with them. Each is verified by the bundle of its own trust domain.
type ServerConfig struct {
	Source Source
	// TrustDomain is our own. It is tried even while the source has no bundle of
	// it, so that the refusal says what is wrong.
	TrustDomain spiffeid.TrustDomain
	// Protocols accepted by ALPN.
	Protocols []string
	// Revoked may be nil.
	Revoked Revoked
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

func server(cfg ServerConfig) (*tls.Config, *verifier) {
	certs := &certificates{source: cfg.Source}
	v := &verifier{bundles: cfg.Source, revoked: cfg.Revoked, now: cfg.Now, accept: func(id spiffeid.ID) error {
		if id.TrustDomain() == cfg.TrustDomain {
			return nil
		}
		if _, err := cfg.Source.GetX509BundleForTrustDomain(id.TrustDomain()); err != nil {
			return refuse(ForeignDomain, "the peer claims %s, of a foreign trust domain that this workload does not federate with", id)
		}
		return nil
	}}
	if v.now == nil {
		v.now = time.Now
	}
	c := base(cfg.Protocols)
	// Asked for and not required by crypto/tls: its own refusal would leave
	// before ours is on record.
	c.ClientAuth = tls.RequestClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certs.get() }
	return c, v
}

// Server gives a tls.Config that shows the source's SVID and accepts whom
// ServerConfig says, for servers that do not need a Listener.
func Server(cfg ServerConfig) *tls.Config {
	c, v := server(cfg)
	c.VerifyConnection = func(state tls.ConnectionState) error {
		_, _, err := v.verify(state)
		return err
	}
	return c
}
