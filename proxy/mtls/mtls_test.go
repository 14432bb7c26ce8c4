package mtls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/proxy/mtls"
)

// listen runs a Listener and returns it with what was refused.
func listen(t *testing.T, source mtls.Source, change func(*mtls.ListenerConfig)) (*mtls.Listener, chan *mtls.Error) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan *mtls.Error, 100)
	cfg := mtls.ListenerConfig{
		ServerConfig: mtls.ServerConfig{Source: source, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Protocols: []string{mtls.HTTP2, mtls.HTTP1}},
		Refused:      func(_ *pep.Peer, err *mtls.Error) { refused <- err },
	}
	if change != nil {
		change(&cfg)
	}
	l := mtls.Listen(tcp, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l, refused
}

// A sidecar whose clock is two hours off says so, and accepts again when it is
// right.
func TestClockOff(t *testing.T) {
	ca := testpki.New(t, "example.org")
	server := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	client := testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle())
	var ahead atomic.Int64
	l, refused := listen(t, server, func(c *mtls.ListenerConfig) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	call := func() error {
		c, err := tls.Dial("tcp", l.Addr().String(), mtls.Client(mtls.ClientConfig{Source: client, Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"), Protocols: []string{mtls.HTTP1}}))
		if err != nil {
			return err
		}
		defer c.Close()
		accepted, err := l.Queue(mtls.HTTP1).Accept()
		if err != nil {
			return err
		}
		return accepted.Close()
	}
	for _, tc := range []struct {
		ahead time.Duration
		says  []string
	}{
		{2 * time.Hour, []string{"spiffe://example.org/svc/web is not valid now: it ended at", "this machine's clock says", "apart by 1h0m"}},
		{-2 * time.Hour, []string{"is not valid before", "this machine's clock says", "ahead of it by 1h"}},
	} {
		ahead.Store(int64(tc.ahead))
		c, err := tls.Dial("tcp", l.Addr().String(), mtls.Client(mtls.ClientConfig{Source: client, Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"), Protocols: []string{mtls.HTTP1}}))
		if err == nil {
			c.Close()
		}
		got := <-refused
		for _, want := range tc.says {
			if got.Cause != mtls.ExpiredSVID || !strings.Contains(got.Reason, want) {
				t.Errorf("%v ahead: %s: %q lacks %q", tc.ahead, got.Cause, got.Reason, want)
			}
		}
		ahead.Store(0)
		if err := call(); err != nil {
			t.Errorf("with the right clock: %v", err)
		}
	}
}

func TestHandshake(t *testing.T) {
	ca := testpki.New(t, "example.org")
	server := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	client := testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle())
	l, _ := listen(t, server, nil)
	for range 2 {
		cfg := mtls.Client(mtls.ClientConfig{Source: client, Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"), Protocols: []string{mtls.HTTP1}})
		// Even a client that wants to resume cannot.
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(10)
		c, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		accepted, err := l.Queue(mtls.HTTP1).Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		peer := accepted.(*mtls.Conn).Peer()
		if peer.ID.String() != "spiffe://example.org/svc/web" || !peer.Verified() || peer.Expired(time.Now()) || len(peer.Serial) == 0 {
			t.Errorf("peer %+v", peer)
		}
		state := c.ConnectionState()
		if state.CurveID != tls.X25519MLKEM768 || peer.KeyExchange != "X25519MLKEM768" {
			t.Errorf("key exchange %s, recorded %s: want the post-quantum hybrid", state.CurveID, peer.KeyExchange)
		}
		if state.Version != tls.VersionTLS13 || state.DidResume || state.NegotiatedProtocol != mtls.HTTP1 {
			t.Errorf("state %+v", state)
		}
		go io.WriteString(c, "x")
		if _, err := accepted.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
}

func TestRotation(t *testing.T) {
	ca := testpki.New(t, "example.org")
	server := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	client := testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle())
	l, _ := listen(t, server, nil)
	cfg := mtls.Client(mtls.ClientConfig{Source: client, Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"), Protocols: []string{mtls.HTTP2}})
	serials := map[string]bool{}
	for range 3 {
		c, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Queue(mtls.HTTP2).Accept()
		if err != nil {
			t.Fatal(err)
		}
		serials["server "+c.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		serials["client "+string(accepted.(*mtls.Conn).Peer().Serial)] = true
		c.Close()
		accepted.Close()
		server.Rotate(ca.SVID(t, "/svc/orders", time.Hour))
		client.Rotate(ca.SVID(t, "/svc/web", time.Hour))
	}
	if len(serials) != 6 {
		t.Errorf("%d serials in three handshakes between two that rotate", len(serials))
	}
	if n := l.Open(); n != 0 {
		t.Errorf("%d connections open", n)
	}
}

func TestClientWantsOneID(t *testing.T) {
	ca, other := testpki.New(t, "example.org"), testpki.New(t, "example.org")
	client := testpki.NewSource(ca.SVID(t, "/svc/web", time.Hour), ca.Bundle())
	for _, tc := range []struct {
		name   string
		server *testpki.Source
		cause  mtls.Cause
	}{
		{"another service", testpki.NewSource(ca.SVID(t, "/svc/payments", time.Hour), ca.Bundle()), mtls.WrongID},
		{"another authority", testpki.NewSource(other.SVID(t, "/svc/orders", time.Hour), ca.Bundle()), mtls.UnknownCA},
		{"expired", testpki.NewSource(ca.SVID(t, "/svc/orders", -time.Minute), ca.Bundle()), mtls.ExpiredSVID},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, refused := listen(t, tc.server, nil)
			_, err := tls.Dial("tcp", l.Addr().String(), mtls.Client(mtls.ClientConfig{
				Source: client, Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"), Protocols: []string{mtls.HTTP1},
			}))
			var e *mtls.Error
			if !errors.As(err, &e) || e.Cause != tc.cause {
				t.Errorf("%v, want cause %s", err, tc.cause)
			}
			if got := <-refused; got.Cause != mtls.BadHandshake || !strings.Contains(got.Reason, "bad certificate") {
				t.Errorf("the server saw %v", got)
			}
		})
	}
}

func TestServerConfigVerifies(t *testing.T) {
	ca := testpki.New(t, "example.org")
	source := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	cfg := mtls.Server(mtls.ServerConfig{Source: source, TrustDomain: ca.TrustDomain(), Protocols: []string{mtls.HTTP1}})
	for _, svid := range []bool{true, false} {
		a, b := net.Pipe()
		client := &tls.Config{InsecureSkipVerify: true}
		if svid {
			client = mtls.Client(mtls.ClientConfig{Source: source, Peer: spiffeid.RequireFromString("spiffe://example.org/svc/orders"), Protocols: []string{mtls.HTTP1}})
		}
		go func() {
			c := tls.Client(a, client)
			_, _ = c.Read(make([]byte, 1))
			a.Close()
		}()
		err := tls.Server(b, cfg).Handshake()
		if (err == nil) != svid {
			t.Errorf("with an SVID %v: %v", svid, err)
		}
		b.Close()
	}
}

func TestLimits(t *testing.T) {
	ca := testpki.New(t, "example.org")
	source := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	l, refused := listen(t, source, func(c *mtls.ListenerConfig) {
		c.MaxConnections, c.HandshakeTimeout = 1, 200*time.Millisecond
	})
	first, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	first.Write([]byte{22, 3, 1, 0, 100})
	// Open counts a connection when its handshake begins; the second is over
	// the limit and closed at once, or comes after the first has timed out.
	if got := <-refused; got.Cause != mtls.TimedOut {
		t.Errorf("refused because %v", got)
	}
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that says nothing stays open")
	}
	silent.Close()
	if len(refused) != 0 {
		t.Errorf("a connection that never said anything is an event: %v", <-refused)
	}
}
