package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
)

// onceReport is the document of `policyctl up --once --output json`.
type onceReport struct {
	ReadyMS  int64 `json:"ready_ms"`
	Services []struct {
		Name     string `json:"name"`
		SPIFFEID string `json:"spiffe_id"`
	} `json:"services"`
	Requests []struct {
		Caller   string `json:"caller"`
		Target   string `json:"target"`
		Method   string `json:"method"`
		Path     string `json:"path"`
		Expected string `json:"expected"`
		Verdict  string `json:"verdict"`
		Rule     string `json:"rule"`
		Status   int    `json:"status"`
		Latency  int64  `json:"latency_us"`
	} `json:"requests"`
	Audit struct {
		Events   int64 `json:"events"`
		Verified bool  `json:"verified"`
	} `json:"audit"`
	OK bool `json:"ok"`
}

func once(t *testing.T, args ...string) onceReport {
	t.Helper()
	if err := noteSources(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "policyctl"), append([]string{"up", "--once", "--output", "json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("policyctl up --once: %v\n%s\n%s", err, out, stderr.String())
	}
	var r onceReport
	dec := json.NewDecoder(bytes.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatalf("the document: %v\n%s", err, out)
	}
	if dec.More() {
		t.Fatalf("more than one document on stdout:\n%s", out)
	}
	return r
}

// TestQuickstart runs the built-in example twice in one data directory: what
// the first run made is there for the second.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := once(t, "--data-dir", dir)
	check := func(r onceReport) {
		t.Helper()
		if !r.OK || !r.Audit.Verified {
			t.Errorf("ok %v, audit verified %v", r.OK, r.Audit.Verified)
		}
		if len(r.Requests) < 12 || len(r.Services) < 3 {
			t.Errorf("%d requests, %d services; want at least 12 and 3", len(r.Requests), len(r.Services))
		}
		for _, q := range r.Requests {
			if q.Verdict != q.Expected {
				t.Errorf("%s → %s %s %s: %s, want %s", q.Caller, q.Target, q.Method, q.Path, q.Verdict, q.Expected)
			}
		}
	}
	check(first)
	second := once(t, "--data-dir", dir)
	check(second)
	if second.Audit.Events <= first.Audit.Events {
		t.Errorf("the second run holds %d events, the first %d: the record was not kept", second.Audit.Events, first.Audit.Events)
	}
}
