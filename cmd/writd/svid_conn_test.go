package main

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc/credentials"

	"github.com/writ-dev/writ/internal/testpki"
)

// A connection lasts as long as the SVID that opened it.
func TestConnectionsEndWithTheSVID(t *testing.T) {
	ca := testpki.New(t, "example.org")
	server := ca.SVID(t, "/writ/server", time.Hour)
	td := spiffeid.RequireTrustDomainFromString("example.org")
	creds := svidCredentials{credentials.NewTLS(withH2(tlsconfig.MTLSServerConfig(server, ca.Bundle(), tlsconfig.AuthorizeMemberOf(td))))}.Clone()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 2)
	go func() {
		for range 2 {
			raw, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			go func() {
				conn, info, err := creds.ServerHandshake(raw)
				if err != nil {
					ended <- err
					return
				}
				if _, ok := info.(svidInfo); !ok {
					t.Errorf("%T is not what peerLeaf asks for", info)
				}
				_, err = conn.Read(make([]byte, 1))
				ended <- err
			}()
		}
	}()
	dial := func(life time.Duration) *tls.Conn {
		t.Helper()
		svid := ca.SVID(t, "/svc/web", life)
		c, err := tls.Dial("tcp", l.Addr().String(), withH2(tlsconfig.MTLSClientConfig(svid, ca.Bundle(), tlsconfig.AuthorizeMemberOf(td))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	long, short := dial(time.Hour), dial(2*time.Second)
	if _, err := short.Read(make([]byte, 1)); err == nil {
		t.Error("the server said something")
	}
	if err := <-ended; err == nil || err == io.EOF {
		t.Errorf("the server's end: %v, want that it was closed here", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the other connection ended too: %v", err)
	default:
	}
	long.Close()
	if err := <-ended; err == nil {
		t.Error("the peer's end was not seen")
	}
}

func withH2(c *tls.Config) *tls.Config {
	c.NextProtos = []string{"h2"}
	return c
}
