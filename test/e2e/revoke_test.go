package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRevoke revokes web's SVIDs by serial number, name and agent, each time with
// a connection and a stream open that a thief made with a stolen SVID: both end,
// no other begins, all of it is on record, and web itself goes on.
func TestRevoke(t *testing.T) {
	t.Parallel()
	p := startPair(t, http.HandlerFunc(helloOrStream), "1h")
	addr := p.inbound("orders")
	eventually(t, 20*time.Second, p.served)
	for _, c := range []struct {
		name string
		args func(*x509.Certificate) []string
	}{
		{"serial number", func(leaf *x509.Certificate) []string {
			return []string{"--serial", "0x" + leaf.SerialNumber.Text(16)}
		}},
		{"SPIFFE ID", func(*x509.Certificate) []string { return []string{"--spiffe-id", "spiffe://example.org/svc/web"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			stolen := p.mint(time.Hour)
			leaf, err := x509.ParseCertificate(stolen.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			idle, stream := thief(t, addr, stolen, "/"), thief(t, addr, stolen, "/stream")
			p.ctl(append([]string{"svid", "revoke", "--reason", "stolen"}, c.args(leaf)...)...)
			closed(t, idle, stream)
			port := knock(t, addr, &stolen)
			eventually(t, 20*time.Second, func() error {
				ended, refused := 0, false
				for _, e := range p.export() {
					if e.Kind != "connection" || e.Outcome != "refused" || !strings.Contains(e.Reason, "is revoked") {
						continue
					}
					if strings.Contains(e.Reason, "open connection ended") {
						ended++
					}
					refused = refused || e.PeerPort == port
				}
				if ended < 2 || !refused {
					return fmt.Errorf("%d ended connections on record, the new one refused: %v", ended, refused)
				}
				return nil
			})
			// The rightful web has another SVID and is served.
			eventually(t, 20*time.Second, p.served)
		})
	}
	var list struct {
		Revocations []struct{ By, Reason string }
	}
	if err := json.Unmarshal(p.ctl("svid", "revocations", "--output", "json"), &list); err != nil || len(list.Revocations) != 2 || list.Revocations[0].Reason != "stolen" {
		t.Errorf("listed %+v, %v", list, err)
	}
}

// helloOrStream answers at once, or for as long as somebody listens.
func helloOrStream(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/stream" {
		hello(w, r)
		return
	}
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// served tells whether web is answered.
func (p *pair) served() error {
	resp, err := http.Get(p.url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// closed waits until connections whose SVID was revoked just now have ended.
func closed(t *testing.T, conns ...*tls.Conn) {
	t.Helper()
	began := time.Now()
	for _, conn := range conns {
		_ = conn.SetReadDeadline(began.Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a connection with a revoked SVID was open 10 seconds later")
		}
	}
	t.Logf("%d connections closed %v after the command", len(conns), time.Since(began))
}

// thief sends one request on a connection of its own, and reads the head of the
// response.
func thief(t *testing.T, addr string, cert tls.Certificate, path string) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: orders\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16<<10), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, resp.Status)
	}
	return conn
}
