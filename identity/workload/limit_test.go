package workload

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func base64JSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func TestStreamLimit(t *testing.T) {
	ca := newAuthority(domain)
	ended := make(chan codes.Code, 10)
	_, socket := serve(t, newMemory(ca, ca.identity(1, "/web", "")), func(c *Config) {
		c.MaxStreamsPerUID = 2
		c.Observe = func(_ string, code codes.Code) { ended <- code }
	})
	ctx, cancel := context.WithCancel(secured(t.Context()))
	defer cancel()
	open := func(ctx context.Context) error {
		// A connection of its own: the limit is the user's, not the connection's.
		s, err := raw(t, socket).FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
		return first(s, err)
	}
	for range 2 {
		if err := open(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(ctx); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("third stream: %v, want ResourceExhausted", err)
	}
	if code := <-ended; code != codes.ResourceExhausted {
		t.Errorf("observed %v", code)
	}
	cancel()
	<-ended
	<-ended
	if err := open(secured(t.Context())); err != nil {
		t.Errorf("after the others ended: %v", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	ca := newAuthority(domain)
	s, socket := serve(t, newMemory(ca), func(c *Config) { c.MaxConnectionsPerUID = 2 })
	dial := func() net.Conn {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		// A client preface, so that an admitted connection answers.
		// A refused one may be closed already, so writing may fail.
		io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		return conn
	}
	admitted := func(conn net.Conn) bool {
		_, err := conn.Read(make([]byte, 1))
		return err == nil
	}
	a, b := dial(), dial()
	if !admitted(a) || !admitted(b) {
		t.Fatal("not even two connections")
	}
	if admitted(dial()) {
		t.Fatal("a third connection was admitted")
	}
	if n := s.Connections(); n != 2 {
		t.Errorf("%d connections counted, want 2", n)
	}
	a.Close()
	// The server notices in its own time; every attempt before is refused.
	for !admitted(dial()) {
	}
}

const abandonEnv = "WORKLOAD_TEST_ABANDON"

// TestMain lets the test binary be a workload that opens a stream, hands its
// connection on to a child that lives as long as standard input, and ends.
func TestMain(m *testing.M) {
	if socket := os.Getenv(becomeEnv); socket != "" {
		become(socket)
	}
	socket := os.Getenv(abandonEnv)
	if socket == "" {
		os.Exit(m.Run())
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		os.Exit(1)
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		os.Exit(1)
	}
	heir := exec.Command("cat")
	heir.Stdin, heir.ExtraFiles = os.Stdin, []*os.File{file}
	if err := heir.Start(); err != nil {
		os.Exit(1)
	}
	io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	conn.Read(make([]byte, 1))
	os.Stdout.WriteString("left\n")
}

func TestConnectionEndsWithItsProcess(t *testing.T) {
	ca := newAuthority(domain)
	s, socket := serve(t, newMemory(ca), func(c *Config) { c.MaxConnectionsPerUID = 1 })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), abandonEnv+"="+socket)
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	// The heir holds the connection open for as long as this test runs, so
	// room for another can only come from the server closing it.
	for s.Connections() > 0 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.Read(make([]byte, 1))
		conn.Close()
	}
}

func TestStopEndsStreams(t *testing.T) {
	ca := newAuthority(domain)
	s, socket := serve(t, newMemory(ca, ca.identity(1, "/web", "")))
	stream, err := raw(t, socket).FetchX509SVID(secured(t.Context()), &workloadpb.X509SVIDRequest{})
	if err := first(stream, err); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s.Stop(ctx)
	if ctx.Err() != nil {
		t.Error("a stream kept the server from stopping")
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream ended with %v, want Unavailable", err)
	}
	if s.Streams() != 0 {
		t.Errorf("%d streams left", s.Streams())
	}
}
