package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// ofWritd are the files in a data directory that are the control plane's.
var ofWritd = []string{"writ.db", "writ.db-wal", "writ.db-shm", "writd.lock", "keys", "public", "audit", "run", "up.lock"}

// TestRestore loses the control plane after its third revision of policy and
// restores it as of the second, while sidecars keep the third.
func TestRestore(t *testing.T) {
	t.Parallel()
	p := newPair(t, hello, "1h")
	before := t.TempDir()
	p.runningMesh = up(t, p.file, before)
	policy := filepath.Join(p.policy, "orders.rego")
	version := func(n int) {
		t.Helper()
		rule := fmt.Sprintf("version-%d", n)
		writeFileAtomic(t, policy, fmt.Sprintf("package services.orders\n\nallow contains %q if input.source.path == \"/svc/web\"\n", rule))
	}
	decidedBy := func(n int) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			resp, err := http.Get(p.url + "/restore")
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return p.lastRuleIs(fmt.Sprintf("version-%d", n))
		})
	}
	version(2)
	decidedBy(2)
	file := filepath.Join(t.TempDir(), "writ.tar")
	p.ctl("backup", "--out", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("backup: %v, %v", info, err)
	}
	version(3)
	decidedBy(3)
	p.down()

	// The machine of the control plane is lost; agents and sidecars are not.
	after := filepath.Join(t.TempDir(), "restored")
	restored := &runningMesh{t: t, dataDir: after}
	restored.ctl("restore", file)
	if _, err := restored.tryCtl("restore", file); err == nil {
		t.Error("restored over what was restored")
	}
	entries, err := os.ReadDir(before)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if slices.Contains(ofWritd, e.Name()) {
			continue
		}
		if err := os.Rename(filepath.Join(before, e.Name()), filepath.Join(after, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	version(2) // As the sources are when they are pushed from the same commit.
	p.runningMesh = up(t, p.file, after)
	decidedBy(2)

	var list struct {
		Revisions []struct{ Revision string }
		Epochs    []struct {
			Epoch           uint64
			Reason, Actor   string
			Statement, From string
		}
	}
	if err := json.Unmarshal(p.ctl("policy", "list", "-o", "json"), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Epochs) != 1 || list.Epochs[0].Epoch != 2 || list.Epochs[0].Actor != "restore" || list.Epochs[0].Statement == "" {
		t.Errorf("epochs: %+v", list.Epochs)
	}
	if !strings.HasPrefix(list.Revisions[0].Revision, "2.3@") {
		t.Errorf("in force: %+v", list.Revisions[0])
	}
	var status struct {
		Alarms     []string
		Components []struct{ Kind, Name, Revision, Refused string }
	}
	eventually(t, 30*time.Second, func() error {
		if err := json.Unmarshal(p.ctl("status", "-o", "json"), &status); err != nil {
			t.Fatal(err)
		}
		for _, c := range status.Components {
			if c.Kind == "sidecar" && (c.Revision != list.Revisions[0].Revision || c.Refused != "") {
				return fmt.Errorf("%+v", c)
			}
		}
		return nil
	})
	if !strings.Contains(strings.Join(status.Alarms, "\n"), "policy epoch 2 raised by restore") {
		t.Errorf("alarms: %q", status.Alarms)
	}
	rebuild(t, p)
	// The record goes on where the backup ends.
	p.ctl("audit", "verify", filepath.Join(after, "audit"), "--key", filepath.Join(after, "public", "audit.vkey"))
}

// rebuild proves that what the sidecar of orders got, and keeps, is what the
// sources give, and finds where others differ.
func rebuild(t *testing.T, p *pair) {
	t.Helper()
	const orders = "spiffe://example.org/svc/orders"
	kept := filepath.Join(p.dataDir, "sidecars", "orders", "policy", "slice.tar.gz")
	p.ctl("policy", "verify", "--rebuild", "--spiffe-id", orders, "-f", p.file, p.policy)
	p.ctl("policy", "verify", "--rebuild", "--slice", kept, "-f", p.file, p.policy)
	changed := t.TempDir()
	write(t, changed, "orders.rego", "package services.orders\n\nallow contains \"version-2\" if input.source.path == \"/svc/evil\"\n")
	cmd := exec.Command(filepath.Join(bin, "policyctl"), "policy", "verify", "--rebuild", "--slice", kept, "-f", p.file, "--data-dir", p.dataDir, changed)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "orders.rego: differs") {
		t.Errorf("other sources: %v\n%s", err, out)
	}
}
