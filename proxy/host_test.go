package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/internal/testpki"
	"github.com/writ-dev/writ/proxy/mtls"
)

// exchange2 sends one header block over HTTP/2 as the web service, and gives
// the status and the body of the response.
func exchange2(t testing.TB, ca *testpki.CA, s *sidecar, fields ...string) (status, body string) {
	t.Helper()
	c, err := dial(t, s.InboundAddr(), ca.SVID(t, "/svc/web", time.Hour), mtls.HTTP2)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		ended := false
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			status, ended = f.PseudoValue("status"), f.StreamEnded()
		case *http2.DataFrame:
			body += string(f.Data())
			ended = f.StreamEnded()
		case *http2.RSTStreamFrame:
			return "reset " + f.ErrCode.String(), body
		}
		if ended {
			return status, body
		}
	}
}

// The application sees exactly the host that was decided on.
func TestHostIsForwardedAsDecided(t *testing.T) {
	ca := testpki.New(t, "example.org")
	s := server(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) }))
	check := func(t *testing.T, host, status, body string, known int) {
		t.Helper()
		events := s.rec.Events()[known:]
		if len(events) != 1 {
			t.Fatalf("%d events for one request: %+v", len(events), events)
		}
		ev := events[0]
		if host == "" {
			if status != "400" || ev.Outcome != auditv1.Outcome_OUTCOME_REFUSED {
				t.Errorf("%s %s, recorded %v %q", status, body, ev.Outcome, ev.Reason)
			}
			return
		}
		if status != "200" || body != host || ev.Input.Request.Host != host {
			t.Errorf("%s: the application saw %q, and %q was decided; want %q", status, body, ev.Input.Request.Host, host)
		}
	}
	accepted := []string{"orders", "ORDERS.example:8443", "[::1]:80", "run%2Forders.sock"}
	refused := []string{"", "orders/secret", "orders:x", "orders?x", "[fe80::1%25eth0]", "[fe80::1%eth0]:80", "b\u00fccher", "orders\xff"}
	for i, host := range slices.Concat(accepted, refused) {
		want := host
		if i >= len(accepted) {
			want = ""
		}
		t.Run(fmt.Sprintf("%q HTTP/1.1", host), func(t *testing.T) {
			known := len(s.rec.Events())
			res, body := exchange(t, ca, s, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			check(t, want, fmt.Sprint(res.StatusCode), body, known)
		})
		t.Run(fmt.Sprintf("%q HTTP/2", host), func(t *testing.T) {
			known := len(s.rec.Events())
			fields := []string{":method", "GET", ":scheme", "https", ":path", "/"}
			if host != "" {
				fields = append(fields, ":authority", host)
			}
			status, body := exchange2(t, ca, s, fields...)
			check(t, want, status, body, known)
		})
	}
	t.Run("HTTP/1.0 without a host", func(t *testing.T) {
		known := len(s.rec.Events())
		res, body := exchange(t, ca, s, "GET / HTTP/1.0\r\n\r\n")
		check(t, noHost, fmt.Sprint(res.StatusCode), body, known)
	})
}
