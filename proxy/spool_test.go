package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/spool"
	"github.com/writ-dev/writ/internal/testpki"
)

// With the real recorder: each response has exactly one event, in order.
func TestEventsInTheSpool(t *testing.T) {
	rec, err := spool.Open(spool.Config{Dir: t.TempDir(), MaxBytes: spool.MinBytes, OnFull: spool.Deny, Stream: spiffeid.RequireFromString(serverID)})
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	ca := testpki.New(t, "example.org")
	source := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	srv := startWith(t, source, serverConfig(app(t, echo())), func(o *Options) { o.Recorder = rec })
	srv.SetSnapshot(allowAll(1))
	cli := start(t, ca, "/svc/web", clientConfig(srv, "http"))
	url := "http://" + cli.UpstreamAddr("orders").String()
	client := newClient(t)
	paths := []string{"/a", "/a%2Fb", "/a/%2e%2e/b", "/c;d"}
	var answered []int
	for _, path := range paths {
		status, _, h := get(t, client, url+path)
		answered = append(answered, status)
		if h.Get("writ-decision-id") == "" {
			t.Errorf("%s: no decision id", path)
		}
	}
	r, err := rec.Reader(1)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := r.Next(100, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var events []*auditv1.Event
	for _, r := range batch.Records {
		ev := &auditv1.Event{}
		if err := proto.Unmarshal(r.Event, ev); err != nil {
			t.Fatal(err)
		}
		if ev.Kind == auditv1.Kind_KIND_DECISION {
			events = append(events, ev)
		}
	}
	if len(events) != len(paths) {
		t.Fatalf("%d events for %d responses", len(events), len(paths))
	}
	for i, ev := range events {
		if ev.GetRequest().GetPath() != paths[i] || ev.GetSource().GetId() != clientID || ev.GetConnection().GetKeyExchange() != "X25519MLKEM768" {
			t.Errorf("event %d: %v", i, ev)
		}
		if refused := ev.Outcome == auditv1.Outcome_OUTCOME_REFUSED; refused != (answered[i] == http.StatusBadRequest) {
			t.Errorf("event %d: %v, answered %d", i, ev.Outcome, answered[i])
		}
	}
}

// A full spool denies, and the sidecar says nothing more than that.
func TestFullSpoolDenies(t *testing.T) {
	rec, err := spool.Open(spool.Config{Dir: t.TempDir(), MaxBytes: spool.MinBytes, OnFull: spool.Deny, Stream: spiffeid.RequireFromString(serverID)})
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	ca := testpki.New(t, "example.org")
	source := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	srv := startWith(t, source, serverConfig(app(t, echo())), func(o *Options) { o.Recorder = rec })
	srv.SetSnapshot(allowAll(1))
	cli := start(t, ca, "/svc/web", clientConfig(srv, "http"))
	client := newClient(t)
	url := "http://" + cli.UpstreamAddr("orders").String() + "/" + strings.Repeat("p", 7000)
	for range 1000 {
		res, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		switch id := res.Header.Get("writ-decision-id"); {
		case res.StatusCode == 200 && id != "":
		case res.StatusCode == 503 && id == "":
			return
		default:
			t.Fatalf("%d with decision id %q", res.StatusCode, id)
		}
	}
	t.Error("a spool of one megabyte took a thousand events of seven kilobytes")
}

// A recorder that blocks does not block the end.
func TestBlockedRecorderDoesNotBlockTheEnd(t *testing.T) {
	cfg := spool.Config{Dir: t.TempDir(), MaxBytes: spool.MinBytes, OnFull: spool.Deny, Stream: spiffeid.RequireFromString(serverID)}
	rec, err := spool.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ev := audit.Event{Kind: auditv1.Kind_KIND_LIFECYCLE, Time: time.Unix(1, 0), Reason: "r"}
	for err == nil {
		_, err = rec.Record(&ev)
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.OnFull = spool.Block
	if rec, err = spool.Open(cfg); err != nil {
		t.Fatal(err)
	}
	ca := testpki.New(t, "example.org")
	source := testpki.NewSource(ca.SVID(t, "/svc/orders", time.Hour), ca.Bundle())
	srv := startWith(t, source, serverConfig(app(t, echo())), func(o *Options) { o.Recorder, o.Log = rec, nil })
	// A handshake that fails waits for its record, and others are counted.
	if c, err := dial(t, srv.InboundAddr(), nil, "http/1.1"); err == nil {
		c.Close()
	}
	srv.inbound.refusals.mu.Lock()
	srv.inbound.refusals.suppressed = 3
	srv.inbound.refusals.mu.Unlock()
	if err := srv.end(); err != nil {
		t.Error(err)
	}
	if err := rec.Close(); err != nil {
		t.Error(err)
	}
}
