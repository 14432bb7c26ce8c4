package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/collect"
	"github.com/writ-dev/writ/audit/spool"
	"github.com/writ-dev/writ/internal/writdconf"
	"github.com/writ-dev/writ/pep"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

var ordersID = spiffeid.RequireFromString("spiffe://example.org/svc/orders")

// plane is a writd whose listeners are in memory, so that a test can be the
// peer.
type plane struct {
	t *testing.T
	*writd
	conn *grpc.ClientConn
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	cfg := writdconf.Default()
	cfg.TrustDomain, cfg.DataDir = "example.org", t.TempDir()
	cfg.AllowUnsignedPolicy, cfg.RecheckSample = true, 1
	log := slog.New(slog.DiscardHandler)
	w := &writd{cfg: cfg, log: log, alarms: newAlarms(log), started: time.Now()}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	w.record.registerIngest(s, func(context.Context) (spiffeid.ID, error) { return ordersID, nil })
	w.decision.RegisterAdmin(s)
	running, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(listener) })
	done.Go(func() { w.recheck.Run(running) })
	conn, err := grpc.NewClient("passthrough:writd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		w.decision.Close()
		w.record.endIngest()
		s.Stop()
		stop()
		done.Wait()
	})
	return &plane{t: t, writd: w, conn: conn}
}

