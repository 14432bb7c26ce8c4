package http1

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func serve(t *testing.T, cfg Config) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(cfg)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		_ = s.Shutdown(context.Background())
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return ln.Addr()
}

func exchange(t *testing.T, addr net.Addr, raw string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, raw)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	return res, string(body)
}

func TestMalformedHeadsAreReported(t *testing.T) {
	type report struct {
		status int
		reason string
	}
	reports := make(chan report, 10)
	addr := serve(t, Config{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }),
		Malformed: func(c net.Conn, status int, reason string) (http.Header, []byte) {
			if _, ok := c.(*net.TCPConn); !ok {
				t.Errorf("told of a %T, want the connection that was accepted", c)
			}
			reports <- report{status, reason}
			return http.Header{"X-Id": {"7"}}, []byte("ours")
		},
	})
	// An answer of the handler is none of net/http's, whatever its status, and
	// a malformed head is found on a kept connection too.
	res, _ := exchange(t, addr, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != http.StatusTeapot || len(reports) != 0 {
		t.Fatalf("%d, %d reports", res.StatusCode, len(reports))
	}
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /%zz HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(c)
	for _, want := range []int{http.StatusTeapot, http.StatusBadRequest} {
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != want {
			t.Fatalf("%v %v, want %d", res, err, want)
		}
		body, _ := io.ReadAll(res.Body)
		if ours := string(body) == "ours" && res.Header.Get("X-Id") == "7" && res.Close; ours != (want == http.StatusBadRequest) {
			t.Errorf("%d: %q %v", want, body, res.Header)
		}
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after a malformed head: %v", err)
	}
	if got := <-reports; got.status != 400 || !strings.Contains(got.reason, "Bad Request") {
		t.Errorf("report %+v", got)
	}
}

func TestWithoutAReportNetHTTPAnswers(t *testing.T) {
	addr := serve(t, Config{Handler: http.NotFoundHandler()})
	if res, _ := exchange(t, addr, "nonsense\r\n\r\n"); res.StatusCode != 400 {
		t.Errorf("%d", res.StatusCode)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nx"))
	f.Add([]byte("HTTP/1.1 4"))
	f.Fuzz(func(t *testing.T, p []byte) {
		status, reason := parseAnswer(p)
		if status == 0 && reason != "" {
			t.Fatalf("%d %q", status, reason)
		}
	})
}
