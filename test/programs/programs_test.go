package programs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func start(t *testing.T, script string, notify bool) *Program {
	t.Helper()
	p, err := Start(Config{Path: "/bin/bash", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log"), Notify: notify})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestProgramSaysThatItIsReady(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("python3 is missing")
		}
		t.Skip("python3 is missing")
	}
	p := start(t, `python3 -c '
import os, socket, signal
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b"STATUS=up\nREADY=1\n", os.environ["NOTIFY_SOCKET"])
signal.pause()'`, true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	_ = p.Stop(10 * time.Second)
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the notify socket was left behind: %v", err)
	}
}

func TestProgramThatEndsEarlySaysWhy(t *testing.T) {
	p := start(t, "echo no such policy >&2; exit 3", true)
	err := p.Ready(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such policy") {
		t.Fatalf("got %v, want exit status and log", err)
	}
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	p := start(t, `trap "" TERM; sleep 100 & echo started; wait; sleep 100`, false)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var children map[int]string
	err := p.Until(ctx, func() error {
		var err error
		if children, err = Descendants(p.PID()); err == nil && len(children) == 0 {
			err = os.ErrNotExist
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(time.Millisecond); err == nil {
		t.Error("Stop does not say that it had to kill")
	}
	for pid := range children {
		if err := waitGone(ctx, pid); err != nil {
			t.Error(err)
		}
	}
}

// waitGone waits until the kernel has carried out the kill.
func waitGone(ctx context.Context, pid int) error {
	for ctx.Err() == nil {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if err != nil || strings.Contains(string(stat), "(zombie)") || strings.Contains(string(stat), "(dead)") {
			return nil
		}
	}
	return fmt.Errorf("process %d is alive", pid)
}

func TestMemory(t *testing.T) {
	got, err := parseMemory([]byte("55f0-7ffc ---p 00000000 00:00 0  [rollup]\nRss:                9000 kB\nPss_Anon:  1 kB\nAnonymous:          1024 kB\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Memory{RSS: 9000 << 10, Anonymous: 1 << 20}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := parseMemory([]byte("Rss: 1 kB\n")); err == nil {
		t.Error("half a rollup was accepted")
	}
	if self, err := MemoryOf(os.Getpid()); err != nil || self.RSS < self.Anonymous || self.Anonymous == 0 {
		t.Errorf("of this process: %+v, %v", self, err)
	}
}
