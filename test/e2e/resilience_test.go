package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// record is what these tests read of an exported event.
type record struct {
	Kind       string `json:"kind"`
	Outcome    string `json:"outcome"`
	DecisionID string `json:"decision_id"`
	Stream     string `json:"stream"`
	Instance   string `json:"instance"`
	Epoch      uint32 `json:"epoch"`
	Sequence   uint64 `json:"sequence"`
	Reason     string `json:"reason"`
	Service    string `json:"destination_service"`
	PeerPort   int    `json:"peer_port"`
}

func (m *runningMesh) export() []record {
	m.t.Helper()
	return decodeLines[record](m.t, m.ctl("audit", "export", "--format", "jsonl"))
}

// TestKills kills the sidecar of orders and writd twenty times under traffic.
// Whatever a client got an answer to is on record exactly once.
func TestKills(t *testing.T) {
	p := startPair(t, hello, "1h")
	l := startLoad(p.url+"/kills", 4, 8*time.Millisecond)
	for i := range 20 {
		victim := []string{"/sidecars/orders/writ-sidecar", "/writd"}[i%2]
		before := l.ok()
		eventually(t, 60*time.Second, func() error {
			if l.ok() < before+20 {
				return fmt.Errorf("%d requests succeeded since the last kill", l.ok()-before)
			}
			if p.pid(victim) == 0 {
				return fmt.Errorf("%s does not run", victim)
			}
			return nil
		})
		if err := syscall.Kill(p.pid(victim), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	before := l.ok()
	eventually(t, 60*time.Second, func() error {
		if l.ok() < before+20 {
			return fmt.Errorf("no traffic after the last kill")
		}
		return nil
	})
	l.stop()

	var events []record
	eventually(t, 60*time.Second, func() error {
		out, err := p.tryCtl("audit", "export", "--format", "jsonl")
		if err != nil {
			return err
		}
		events = decodeLines[record](t, out)
		have := map[string]bool{}
		for _, e := range events {
			have[e.DecisionID] = true
		}
		for _, id := range l.ids {
			if !have[id] {
				return fmt.Errorf("the answer with decision %s is not on record", id)
			}
		}
		return nil
	})
	checkRecord(t, events, l)
	t.Logf("%d attempts, %d answers with a decision, %d events", l.attempts.Load(), len(l.ids), len(events))
}

func checkRecord(t *testing.T, events []record, l *load) {
	t.Helper()
	byID := map[string]int{}
	decisions := int64(0)
	type place struct {
		stream, instance string
		epoch            uint32
	}
	next := map[place]uint64{}
	for _, e := range events {
		// An answer that the caller's own sidecar gave, when it could not reach
		// orders, has an event too, of kind connection.
		byID[e.DecisionID]++
		if e.Kind == "decision" {
			decisions++
		}
		at := place{e.Stream, e.Instance, e.Epoch}
		if e.Sequence != next[at]+1 {
			t.Errorf("stream %v: sequence %d after %d", at, e.Sequence, next[at])
		}
		next[at] = e.Sequence
	}
	answered := map[string]bool{}
	for _, id := range l.ids {
		if answered[id] {
			t.Errorf("two answers carry decision %s", id)
		}
		answered[id] = true
		if byID[id] != 1 {
			t.Errorf("decision %s is on record %d times", id, byID[id])
		}
	}
	for id, n := range byID {
		if n != 1 {
			t.Errorf("decision id %s is used by %d events", id, n)
		}
	}
	if decisions > l.attempts.Load() {
		t.Errorf("%d decisions for %d attempts", decisions, l.attempts.Load())
	}
}

// TestRotation holds traffic while the SVIDs, of ten seconds, rotate.
func TestRotation(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	serials := map[string]bool{}
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if serial := clientSerial(r); serial != "" {
			mu.Lock()
			serials[serial] = true
			mu.Unlock()
		}
	})
	p := startPair(t, app, "10s")
	l := startLoad(p.url+"/rotation", 4, 5*time.Millisecond)
	eventually(t, 60*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(serials) < 4 {
			return fmt.Errorf("%d serials seen", len(serials))
		}
		return nil
	})
	l.stop()
	l.allSucceeded(t)
	t.Logf("%d requests over %d SVIDs", l.attempts.Load(), len(serials))
}

// TestPolicySwap changes the policy back and forth under load; both versions
// allow it.
func TestPolicySwap(t *testing.T) {
	t.Parallel()
	p := startPair(t, hello, "1h")
	l := startLoad(p.url+"/swap", 4, 2*time.Millisecond)
	file := filepath.Join(p.policy, "orders.rego")
	for i := range 10 {
		rule := fmt.Sprintf("version-%d", i)
		writeFileAtomic(t, file, fmt.Sprintf("package services.orders\n\nallow contains %q if input.source.path == \"/svc/web\"\n", rule))
		// The rule that decides shows when the sidecar has the new revision.
		eventually(t, 20*time.Second, func() error {
			return p.lastRuleIs(rule)
		})
	}
	l.stop()
	l.allSucceeded(t)

	// A broken policy is refused, and the last good one stays.
	write(t, p.policy, "orders.rego", "package services.orders\n\nallow contains \"broken\" if input.sauce.path == \"/svc/web\"\n")
	eventually(t, 20*time.Second, func() error {
		if !containsAll(p.log.String(), "orders.rego:3", "sauce") {
			return fmt.Errorf("the broken policy was not reported with file and line")
		}
		return nil
	})
	resp, err := http.Get(p.url + "/after")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("after a broken policy: %s", resp.Status)
	}
}

// TestSecondStart starts a mesh again after everything that was signed has
// expired, the authority included: as days later. Entries, policy and record
// are kept.
func TestSecondStart(t *testing.T) {
	t.Parallel()
	p := newPair(t, hello, "10s", "ca_ttl: 30s")
	dataDir := t.TempDir()
	m := up(t, p.file, dataDir)
	get(t, p.url+"/first")
	entries := m.workloads()
	events := len(m.export())
	bundle, err := os.ReadFile(filepath.Join(dataDir, "public", "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	m.down()
	waitUntil(t, expiry(t, bundle).Add(time.Second))

	m = up(t, p.file, dataDir)
	get(t, p.url+"/second")
	if now := m.workloads(); now != entries {
		t.Errorf("entries changed:\n%s\n%s", entries, now)
	}
	if now := len(m.export()); now <= events {
		t.Errorf("%d events, before the restart %d", now, events)
	}
}

// expiry is when the last certificate of a bundle ends.
func expiry(t *testing.T, bundle []byte) time.Time {
	t.Helper()
	var last time.Time
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if cert.NotAfter.After(last) {
			last = cert.NotAfter
		}
	}
	return last
}

// waitUntil lets the wall clock reach at.
func waitUntil(t *testing.T, at time.Time) {
	t.Helper()
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	<-timer.C
}
