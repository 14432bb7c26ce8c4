package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/writ-dev/writ/test/programs"
)

// bin is where TestMain built the programs.
var bin string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "writ-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "bin")
	build := exec.Command("go", "build", "-o", bin+"/", "./cmd/...")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// noteSources looks at every file that the programs are built of, and no more:
// go test remembers what a test looked at, and a result that was cached before
// one of them changed is not taken for the result of now. It remembers only
// what is looked at while tests run, so TestMain cannot do it.
var noteSources = sync.OnceValue(func() error {
	const root = "../.."
	for _, dir := range []string{"audit", "cmd", "deploy", "identity", "internal", "pep", "policy", "proxy", "rego"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
})

// need skips a test without the program, and fails it in CI: there everything
// is installed, and a skip would hide that it is not.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", p)
		}
		t.Skipf("%s is not installed", p)
	}
}

// runningMesh is a `policyctl up` that stays.
type runningMesh struct {
	t       *testing.T
	dataDir string
	cmd     *exec.Cmd
	exited  chan struct{}
	log     *logBuffer
}

// logBuffer keeps what a program said, for a test that fails.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// up brings the mesh of a mesh file up and waits until it says so.
func up(t *testing.T, meshFile, dataDir string, args ...string) *runningMesh {
	t.Helper()
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(shortDir(t), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	m := &runningMesh{t: t, dataDir: dataDir, exited: make(chan struct{}), log: &logBuffer{}}
	m.cmd = exec.Command(filepath.Join(bin, "policyctl"), append([]string{"up", "-f", meshFile, "--data-dir", dataDir, "--verbose"}, args...)...)
	m.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = m.cmd.Wait()
		close(m.exited)
		notify.Close()
	}()
	t.Cleanup(m.down)
	if err := notify.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4096); ; {
		n, err := notify.Read(buf)
		if err != nil {
			t.Fatalf("policyctl up did not become ready: %v", err)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return m
		}
	}
}

// down stops the mesh as Ctrl-C does.
func (m *runningMesh) down() {
	select {
	case <-m.exited:
	default:
		_ = m.cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-m.exited:
		case <-time.After(20 * time.Second):
			_ = m.cmd.Process.Kill()
			<-m.exited
			m.t.Error("policyctl up did not stop")
		}
	}
	if m.t.Failed() {
		m.t.Logf("policyctl up said:\n%s", m.log.String())
		m.logs()
	}
}

func (m *runningMesh) logs() {
	files, _ := filepath.Glob(filepath.Join(m.dataDir, "logs", "*"))
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil {
			m.t.Logf("%s:\n%s", f, tail(data, 3000))
		}
	}
}

func tail(data []byte, n int) []byte {
	if len(data) > n {
		return data[len(data)-n:]
	}
	return data
}

// ctl runs policyctl against the mesh and returns what it wrote to stdout.
func (m *runningMesh) ctl(args ...string) []byte {
	m.t.Helper()
	out, err := m.tryCtl(args...)
	if err != nil {
		m.t.Fatalf("policyctl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (m *runningMesh) tryCtl(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "policyctl"), append(args, "--data-dir", m.dataDir)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, stderr.String())
	}
	return out, err
}

// pid finds the process of the mesh whose executable's path ends in suffix.
func (m *runningMesh) pid(suffix string) int {
	m.t.Helper()
	for _, pid := range children(m.cmd.Process.Pid) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && strings.HasSuffix(exe, suffix) {
			return pid
		}
	}
	return 0
}

// children lists the direct children of a process, over all its threads.
func children(pid int) []int {
	var pids []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		s := bufio.NewScanner(bytes.NewReader(data))
		s.Split(bufio.ScanWords)
		for s.Scan() {
			if n, err := strconv.Atoi(s.Text()); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// event is what the tests read of `policyctl audit query --output json` and of
// the JSONL export.
func decodeLines[T any](t *testing.T, data []byte) []T {
	t.Helper()
	var all []T
	for dec := json.NewDecoder(bytes.NewReader(data)); dec.More(); {
		var v T
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("decode: %v in %.300s", err, data)
		}
		all = append(all, v)
	}
	return all
}

// eventually runs check until it returns nil. It is for states that another
// process reaches in its own time and of which it tells nobody.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("still so after %s: %v", within, err)
		case <-tick.C:
		}
	}
}

// freePort finds a port that nothing listens on, below the range from which
// the kernel serves outgoing connections.
func freePort(t *testing.T) int {
	t.Helper()
	ports, err := programs.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

// shortDir is a temporary directory whose path leaves room for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "writ")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// write puts a file below dir.
func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
