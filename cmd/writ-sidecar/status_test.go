package main

import (
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// The service manager hears why there is no policy, in one line that it takes, and
// nothing more once there is one.
func TestRefusedFirstPolicyIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	told := func() string {
		t.Helper()
		buf := make([]byte, 1<<16)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	s := &sidecar{log: slog.New(slog.DiscardHandler), decided: make(chan struct{})}
	s.tellRefused("policy refused: rules/web.rego:7:2: compile: unknown builtin\nrules/web.rego:9:1: compile: unsafe variable")
	if got, want := told(), "STATUS=waiting for policy: refused: policy refused: rules/web.rego:7:2: compile: unknown builtin rules/web.rego:9:1: compile: unsafe variable"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	s.tellRefused(strings.Repeat("ä", 5000))
	if got := told(); len(got) > 2*maxStatus || !utf8.ValidString(got) || !strings.HasSuffix(got, "…") {
		t.Errorf("told %d bytes: %q", len(got), got)
	}
	close(s.decided)
	s.tellRefused("later")
	s.ready(t.Context())
	if got := told(); !strings.HasPrefix(got, "READY=1\nSTATUS=serving as ") {
		t.Errorf("told %q", got)
	}
}
