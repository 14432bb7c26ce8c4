package pep

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/policy"
)

// Peer is who is at the other end of a connection. It is made once per
// connection and not changed.
type Peer struct {
	// ID is a verified SPIFFE ID, or the zero ID.
	ID spiffeid.ID
	// Serial of the X509-SVID, big endian, and SHA-256 of its DER in hex.
	Serial      []byte
	Fingerprint string
	// NotAfter is when the verified chain ends; zero when there is none.
	NotAfter time.Time

	IP   string
	Port int

	TLSVersion  string
	KeyExchange string
	SNI         string
	ALPN        string

	id, trustDomain, path string
}

// NewPeer describes a connection from addr over TLS, whose peer proved id by
// one of chains. Without chains the peer has no identity.
func NewPeer(addr string, state tls.ConnectionState, id spiffeid.ID, chains [][]*x509.Certificate) *Peer {
	p := &Peer{SNI: state.ServerName, ALPN: state.NegotiatedProtocol}
	// A handshake that failed early has agreed on neither.
	if state.Version != 0 {
		p.TLSVersion = tls.VersionName(state.Version)
	}
	if state.CurveID != 0 {
		p.KeyExchange = state.CurveID.String()
	}
	p.IP, p.Port = Address(addr)
	if len(chains) == 0 || len(chains[0]) == 0 {
		return p
	}
	leaf := chains[0][0]
	sum := sha256.Sum256(leaf.Raw)
	p.ID, p.Serial, p.Fingerprint = id, leaf.SerialNumber.Bytes(), hex.EncodeToString(sum[:])
	p.id, p.trustDomain, p.path = id.String(), id.TrustDomain().Name(), id.Path()
	for _, chain := range chains {
		// A chain ends with its first link; the best chain counts.
		end := chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(p.NotAfter) {
			p.NotAfter = end
		}
	}
	return p
}

// Address splits ip:port as net.Addr writes it. Both are zero for a Unix
// socket.
func Address(addr string) (ip string, port int) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", 0
	}
	return ap.Addr().Unmap().String(), int(ap.Port())
}

// Verified reports whether the peer has proved a SPIFFE ID.
func (p *Peer) Verified() bool { return p.id != "" }

// Expired reports whether the identity proved at the handshake has ended.
func (p *Peer) Expired(now time.Time) bool {
	return !p.NotAfter.IsZero() && !now.Before(p.NotAfter)
}

// Describe fills source and connection of in.
func (p *Peer) Describe(in *policy.Input) {
	in.Source = policy.Source{ID: p.id, TrustDomain: p.trustDomain, Path: p.path, Authn: policy.AuthnNone, Serial: p.Serial}
	if p.Verified() {
		in.Source.Authn = policy.AuthnMTLS
	}
	in.Connection = policy.Connection{
		PeerIP: p.IP, PeerPort: p.Port, ClientIP: p.IP,
		KeyExchange: p.KeyExchange, TLSVersion: p.TLSVersion, SNI: p.SNI, ALPN: p.ALPN,
	}
}
