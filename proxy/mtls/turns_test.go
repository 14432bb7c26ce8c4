package mtls_test

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/proxy/mtls"
)

// One address that begins handshakes and ends none keeps no other out, and its
// own connections get their turn.
func TestHandshakesArePerPeer(t *testing.T) {
	ca := testpki.New(t, "example.org")
	l, _ := listen(t, testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle()), func(c *mtls.ListenerConfig) {
		c.MaxHandshakes, c.MaxHandshakesPerPeer, c.HandshakeTimeout = 2, 1, time.Hour
	})
	client := testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle())
	connect := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from + ":0"))}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	shake := func(c net.Conn) {
		t.Helper()
		cfg := mtls.Client(mtls.ClientConfig{Source: client, Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"), Protocols: []string{mtls.HTTP1}})
		if err := tls.Client(c, cfg).Handshake(); err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Queue(mtls.HTTP1).Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted.Close()
	}
	silent := connect("127.0.0.1")
	var waiting [4]net.Conn
	for i := range waiting {
		waiting[i] = connect("127.0.0.1")
	}
	over := connect("127.0.0.1")
	if _, err := over.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that may not even wait is open")
	}
	shake(connect("127.0.0.2"))
	silent.Close()
	for _, c := range waiting {
		shake(c)
	}
	if n := l.Open(); n != 0 {
		t.Errorf("%d connections are counted as open", n)
	}
}
