package peercred

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const connectEnv = "PEERCRED_TEST_CONNECT"

// TestMain lets the test binary be a caller: it connects, hands a copy of the
// connection to a grandchild that lives as long as standard input, says so, and
// ends when told to.
func TestMain(m *testing.M) {
	if path := os.Getenv(connectEnv); path != "" {
		os.Exit(callAndLeave(path))
	}
	os.Exit(m.Run())
}

func callAndLeave(path string) int {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return 1
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return 1
	}
	heir := exec.Command("cat")
	heir.Stdin = os.Stdin
	heir.ExtraFiles = []*os.File{file}
	if err := heir.Start(); err != nil {
		return 1
	}
	os.Stdout.WriteString("connected\n")
	conn.Read(make([]byte, 1)) // one byte from the server: leave
	return 0
}

type caller struct {
	cmd  *exec.Cmd
	conn *net.UnixConn
	// heir ends when this is closed.
	heir *os.File
}

func startCaller(t *testing.T) *caller {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), connectEnv+"="+ln.Addr().String())
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	t.Cleanup(func() { w.Close(); cmd.Process.Kill(); cmd.Wait() })
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("caller said %q, %v", line, err)
	}
	return &caller{cmd: cmd, conn: conn.(*net.UnixConn), heir: w}
}

func TestIdentifies(t *testing.T) {
	c := startCaller(t)
	for name, k := range map[string]facts{"SO_PEERPIDFD": kernel{}, "older kernel": older{}} {
		t.Run(name, func(t *testing.T) {
			p, err := of(c.conn, k)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if p.PID != c.cmd.Process.Pid || p.UID != uint32(os.Geteuid()) || p.GID != uint32(os.Getegid()) {
				t.Errorf("got pid %d uid %d gid %d", p.PID, p.UID, p.GID)
			}
			groups, err := os.Getgroups()
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range groups {
				if !slices.Contains(p.Groups, uint32(g)) {
					t.Errorf("groups %v lack %d", p.Groups, g)
				}
			}
			if err := p.Alive(); err != nil {
				t.Errorf("Alive: %v", err)
			}
			uid, gid, err := p.Effective()
			if err != nil || uid != p.UID || gid != p.GID {
				t.Errorf("Effective: %d %d %v", uid, gid, err)
			}
		})
	}
}

// The connection outlives the caller in a process that inherited it. It is
// nobody's then: it is closed, and a peer taken from it is not alive.
func TestEndsWithTheProcess(t *testing.T) {
	c := startCaller(t)
	bound, info, err := Credentials().ServerHandshake(c.conn)
	if err != nil {
		t.Fatal(err)
	}
	defer bound.Close()
	p := info.(AuthInfo).Peer
	if err := p.Alive(); err != nil {
		t.Fatalf("before: %v", err)
	}
	if _, err := bound.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	c.cmd.Wait()
	if err := p.Alive(); !errors.Is(err, ErrGone) {
		t.Errorf("Alive = %v, want ErrGone", err)
	}
	// Without the watch this would block: the heir holds the other end.
	if _, err := bound.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read = %v, want a connection closed on this side", err)
	}
}

// A caller that is gone before it is identified is refused, though its
// connection is open.
func TestRefusesTheDead(t *testing.T) {
	c := startCaller(t)
	if _, err := c.conn.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	c.cmd.Wait()
	for name, k := range map[string]facts{"SO_PEERPIDFD": kernel{}, "older kernel": older{}} {
		if p, err := of(c.conn, k); !errors.Is(err, ErrGone) {
			t.Errorf("%s: got %+v, %v, want ErrGone", name, p, err)
		}
	}
}

// On an older kernel, a process that took over the number is told from the
// caller by having started after the connection.
func TestRefusesReusedPID(t *testing.T) {
	c := startCaller(t)
	p, err := of(c.conn, older{startedLate: true})
	if !errors.Is(err, ErrGone) {
		t.Fatalf("got %+v, %v, want ErrGone", p, err)
	}
}

func TestCloseReleases(t *testing.T) {
	c := startCaller(t)
	bound, info, err := Credentials().ServerHandshake(c.conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := bound.Close(); err != nil {
		t.Fatal(err)
	}
	p := info.(AuthInfo).Peer
	if err := p.Alive(); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("Alive after Close = %v, want an error other than ErrGone", err)
	}
}

func TestRefusesOtherConnections(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := Credentials().ServerHandshake(a); err == nil {
		t.Error("a pipe has no peer credentials, yet the handshake went through")
	}
}

func TestFromContext(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	peers := make(chan Peer, 1)
	srv := grpc.NewServer(grpc.Creds(Credentials()), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		p, _ := FromContext(s.Context())
		peers <- p
		return nil
	}))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	defer func() { srv.Stop(); <-served }()
	// The same credentials let a client see who serves.
	cc, err := grpc.NewClient("unix:"+ln.Addr().String(), grpc.WithTransportCredentials(Credentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	grpc_health_v1.NewHealthClient(cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if p := <-peers; p.PID != os.Getpid() {
		t.Errorf("caller is process %d, want %d", p.PID, os.Getpid())
	}
	if p, ok := FromContext(t.Context()); ok {
		t.Errorf("a context without a peer gave %+v", p)
	}
}

// older is a kernel without SO_PEERPIDFD.
type older struct{ startedLate bool }

func (older) peerPIDFD(int) (int, error)     { return -1, unix.ENOPROTOOPT }
func (older) openPID(pid int) (int, error)   { return kernel{}.openPID(pid) }
func (older) uptime() (time.Duration, error) { return kernel{}.uptime() }
func (o older) started(pid int) (time.Duration, error) {
	if o.startedLate {
		return kernel{}.uptime()
	}
	return kernel{}.started(pid)
}

func FuzzParseStarted(f *testing.F) {
	f.Add("1 (a b) c) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 1 2")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseStarted(s); err == nil && d < 0 {
			t.Errorf("started %v before boot", d)
		}
	})
}

func FuzzParseEffective(f *testing.F) {
	f.Add("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n")
	f.Add("Uid:")
	f.Fuzz(func(t *testing.T, s string) { parseEffective(s) })
}

func TestParsers(t *testing.T) {
	// A program may call itself anything.
	if d, err := parseStarted("7 (x) 1 (y) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 1 2"); err != nil || d != 420*time.Millisecond {
		t.Errorf("parseStarted = %v, %v", d, err)
	}
	if u, g, err := parseEffective("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"); err != nil || u != 2 || g != 6 {
		t.Errorf("parseEffective = %d, %d, %v", u, g, err)
	}
}
