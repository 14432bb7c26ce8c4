package workload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/attest/unix"
	"github.com/writ-dev/writ/internal/peercred"
)

const (
	becomeEnv = "WORKLOAD_TEST_BECOME"
	thenEnv   = "WORKLOAD_TEST_THEN"
)

// become is a workload that opens a stream and, when it may, becomes another
// program that inherits the connection: same process, same descriptor.
func become(socket string) {
	var conn *net.UnixConn
	cc, err := grpc.NewClient("passthrough:///api", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			c, err := net.Dial("unix", socket)
			if err == nil {
				conn = c.(*net.UnixConn)
			}
			return c, err
		}))
	if err != nil {
		os.Exit(1)
	}
	stream, err := workloadpb.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(secured(context.Background()), &workloadpb.X509SVIDRequest{})
	if err := first(stream, err); err != nil {
		os.Exit(1)
	}
	fmt.Println("open")
	then := os.Getenv(thenEnv)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil || then == "" {
		os.Exit(0)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		os.Exit(1)
	}
	// The descriptor survives what follows.
	raw.Control(func(fd uintptr) { syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFD, 0) })
	syscall.Exec(then, []string{then}, []string{})
	os.Exit(1)
}

// copyOf makes a program of its own out of another: a hard link would be one
// file.
func copyOf(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// A real process, attested by what the kernel says of it. What it can have
// depends on its path.
func TestReattest(t *testing.T) {
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Skip("no cat here")
	}
	for _, tc := range []struct {
		name   string
		then   string // the program that it becomes
		change func(t *testing.T, exe string)
		ends   bool
	}{
		{name: "nothing changes", change: func(*testing.T, string) {}},
		{name: "its file is replaced by the next version", change: func(t *testing.T, exe string) {
			copyOf(t, cat, exe+".new")
			if err := os.Rename(exe+".new", exe); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "its file is deleted", change: func(t *testing.T, exe string) {
			if err := os.Remove(exe); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "it becomes another program", then: cat, ends: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			exe := filepath.Join(t.TempDir(), "workload")
			copyOf(t, os.Args[0], exe)
			ca := newAuthority(domain)
			source := bySelectorOnly{newMemory(ca, ca.identity(1, "/web", "")), "unix:path:" + exe}
			attestor := unix.New(unix.Config{Log: slog.New(slog.DiscardHandler)})
			var attested atomic.Int64
			again, ended := make(chan struct{}, 1000), make(chan codes.Code, 1)
			_, socket := serve(t, source, func(c *Config) {
				c.ReattestInterval = 20 * time.Millisecond
				c.Running = func(p peercred.Peer) (string, error) { return unix.Running(p.PID) }
				c.OfProgram = unix.OfProgram
				c.Attest = func(ctx context.Context, p peercred.Peer) ([]string, error) {
					defer func() { attested.Add(1); again <- struct{}{} }()
					return attestor.Attest(ctx, p, func(string) bool { return true })
				}
				c.Observe = func(_ string, code codes.Code) { ended <- code }
			})
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), becomeEnv+"="+socket, thenEnv+"="+tc.then)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); cmd.Process.Kill(); cmd.Wait() }()
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
				t.Fatalf("the workload said %q, %v", line, err)
			}
			if tc.ends {
				io.WriteString(in, "\n")
				if code := <-ended; code != codes.PermissionDenied {
					t.Errorf("the stream ended with %v, want PermissionDenied", code)
				}
				return
			}
			tc.change(t, exe)
			for n := attested.Load() + 3; attested.Load() < n; {
				select {
				case <-again:
				case code := <-ended:
					t.Fatalf("the stream ended with %v after %d attestations", code, attested.Load())
				}
			}
		})
	}
}

// bySelectorOnly gives everything to those who have a selector, and nothing to
// others.
type bySelectorOnly struct {
	*memory
	selector string
}

func (b bySelectorOnly) Hold(uint32, bool) Hold { return b }

func (b bySelectorOnly) Lookup(ctx context.Context, selectors []string) (Grant, <-chan struct{}, error) {
	g, changed, err := b.memory.Lookup(ctx, selectors)
	if !slices.Contains(selectors, b.selector) {
		g.Identities = nil
	}
	return g, changed, err
}

// What is newly true of a process does not count for a stream that is open; an
// attestation that fails ends it, without telling why.
func TestReattestNeverGains(t *testing.T) {
	ca := newAuthority(domain)
	source := newMemory(ca, ca.identity(1, "/a", ""), ca.identity(2, "/b", ""))
	var calls atomic.Int64
	var gone atomic.Bool
	again := make(chan struct{}, 1000)
	_, socket := serve(t, bySelector{source, "b:1"}, func(c *Config) {
		c.ReattestInterval = 20 * time.Millisecond
		c.Attest = func(context.Context, peercred.Peer) ([]string, error) {
			defer func() { again <- struct{}{} }()
			if gone.Load() {
				return nil, errors.New("secret reason")
			}
			if calls.Add(1) == 1 {
				return []string{"a:1"}, nil
			}
			return []string{"a:1", "b:1"}, nil
		}
	})
	stream, err := raw(t, socket).FetchX509SVID(secured(t.Context()), &workloadpb.X509SVIDRequest{})
	if err := first(stream, err); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-again
	}
	// Another bundle, so that there is something to send.
	source.set(func(g *Grant) { g.Bundle = newAuthority(domain).bundle })
	if got, err := stream.Recv(); err != nil || len(got.Svids) != 1 {
		t.Errorf("%d SVIDs, %v, want 1", len(got.GetSvids()), err)
	}
	gone.Store(true)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v, want PermissionDenied without the reason", err)
	}
}

// A method that cannot answer, as while an engine restarts, takes nothing away.
func TestReattestWithoutAnAnswer(t *testing.T) {
	ca := newAuthority(domain)
	source := newMemory(ca, ca.identity(1, "/a", ""))
	var answers atomic.Bool
	again := make(chan struct{}, 1000)
	_, socket := serve(t, bySelectorOnly{source, "docker:label:a:b"}, func(c *Config) {
		c.ReattestInterval = 20 * time.Millisecond
		c.Attest = func(context.Context, peercred.Peer) ([]string, error) {
			return []string{"unix:uid:0", "docker:label:a:b"}, nil
		}
		c.AttestAgain = func(context.Context, peercred.Peer) (selectors, silent []string, err error) {
			defer func() { again <- struct{}{} }()
			if answers.Load() {
				return []string{"unix:uid:0"}, nil, nil
			}
			return []string{"unix:uid:0"}, []string{"docker"}, nil
		}
	})
	stream, err := raw(t, socket).FetchX509SVID(secured(t.Context()), &workloadpb.X509SVIDRequest{})
	if err := first(stream, err); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-again
	}
	source.set(func(g *Grant) { g.Bundle = newAuthority(domain).bundle })
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	answers.Store(true)
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v, want PermissionDenied", err)
	}
}
