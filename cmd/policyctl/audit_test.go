package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/export"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/policy"
)

// auditWorld is a ledger behind an admin socket.
type auditWorld struct {
	t      *testing.T
	ledger *ledger.Ledger
	dir    string
	key    string
	socket string
	ids    []string
}

func newAuditWorld(t *testing.T) *auditWorld {
	t.Helper()
	w := &auditWorld{t: t, dir: filepath.Join(t.TempDir(), "ledger"), key: filepath.Join(t.TempDir(), "audit.vkey")}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	signer, vkey, err := ledger.LoadSigner(td, filepath.Join(t.TempDir(), "audit.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.key, []byte(vkey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.ledger, err = ledger.Open(ledger.Config{
		Dir: w.dir, MaxBytes: 64 << 20, TrustDomain: td, Self: spiffeid.RequireFromString("spiffe://example.org/writ/server"), Signer: signer, VerifierKey: vkey,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ledger.Close() })
	rec := w.ledger.Recorder()
	for i, path := range []string{"/a", "/bravo", "/c\x1b[31m"} {
		ev := &audit.Event{
			Kind: auditv1.Kind_KIND_DECISION, Time: time.Unix(1_700_000_000+int64(i), 0), Outcome: []auditv1.Outcome{auditv1.Outcome_OUTCOME_ALLOW, auditv1.Outcome_OUTCOME_DENY}[i%2], Mode: policy.Enforce, Enforced: true,
			Input: &policy.Input{
				Layer: policy.LayerRequest, Source: policy.Source{ID: "spiffe://example.org/svc/a"}, Destination: policy.Destination{Service: "web"},
				Request: policy.Request{Method: "GET", Path: path},
			},
			Decision: &policy.Decision{Tier: policy.ServiceAllow, Rules: []policy.Rule{{ID: "web-reads"}}},
		}
		got, err := rec.Record(ev)
		if err != nil {
			t.Fatal(err)
		}
		w.ids = append(w.ids, got.DecisionID)
	}
	w.serve()
	return w
}

func (w *auditWorld) serve() {
	dir, err := os.MkdirTemp("", "writ")
	if err != nil {
		w.t.Fatal(err)
	}
	w.socket = filepath.Join(dir, "admin.sock")
	lis, err := unixsock.Listen(w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	s := grpc.NewServer()
	auditv1.RegisterAdminServer(s, ledger.NewAdmin(ledger.AdminConfig{
		Ledger: w.ledger, Recorder: w.ledger.Recorder(), Actor: func(context.Context) (string, error) { return "unix:uid:1", nil },
	}))
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(lis) })
	w.t.Cleanup(func() { s.Stop(); done.Wait(); os.RemoveAll(dir) })
}

