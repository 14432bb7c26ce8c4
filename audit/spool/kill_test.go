package spool

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/writ-dev/writ/audit"
)

// childDir makes the test binary a process that records until it is killed.
const childDir = "WRIT_TEST_SPOOL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, recordForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// recordForever records from several goroutines and prints each receipt once
// it has it.
func recordForever(dir string) error {
	cfg := config(dir)
	cfg.MaxBytes = 256 << 20
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				got, err := s.Record(note(strings.Repeat("x", (i*371+n*17)%1000)))
				if err != nil {
					errs <- err
					return
				}
				if _, err := os.Stdout.WriteString(fmt.Sprintf("%d %s\n", got.Sequence, got.DecisionID)); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	return <-errs
}

// TestKill kills a recording process again and again. Whatever it was told is
// recorded is there, once, and the sequence has no hole.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	promised := map[uint64]string{}
	for i := range 20 {
		child := exec.Command(exe)
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			sequence, id, ok := strings.Cut(lines.Text(), " ")
			v, err := strconv.ParseUint(sequence, 10, 64)
			if !ok || err != nil || len(id) != 26 {
				// The last line may be cut.
				continue
			}
			if old, ok := promised[v]; ok {
				t.Fatalf("sequence %d was given out twice: %s, %s", v, old, id)
			}
			promised[v] = id
			if n == 50+i*37 {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); err == nil || child.ProcessState.ExitCode() == 1 {
			t.Fatalf("the child ended by itself: %v", err)
		}
	}

	cfg := config(dir)
	cfg.MaxBytes = 256 << 20
	s := open(t, cfg)
	all := readAll(t, s)
	last := contiguous(t, all)
	if st := s.Status(); st.Epoch != 1 || uint64(len(all)) != last {
		t.Fatalf("epoch %d, %d records, last sequence %d: want one epoch from 1 on", st.Epoch, len(all), last)
	}
	ids := audit.NewDecisionIDs(s.Stream(), 1)
	for sequence, id := range promised {
		if sequence > last {
			t.Errorf("sequence %d was promised and is lost", sequence)
		}
		if id != ids.At(sequence) {
			t.Errorf("sequence %d has id %s, want %s", sequence, id, ids.At(sequence))
		}
	}
	t.Logf("%d receipts seen, %d records kept", len(promised), last)
}