// push puts a policy in force by which orders may be read.
func (p *plane) push() *policy.Snapshot {
	p.t.Helper()
	content, err := bundle.NewContent([]bundle.File{
		{Path: "data.json", Content: []byte(`{"writ":{"services":{"orders":{"spiffe_ids":["` + ordersID.String() + `"]}}}}`)},
		{Path: "orders.rego", Content: []byte("package services.orders\n\nallow contains \"reads\" if input.request.method == \"GET\"\n")},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	archive, err := content.Archive(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := policyv1.NewAdminClient(p.conn).Push(p.t.Context(), &policyv1.PushRequest{Bundle: archive})
	if err != nil || len(resp.GetProblems()) > 0 {
		p.t.Fatal(resp, err)
	}
	return p.decision.Active()
}

// lying allows everything, by a rule that is not asked.
type lying struct{ policy.Decider }

func (l lying) Decide(ctx context.Context, in *policy.Input, out *policy.Decision) {
	l.Decider.Decide(ctx, in, out)
	out.Verdict, out.Tier, out.Reason = policy.Allow, policy.ServiceAllow, ""
	out.Rules = append(out.Rules[:0], policy.Rule{ID: "reads", File: "orders.rego", Line: 3})
}

// enforce decides requests as a sidecar does, records them, and ships the
// record. It returns the decision ids.
func (p *plane) enforce(snapshot *policy.Snapshot, methods ...string) (ids []string) {
	p.t.Helper()
	s, err := spool.Open(spool.Config{Dir: p.t.TempDir(), MaxBytes: 8 << 20, Stream: ordersID, OnFull: spool.Block})
	if err != nil {
		p.t.Fatal(err)
	}
	defer s.Close()
	e, err := pep.New(pep.Config{Service: "orders", ID: ordersID, Recorder: s})
	if err != nil {
		p.t.Fatal(err)
	}
	e.SetSnapshot(snapshot)
	for _, m := range methods {
		res := e.Enforce(p.t.Context(), &policy.Input{
			Direction: policy.Inbound, Layer: policy.LayerRequest,
			Source:      policy.Source{ID: "spiffe://example.org/svc/web", TrustDomain: "example.org", Path: "/svc/web", Authn: policy.AuthnMTLS},
			Request:     policy.Request{Protocol: policy.HTTP, Method: m, Host: "orders", Path: "/orders/1", Segments: []string{"orders", "1"}, ContentLength: -1},
			TokenStatus: policy.TokenAbsent,
		})
		ids = append(ids, res.DecisionID)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // What is in the spool now, and no more.
	if err := collect.Ship(ctx, collect.Config{Conn: p.conn, Spool: s, Flush: time.Minute}); err != nil {
		p.t.Fatal(err)
	}
	return ids
}

// await returns the first event on record that is of the kind and verb.
func (p *plane) await(kind auditv1.Kind, verb string) *auditv1.Event {
	p.t.Helper()
	var found *auditv1.Event
	stop := errors.New("found")
	req := &auditv1.TailRequest{Filter: &auditv1.Filter{Kinds: []auditv1.Kind{kind}}, Backlog: 100}
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	err := p.record.ledger.Tail(ctx, req, func() error { return nil }, func(r *auditv1.StoredRecord) error {
		ev := decodeEvent(p.t, r.GetRecord().GetEvent())
		if ev.GetAction().GetVerb() != verb {
			return nil
		}
		found = ev
		return stop
	})
	if !errors.Is(err, stop) {
		p.t.Fatalf("no event %q: %v", verb, err)
	}
	return found
}

func (p *plane) metrics() string {
	p.t.Helper()
	rec := httptest.NewRecorder()
	p.healthHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}

// An enforcement point that allows what its policy denies is found from what
// it records: counter, alarm, status, and the policy is moved to the evaluator.
func TestWrongDecisionIsFound(t *testing.T) {
	p := newPlane(t)
	snapshot := p.push()
	wrong := *snapshot
	wrong.Decider = lying{snapshot.Decider}
	// What it says of GET is true.
	ids := p.enforce(&wrong, "GET", "POST", "GET", "DELETE")

	alarm := p.await(auditv1.Kind_KIND_ALARM, "diverged")
	if alarm.Action.ObjectId != snapshot.Revision.String() || !strings.Contains(alarm.Reason, "decision "+ids[1]+" by "+ordersID.String()) ||
		!strings.Contains(alarm.Reason, "recorded allow by service-allow") || !strings.Contains(alarm.Reason, "evaluated deny by default-deny") {
		t.Errorf("alarm %v: want one of decision %s", alarm, ids[1])
	}
	if texts := p.alarms.texts(); len(texts) == 0 || !strings.Contains(texts[0], "diverged") {
		t.Errorf("status shows %q, want the alarm", texts)
	}
	// The policy is evaluated from here on, as a new revision.
	p.await(auditv1.Kind_KIND_ALARM, "moved to topdown")
	if now := p.push(); now.Revision.Number != 2 || now.Revision.Digest != snapshot.Revision.Digest {
		t.Errorf("revision %s is in force, want a second one of the same content", now.Revision)
	}
	list, err := policyv1.NewAdminClient(p.conn).List(t.Context(), &policyv1.ListRequest{})
	if err != nil || list.Revisions[0].GetEngine() != "topdown" {
		t.Errorf("revisions %v, %v: want the engine of the last to be topdown", list, err)
	}
	if got := p.metrics(); !strings.Contains(got, `writd_recheck_decisions_total{result="diverged"} `) ||
		strings.Contains(got, `writd_recheck_decisions_total{result="diverged"} 0`) {
		t.Errorf("the metric does not count it:\n%s", got)
	}
}

// recordedDecision gives what was decided, for whatever a recorder may send.
func TestRecordedDecisionRefuses(t *testing.T) {
	stream := audit.Stream{SPIFFEID: ordersID.String(), Instance: "0f0e0d0c-0b0a-4908-8706-050403020100"}
	for _, event := range [][]byte{nil, {0xff}, {0x08, 1, 0x10, 1}} {
		if r, err := recordedDecision(event, stream, 1, 1); err == nil {
			t.Errorf("%x: %+v", event, r)
		}
	}
}

func decodeEvent(t *testing.T, b []byte) *auditv1.Event {
	t.Helper()
	ev := new(auditv1.Event)
	if err := proto.Unmarshal(b, ev); err != nil {
		t.Fatal(err)
	}
	return ev
}
