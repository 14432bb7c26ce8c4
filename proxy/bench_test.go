package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/pep/peptest"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/proxy/mtls"
)

// small answers 100 bytes.
func small() http.Handler {
	body := make([]byte, 100)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })
}

// BenchmarkInbound is one request on an open mTLS connection through an inbound
// sidecar to an application, client and application included.
func BenchmarkInbound(b *testing.B) {
	ca := testpki.New(b, "example.org")
	source := testpki.NewSource(ca.SVID(b, "/svc/orders", time.Hour), ca.Bundle())
	s := startWith(b, source, serverConfig(app(b, small())), func(o *Options) { o.Recorder = peptest.Discard{} })
	s.SetSnapshot(peptest.Snapshot(1, "orders", serverID, peptest.Verdict(policy.Allow)))
	b.Run("serial", func(b *testing.B) {
		c, err := dial(b, s.InboundAddr(), ca.SVID(b, "/svc/web", time.Hour), mtls.HTTP1)
		if err != nil {
			b.Fatal(err)
		}
		requests(b, c, b.Loop)
	})
	b.Run("parallel", func(b *testing.B) {
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			c, err := dial(b, s.InboundAddr(), ca.SVID(b, "/svc/web", time.Hour), mtls.HTTP1)
			if err != nil {
				b.Error(err)
				return
			}
			requests(b, c, pb.Next)
		})
	})
}

// BenchmarkPair is one request through an outbound and an inbound sidecar.
func BenchmarkPair(b *testing.B) {
	ca := testpki.New(b, "example.org")
	discard := func(o *Options) { o.Recorder = peptest.Discard{} }
	srv := startWith(b, testpki.NewSource(ca.SVID(b, "/svc/orders", time.Hour), ca.Bundle()), serverConfig(app(b, small())), discard)
	srv.SetSnapshot(peptest.Snapshot(1, "orders", serverID, peptest.Verdict(policy.Allow)))
	cli := startWith(b, testpki.NewSource(ca.SVID(b, "/svc/web", time.Hour), ca.Bundle()), clientConfig(srv, "http"), discard)
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp", cli.UpstreamAddr("orders").String())
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		requests(b, c, pb.Next)
	})
}

func requests(b *testing.B, c net.Conn, next func() bool) {
	r := bufio.NewReader(c)
	b.ReportAllocs()
	for next() {
		if _, err := io.WriteString(c, "GET /orders/42 HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"); err != nil {
			b.Error(err)
			return
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Error(err)
			return
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
			b.Error(res.Status, err)
			return
		}
	}
}
