//go:build interop

package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// The conformance suite at our agent and server, and at SPIRE's. What SPIRE
// does otherwise than a standard demands is shown, and no failure of ours.
func TestSPIFFEConformance(t *testing.T) {
	suite := filepath.Join(t.TempDir(), "spiffe-conformance")
	if out, err := exec.CommandContext(bounded(t, 5*time.Minute), "go", "build", "-o", suite, "./spiffe-conformance").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, pair := range []struct{ agent, server string }{{"writ-agent", "writd"}, {"spire-agent", "spire-server"}} {
		t.Run(pair.agent+" with "+pair.server, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, pair.agent, pair.server)
			_, err := n.workload.FetchX509SVID(bounded(t, 30*time.Second))
			if err == nil {
				t.Fatal("an identity without an entry")
			}
			n.entry(t, "/svc/web")
			n.entry(t, "/svc/other")
			watch := n.watch(t)
			watch.until(t, func(u *workloadapi.X509Context) bool { return len(u.SVIDs) == 2 })
			args := []string{"--socket", "unix://" + n.socket, "--output", "json", "--watch", "15s"}
			out, err := exec.CommandContext(bounded(t, 2*time.Minute), suite, args...).Output()
			var table struct {
				Checks []struct{ ID, Section, Level, Title, Result, Found string }
			}
			if jerr := json.Unmarshal(out, &table); jerr != nil {
				t.Fatalf("%v: %v\n%s", err, jerr, out)
			}
			count := map[string]int{}
			for _, c := range table.Checks {
				count[c.Result]++
				if c.Result != "fail" {
					continue
				}
				text := fmt.Sprintf("%s: %s (%s, %s): %s", c.ID, c.Title, c.Section, c.Level, c.Found)
				if pair.agent == "spire-agent" {
					t.Logf("deviates: spire-agent: %s", text)
				} else {
					t.Error(text)
				}
			}
			if count["pass"] < 40 {
				t.Errorf("only %d checks passed: %v", count["pass"], count)
			}
			n.denied(t, suite)
		})
	}
}

// denied runs the suite once more at an agent that has nothing for this
// process any longer.
func (n *node) denied(t *testing.T, suite string) {
	t.Helper()
	for _, id := range n.entries {
		check(t, n.server.DeleteEntry(bounded(t, 30*time.Second), id))
	}
	n.watch(t).untilDenied(t)
	var exit int
	err := n.agent.Until(bounded(t, 30*time.Second), func() error {
		cmd := exec.CommandContext(context.Background(), suite, "--socket", "unix://"+n.socket, "--denied-socket", "unix://"+n.socket, "--output", "json")
		out, _ := cmd.Output()
		exit = cmd.ProcessState.ExitCode()
		var table struct {
			Checks []struct{ ID, Result, Found string }
		}
		if err := json.Unmarshal(out, &table); err != nil {
			return err
		}
		for _, c := range table.Checks {
			if c.ID == "endpoint-denied" && c.Result != "pass" {
				return fmt.Errorf("%s: %s", c.ID, c.Found)
			}
		}
		return nil
	})
	check(t, err)
	if exit != 1 {
		t.Errorf("exit code %d where no SVID was to be had, want 1", exit)
	}
}
