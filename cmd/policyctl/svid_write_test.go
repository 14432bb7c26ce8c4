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

// Each rotation is written, as a pair that fits, and told to the program.
func TestSVIDWriteWatch(t *testing.T) {
	issuer := agenttest.Start(t, 10*time.Second)
	issuer.Create("/svc/web", "/node/n1", "uid:0")
	socket := startNode(t, issuer, "unix:uid:0")
	dir := filepath.Join(t.TempDir(), "files")
	fifo := filepath.Join(t.TempDir(), "told")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	told, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan string, 1)
	go func() {
		var out, errs strings.Builder
		code := run(ctx, []string{"svid", "write", dir, "--watch", "--socket", socket, "--reload-command", "echo >" + fifo}, strings.NewReader(""), &out, &errs)
		done <- fmt.Sprint(code, errs.String())
	}()
	serials := map[string]bool{}
	for len(serials) < 2 {
		if _, err := told.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		serials[serialOf(pair.Leaf)] = true
	}
	cancel()
	if got := <-done; !strings.HasPrefix(got, "0") {
		t.Errorf("ended with %s", got)
	}
}
