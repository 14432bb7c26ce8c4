package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/internal/unixsock"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/server"
	"github.com/writ-dev/writ/policy/simulate"
)

// simulationWorld is a control plane with a policy server and a ledger behind
// one admin socket, and an enforcement point for orders that records.
type simulationWorld struct {
	t      *testing.T
	ledger *ledger.Ledger
	server *server.Server
	socket string
	stream audit.Stream
	at     audit.Position
}

const ordersID = "spiffe://example.org/svc/orders"

func newSimulationWorld(t *testing.T) *simulationWorld {
	t.Helper()
	dir, err := os.MkdirTemp("", "writ")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &simulationWorld{t: t, socket: filepath.Join(dir, "admin.sock")}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	signer, vkey, err := ledger.LoadSigner(td, filepath.Join(dir, "audit.key"))
	if err != nil {
		t.Fatal(err)
	}
	w.ledger, err = ledger.Open(ledger.Config{
		Dir: filepath.Join(dir, "ledger"), MaxBytes: 64 << 20, TrustDomain: td, Self: identity.ServerID(td), Signer: signer, VerifierKey: vkey,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ledger.Close() })
	db, err := sqldb.OpenSQLite(t.Context(), filepath.Join(dir, "writ.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.server, err = server.New(t.Context(), server.Config{
		DB: db, DecisionKey: key, AllowUnsigned: true,
		Emit:   func(context.Context, identity.Act) error { return nil },
		Actor:  func(context.Context) string { return "unix:uid:7" },
		PeerID: func(context.Context) (spiffeid.ID, error) { return spiffeid.ID{}, errors.New("none") },
		Log:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := unixsock.Listen(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(server.MaxMessageBytes), grpc.MaxSendMsgSize(server.MaxMessageBytes))
	w.server.RegisterAdmin(g)
	auditv1.RegisterAdminServer(g, ledger.NewAdmin(ledger.AdminConfig{
		Ledger: w.ledger, Recorder: w.ledger.Recorder(), Actor: func(context.Context) (string, error) { return "unix:uid:7", nil },
	}))
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(listener)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-served
		w.server.Close()
	})
	if w.stream, err = audit.NewStream(ordersID, "0f0e0d0c-0b0a-4908-8706-050403020100"); err != nil {
		t.Fatal(err)
	}
	w.at = w.stream.Start(1)
	return w
}

// policy writes a directory whose services have these rules.
func (w *simulationWorld) policy(orders, web string) string {
	dir := w.t.TempDir()
	for name, text := range map[string]string{
		"data.json":   `{"writ": {"services": {"orders": {"spiffe_ids": ["` + ordersID + `"]}, "web": {"spiffe_ids": ["spiffe://example.org/svc/web"]}}}}`,
		"orders.rego": "package services.orders\n\n" + orders + "\n",
		"web.rego":    "package services.web\n\n" + web + "\n",
	} {
		writeTestFile(w.t, filepath.Join(dir, name), text)
	}
	return dir
}

func (w *simulationWorld) run(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	return policyCommand(w.t, "", append(args, "--server", w.socket)...)
}

