package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/writ-dev/writ/identity/agent/agenttest"
)

func TestSVIDWrite(t *testing.T) {
	issuer := agenttest.Start(t, time.Hour)
	issuer.Create("/svc/web", "/node/n1", "uid:0")
	socket := startNode(t, issuer, "unix:uid:0")
	dir := filepath.Join(t.TempDir(), "files")
	code, stdout, stderr := svidCommand(t, "write", dir, "--socket", socket, "--reload-command", "touch "+dir+"/reloaded")
	if code != 0 || !strings.Contains(stdout, "wrote "+filepath.Join(dir, "key.pem")) {
		t.Fatalf("exit code %d, %s%s", code, stdout, stderr)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem")); err != nil {
		t.Error(err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "pair.pem"), filepath.Join(dir, "pair.pem")); err != nil {
		t.Error(err)
	}
	for name, mode := range map[string]os.FileMode{"key.pem": 0o600, "pair.pem": 0o600, "bundle.pem": 0o644, "reloaded": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || name != "reloaded" && info.Mode().Perm() != mode {
			t.Errorf("%s: %v, want mode %v", name, err, mode)
		}
	}
	for _, tc := range [][]string{{"--reload-command", "exit 3"}, {"--reload-signal", filepath.Join(dir, "no.pid")}, {"--spiffe-id", "spiffe://example.org/other"}} {
		if code, _, stderr := svidCommand(t, append([]string{"write", dir, "--socket", socket}, tc...)...); code == 0 || stderr == "" {
			t.Errorf("%q: exit code %d, %s", tc, code, stderr)
		}
	}
}

// A JWT-SVID and the keys to validate it lie beside the certificate.
func TestSVIDWriteJWT(t *testing.T) {
	issuer := agenttest.Start(t, time.Hour)
	issuer.Create("/svc/web", "/node/n1", "uid:0")
	socket := startNode(t, issuer, "unix:uid:0")
	dir := filepath.Join(t.TempDir(), "files")
	code, _, stderr := svidCommand(t, "write", dir, "--socket", socket, "--jwt-audience", "api", "--jwt-audience", "other")
	if code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	text, err := os.ReadFile(filepath.Join(dir, "jwt.token"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "jwt.token")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("jwt.token: %v, want mode 0600", err)
	}
	keys, err := jwtbundle.Load(agenttest.TrustDomain, filepath.Join(dir, "jwks.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, audience := range []string{"api", "other"} {
		if svid, err := jwtsvid.ParseAndValidate(string(text), keys, []string{audience}); err != nil || svid.ID.Path() != "/svc/web" {
			t.Errorf("for %s: %v", audience, err)
		}
	}
	// Without the flag the next set has none.
	if code, _, stderr := svidCommand(t, "write", dir, "--socket", socket); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "jwt.token")); !os.IsNotExist(err) {
		t.Errorf("a token of an earlier set: %v", err)
	}
}

// Each rotation is written, as a pair that fits, and told to the program.
func TestSVIDWriteWatch(t *testing.T) {
	issuer := agenttest.Start(t, 10*time.Second)
	issuer.Create("/svc/web", "/node/n1", "uid:0")
	socket := startNode(t, issuer, "unix:uid:0")
	dir := filepath.Join(t.TempDir(), "files")
	told, stop := watchSVID(t, dir, "--socket", socket)
	serials := map[string]bool{}
	for len(serials) < 2 {
		told()
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		serials[serialOf(pair.Leaf)] = true
	}
	stop()
}

// A JWT-SVID is renewed in time, between rotations of the certificate.
func TestSVIDWriteJWTRenewal(t *testing.T) {
	issuer := agenttest.Start(t, time.Hour)
	issuer.SetJWTLife(issuer.Create("/svc/web", "/node/n1", "uid:0"), 10*time.Second)
	socket := startNode(t, issuer, "unix:uid:0")
	dir := filepath.Join(t.TempDir(), "files")
	told, stop := watchSVID(t, dir, "--socket", socket, "--jwt-audience", "api")
	tokens := map[string]bool{}
	for len(tokens) < 2 {
		told()
		keys, err := jwtbundle.Load(agenttest.TrustDomain, filepath.Join(dir, "jwks.json"))
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "jwt.token"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := jwtsvid.ParseAndValidate(string(text), keys, []string{"api"}); err != nil {
			t.Error(err)
		}
		tokens[string(text)] = true
	}
	stop()
}

