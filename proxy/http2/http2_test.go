package http2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Server and transport understand each other, and a shutdown lets a stream end.
func TestRoundTripAndShutdown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	type key struct{}
	s := NewServer(Config{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Context().Value(key{}) != "connection" {
				t.Error("the connection's context was lost")
			}
			close(entered)
			<-release
			io.Copy(w, r.Body)
		}),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, key{}, "connection")
		},
	})
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	tr := NewTransport(TransportConfig{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}})
	defer tr.CloseIdleConnections()
	answer := make(chan string, 1)
	go func() {
		res, err := (&http.Client{Transport: tr}).Post("http://anywhere/", "text/plain", strings.NewReader("body"))
		if err != nil {
			answer <- err.Error()
			return
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		answer <- res.Proto + " " + string(body)
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(context.Background()) }()
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	close(release)
	if got := <-answer; got != "HTTP/2.0 body" {
		t.Error(got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestHTTP1IsNotServed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("served") })})
	go s.Serve(ln)
	defer s.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if got, _ := io.ReadAll(c); strings.HasPrefix(string(got), "HTTP/1.1 2") {
		t.Errorf("%q", got)
	}
}