// record decides requests as the enforcement point of orders does, by its
// slice, and records them. change is made to a decision before it is recorded.
func (w *simulationWorld) record(change func(*policy.Decision), inputs ...*policy.Input) {
	w.t.Helper()
	active := w.server.Active()
	code, stdout, stderr := w.run("policy", "show", "--dir", filepath.Join(w.t.TempDir(), "p"))
	if code != 0 {
		w.t.Fatal(stdout, stderr)
	}
	content, err := bundle.ReadDir(strings.TrimSpace(stdout[strings.LastIndex(stdout, " "):]))
	if err != nil {
		w.t.Fatal(err)
	}
	cutter, err := bundle.NewCutter(content)
	if err != nil {
		w.t.Fatal(err)
	}
	slice, err := cutter.Cut(bundle.SliceConfig{Revision: active.Revision, SPIFFEID: spiffeid.RequireFromString(ordersID)})
	if err != nil {
		w.t.Fatal(err)
	}
	program, err := opa.Load(slice.Content)
	if err != nil {
		w.t.Fatal(err)
	}
	snapshot, err := program.Snapshot(opa.SnapshotConfig{Revision: active.Revision})
	if err != nil {
		w.t.Fatal(err)
	}
	permit, err := audit.NewPermit([]string{"x-*"}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	batch := &audit.Batch{Stream: w.stream, Epoch: 1, First: w.at.Sequence + 1}
	for _, in := range inputs {
		var d policy.Decision
		snapshot.Decider.Decide(context.Background(), in, &d)
		if change != nil {
			change(&d)
		}
		outcome := map[policy.Verdict]auditv1.Outcome{
			policy.Allow: auditv1.Outcome_OUTCOME_ALLOW, policy.Deny: auditv1.Outcome_OUTCOME_DENY,
			policy.Undefined: auditv1.Outcome_OUTCOME_UNDEFINED, policy.Error: auditv1.Outcome_OUTCOME_ERROR,
		}[d.Verdict]
		w.at.Sequence++
		event := audit.NewEncoder(permit).Append(nil, &audit.Event{
			Kind: auditv1.Kind_KIND_DECISION, Outcome: outcome, Mode: policy.Enforce, Enforced: true, Input: in, Decision: &d, Reads: &snapshot.Reads,
		})
		batch.Records = append(batch.Records, &auditv1.Record{Event: audit.AppendSequence(event, w.at.Sequence), Salt: make([]byte, audit.SaltSize)})
	}
	if err := batch.Hash(w.at.Chain); err != nil {
		w.t.Fatal(err)
	}
	w.at.Chain = batch.Last
	done := make(chan error, 1)
	w.ledger.Append(batch, func(err error) { done <- err })
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
}

func (w *simulationWorld) push(dir string) {
	w.t.Helper()
	if code, stdout, stderr := w.run("policy", "push", dir); code != 0 {
		w.t.Fatal(stdout, stderr)
	}
}

// simulate runs the command and returns its result as JSON has it.
func (w *simulationWorld) simulate(want int, args ...string) *simulate.Report {
	w.t.Helper()
	code, stdout, stderr := w.run(append([]string{"simulate", "-o", "json"}, args...)...)
	if code != want {
		w.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, code, want, stdout, stderr)
	}
	var r simulate.Report
	// Changes are names in JSON, which only people read.
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(stdout), &raw); err != nil {
		w.t.Fatalf("%v\n%s", err, stdout)
	}
	delete(raw, "groups")
	b, err := json.Marshal(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		w.t.Fatal(err)
	}
	return &r
}

func ordersRequest(method, team string, at int64) *policy.Input {
	in := &policy.Input{
		Direction: policy.Inbound, Layer: policy.LayerRequest,
		Source:      policy.Source{ID: "spiffe://example.org/svc/web", TrustDomain: "example.org", Path: "/svc/web", Authn: policy.AuthnMTLS},
		Destination: policy.Destination{Service: "orders", ID: ordersID, Port: 8443},
		Request:     policy.Request{Protocol: policy.HTTP, Method: method, Path: "/orders/1", Segments: []string{"orders", "1"}, ContentLength: -1},
		TokenStatus: policy.TokenAbsent, Time: time.Unix(1_790_000_000+at, 0).UTC(),
	}
	in.Request.Headers = policy.MapValues{"x-other": {"1"}}
	if team != "" {
		in.Request.Headers = policy.MapValues{"x-team": {team}, "x-other": {"1"}}
	}
	return in
}

const (
	redReads   = `allow contains "reds" if { input.request.headers["x-team"][_] == "red"; input.request.method == "GET" }`
	redWrites  = `allow contains "reds" if { input.request.headers["x-team"][_] == "red"; input.request.method == "POST" }`
	nothing    = `allow contains "nobody" if input.source.id == "nobody"`
	otherReads = `allow contains "others" if input.request.headers["x-other"]`
)