func (w *auditWorld) run(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{"--server", w.socket, "--data-dir", w.t.TempDir(), "audit"}, args...)
	code = run(context.Background(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// good runs a command that is to succeed and returns its result.
func (w *auditWorld) good(args ...string) string {
	w.t.Helper()
	code, out, errs := w.run(args...)
	if code != 0 {
		w.t.Fatalf("%q: exit %d: %s", args, code, errs)
	}
	return out
}

func TestAuditQuery(t *testing.T) {
	w := newAuditWorld(t)
	want := "2023-11-14T22:13:21.000000000Z  decision    deny       " + w.ids[1] + "  spiffe://example.org/svc/a -> web GET /bravo rule=web-reads tier=service-allow\n"
	if diff := cmp.Diff(want, w.good("query", "--outcome", "deny")); diff != "" {
		t.Errorf("query (-want +got):\n%s", diff)
	}
	if out := w.good("query", "--decision-id", w.ids[2]); !strings.Contains(out, w.ids[2]) || strings.Contains(out, "\x1b") {
		t.Errorf("query %q: want the event, and no escape sequence", out)
	}
	var records []export.Record
	if err := json.Unmarshal([]byte(w.good("query", "-o", "json", "--kind", "decision", "--limit", "2")), &records); err != nil || len(records) != 2 || records[1].Path != "/bravo" {
		t.Errorf("records %v, %v", records, err)
	}
	if out := w.good("query", "-o", "json", "--kind", "gap"); out != "[]\n" {
		t.Errorf("nothing found is %q, want []", out)
	}
	if out := w.good("query", "--since", "2023-11-14T22:13:21Z", "--until", "2023-11-14T22:13:22Z"); strings.Count(out, "\n") != 1 {
		t.Errorf("between two times: %q", out)
	}
}

func TestAuditTail(t *testing.T) {
	w := newAuditWorld(t)
	for _, once := range []string{"--no-follow", "--follow=false"} {
		out := w.good("tail", "--backlog", "1", once, "-o", "json", "--kind", "decision")
		var r export.Record
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.DecisionID != w.ids[2] || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %q, %v", once, out, err)
		}
	}
}

func TestAuditExport(t *testing.T) {
	w := newAuditWorld(t)
	code, out, errs := w.run("export", "--format", "jsonl", "--kind", "decision")
	if code != 0 || strings.Count(out, "\n") != 3 || errs != "3 events; no gaps\n" {
		t.Errorf("jsonl: exit %d, %q, %q", code, out, errs)
	}
	file := filepath.Join(t.TempDir(), "a.csv")
	if out := w.good("export", "--format", "csv", "-f", file, "--kind", "decision"); out != "" {
		t.Errorf("stdout %q, want nothing", out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll(); err != nil || len(rows) != 4 {
		t.Errorf("csv: %d rows, %v", len(rows), err)
	}
	for _, bad := range [][]string{{"--format", "xml"}, {"--format", "archive", "--kind", "gap"}, {"--since", "yesterday"}, {"--outcome", "maybe"}, {"--kind", "unspecified"}} {
		if code, _, errs := w.run(append([]string{"export"}, bad...)...); code != 1 || !strings.Contains(errs, bad[0]) && !strings.Contains(errs, bad[len(bad)-2]) {
			t.Errorf("%q: exit %d, %q", bad, code, errs)
		}
	}
}

func TestAuditVerify(t *testing.T) {
	w := newAuditWorld(t)
	archive := filepath.Join(t.TempDir(), "record.tar")
	w.good("export", "--format", "archive", "-f", archive)
	if out := w.good("verify", archive, "--key", w.key); !strings.HasPrefix(out, "verified: 4 events of 1 stream") {
		t.Errorf("verify: %q", out)
	}
	heads := filepath.Join(t.TempDir(), "heads")
	if err := w.ledger.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(w.dir, "heads"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(heads, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var r ledger.Report
	if err := json.Unmarshal([]byte(w.good("verify", w.dir, "--key", w.key, "--expect-head", heads, "-o", "json")), &r); err != nil || !r.OK || r.Events != 4 {
		t.Errorf("report %+v, %v", r, err)
	}

	tampered, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	tampered = bytes.Replace(tampered, []byte("/bravo"), []byte("/delta"), 1)
	if err := os.WriteFile(archive, tampered, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := w.run("verify", archive, "--key", w.key)
	if code != 2 || !strings.Contains(out, "DOES NOT VERIFY") || !strings.Contains(out, "altered") || !strings.Contains(out, "sequence 2\n") || errs != "" {
		t.Errorf("tampered: exit %d, %q, %q", code, out, errs)
	}
	if code, _, _ := w.run("verify", archive, "--key", archive+"x"); code != 1 {
		t.Errorf("no key: exit %d, want 1", code)
	}
}

// TestTerminalSafe: nothing commands the terminal, and nothing is there that
// cannot be seen, such as in a path of a policy that somebody is to approve.
func TestTerminalSafe(t *testing.T) {
	for text, want := range map[string]string{
		"a b → é 漢 \uFFFD":     "a b → é 漢 \uFFFD",
		"a\x1b[31m\n\u009b":    "a\uFFFD[31m\uFFFD\uFFFD",
		"a\u202eb\u2028":       "a\uFFFDb\uFFFD",
		"/internal\u200b":      "/internal\uFFFD", // zero width space
		"a\u200fb\ufeff\u00ad": "a\uFFFDb\uFFFD\uFFFD",
		"a\u00a0b":             "a\uFFFDb", // no space of ours
		"a\U000e0041\u3164":    "a\uFFFD\uFFFD",
		"a\ufe0f\u034f":        "a\uFFFD\uFFFD",
	} {
		if got := terminalSafe(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