// watchSVID runs svid write --watch. told returns once per reload, stop ends it.
func watchSVID(t *testing.T, dir string, args ...string) (told, stop func()) {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "told")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan string, 1)
	go func() {
		var out, errs strings.Builder
		code := run(ctx, append([]string{"svid", "write", dir, "--watch", "--reload-command", "echo >" + fifo}, args...), strings.NewReader(""), &out, &errs)
		done <- fmt.Sprint(code, errs.String())
	}()
	told = func() {
		if _, err := pipe.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	return told, func() {
		cancel()
		if got := <-done; !strings.HasPrefix(got, "0") {
			t.Errorf("ended with %s", got)
		}
	}
}

// recreate replaces the entry, and so the SVID, of /svc/web.
func recreate(issuer *agenttest.Issuer, id string) string {
	issuer.Delete(id)
	return issuer.Create("/svc/web", "/node/n1", "uid:0")
}

// others has the Workload API push what is not about /svc/web, and returns when it
// has.
func others(t *testing.T, issuer *agenttest.Issuer, socket string, round int) {
	t.Helper()
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+socket)),
		workloadapi.WithDefaultX509SVIDPicker(func(svids []*x509svid.SVID) *x509svid.SVID {
			return slices.MaxFunc(svids, func(x, y *x509svid.SVID) int { return strings.Compare(x.ID.Path(), y.ID.Path()) })
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for n := range 5 {
		path := fmt.Sprintf("/svc/x%d-%d", round, n)
		issuer.Create(path, "/node/n1", "uid:0")
		for {
			if svid, err := source.GetX509SVID(); err == nil && svid.ID.Path() == path {
				break
			}
			<-source.Updated()
		}
	}
}

// What changes for other SVIDs of the process is neither written nor told, also
// where the reload command failed and is to be tried again.
func TestSVIDWriteOnlyItsOwn(t *testing.T) {
	for _, exit := range []string{"0", "1"} {
		t.Run("reload ends with "+exit, func(t *testing.T) {
			issuer := agenttest.Start(t, time.Hour)
			id := issuer.Create("/svc/web", "/node/n1", "uid:0")
			socket := startNode(t, issuer, "unix:uid:0")
			fifo := filepath.Join(t.TempDir(), "told")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			pipe, err := os.OpenFile(fifo, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer pipe.Close()
			w := svidWrite{dir: filepath.Join(t.TempDir(), "files"), watch: true, pause: time.Hour, log: slog.New(slog.DiscardHandler),
				command: "echo >" + fifo + "; exit " + exit}
			w.socket, w.spiffeID, w.timeout = socket, "spiffe://example.org/svc/web", 10*time.Second
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- w.run(ctx, &app{}) }()
			serial := ""
			for round := range 3 {
				if _, err := pipe.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				pair, err := tls.LoadX509KeyPair(filepath.Join(w.dir, "svid.pem"), filepath.Join(w.dir, "key.pem"))
				if err != nil {
					t.Fatal(err)
				}
				if serialOf(pair.Leaf) == serial {
					t.Error("told of what is not new")
				}
				serial = serialOf(pair.Leaf)
				others(t, issuer, socket, round)
				id = recreate(issuer, id)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// What another program put there stays, unless it is an SVID.
func TestSVIDWriteOverFiles(t *testing.T) {
	issuer := agenttest.Start(t, time.Hour)
	issuer.Create("/svc/web", "/node/n1", "uid:0")
	socket := startNode(t, issuer, "unix:uid:0")
	for _, name := range []string{"svid.pem", "key.pem", "current"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := svidCommand(t, "write", dir, "--socket", socket); code == 0 || !strings.Contains(stderr, path+" is there and not from svid write") {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
			t.Errorf("%s now holds %q, %v", name, data, err)
		}
	}
	from, dir := filepath.Join(t.TempDir(), "files"), t.TempDir()
	if code, _, stderr := svidCommand(t, "write", from, "--socket", socket); code != 0 {
		t.Fatal(stderr)
	}
	for _, name := range []string{"svid.pem", "key.pem"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, stderr := svidCommand(t, "write", dir, "--socket", socket); code != 0 {
		t.Errorf("over another helper's SVID: exit code %d, %s", code, stderr)
	}
}

func TestAudienceOfNobody(t *testing.T) {
	for _, args := range [][]string{{"fetch", "--audience", ""}, {"fetch", "--audience", "a,,b"}, {"write", t.TempDir(), "--jwt-audience", ""}} {
		if code, stdout, stderr := svidCommand(t, args...); code == 0 || stdout != "" || !strings.Contains(stderr, "names no audience") {
			t.Errorf("%q: exit code %d, %s%s", args, code, stdout, stderr)
		}
	}
}