// The record and the policies are the control plane's, and what the record
// holds is what the slice of the enforcement point read.
func TestSimulate(t *testing.T) {
	w := newSimulationWorld(t)
	w.push(w.policy(redReads, otherReads))
	w.record(nil, ordersRequest("GET", "red", 1), ordersRequest("GET", "blue", 2), ordersRequest("POST", "red", 3), ordersRequest("GET", "", 4))

	same := w.simulate(0, "--candidate", w.policy(redReads, otherReads), "--fail-on", "newly-allowed,newly-denied,error,blocked,mismatch,not-replayable")
	if same.Replayed != 4 || same.Same != 4 || same.CandidateVerdicts != (simulate.Verdicts{Allow: 1, Deny: 3}) {
		t.Errorf("the policy in force: %+v", same)
	}
	writes := w.simulate(3, "--candidate", w.policy(redWrites, otherReads), "--fail-on", "blocked")
	if writes.NewlyAllowed != 1 || writes.NewlyDenied != 1 || writes.Blocked != 1 || writes.Passing != 1 || writes.Same != 2 {
		t.Errorf("other methods: %+v", writes)
	}
	// The whole policy in force reads x-other; the slice of orders did not.
	other := w.simulate(3, "--candidate", w.policy(otherReads, redReads), "--fail-on", "not-replayable")
	want := []simulate.Reason{{Reason: simulate.NotRecorded, Detail: "headers.x-other", Count: 4}}
	for i := range other.Reasons {
		other.Reasons[i].Example = ""
	}
	if diff := cmp.Diff(want, other.Reasons); diff != "" || other.Replayed != 0 {
		t.Errorf("a header of another service (-want +got):\n%s", diff)
	}

	// Records of an older revision are known by its content.
	w.push(w.policy(redWrites, nothing))
	drifted := w.simulate(0, "--candidate", w.policy(redReads, nothing))
	if drifted.Replayed != 4 || drifted.NewlyAllowed != 1 || drifted.NewlyDenied != 1 || drifted.Drifted != 2 || drifted.Mismatched != 0 {
		t.Errorf("an older revision's: %+v", drifted)
	}
	if old := w.simulate(0, "--candidate", w.policy(redReads, otherReads), "--baseline", "1"); old.Same != 4 || old.Drifted != 0 {
		t.Errorf("an older baseline: %+v", old)
	}
	if recorded := w.simulate(0, "--candidate", w.policy(redReads, otherReads), "--baseline", "recorded"); recorded.Same != 4 {
		t.Errorf("as recorded: %+v", recorded)
	}
	code, _, stderr := w.run("simulate", "--candidate", w.policy(redReads, nothing), "--baseline", "99")
	if code != 1 || !strings.Contains(stderr, "baseline: no policy revision 99") {
		t.Errorf("no such baseline: %d %s", code, stderr)
	}
	broken := w.policy("allow contains \"x\" if input.reqest", nothing)
	if code, _, stderr = w.run("simulate", "--candidate", broken); code != 2 || !strings.Contains(stderr, filepath.Join(broken, "orders.rego")+":3:") {
		t.Errorf("a broken candidate: %d %s", code, stderr)
	}
}

// An enforcement point that decided otherwise than its policy does puts the
// result in question.
func TestSimulateMismatch(t *testing.T) {
	w := newSimulationWorld(t)
	w.push(w.policy(redReads, nothing))
	w.record(func(d *policy.Decision) { d.Verdict, d.Tier = policy.Allow, policy.ServiceAllow }, ordersRequest("GET", "blue", 1))
	dir := w.policy(redReads, nothing)
	got := w.simulate(3, "--candidate", dir, "--fail-on", "mismatch")
	if got.Mismatched != 1 || got.Same != 1 || len(got.Mismatches) != 1 || got.Mismatches[0].Recorded.Verdict != "allow" || got.Mismatches[0].Now.Verdict != "deny" {
		t.Errorf("report: %+v", got)
	}
	if _, stdout, _ := w.run("simulate", "--candidate", dir); !strings.Contains(stdout, "do not trust this result") {
		t.Errorf("the text does not say so:\n%s", stdout)
	}
}
