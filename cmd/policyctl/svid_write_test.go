package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

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
