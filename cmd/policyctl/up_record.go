package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/audit/auditv1"
	"github.com/writ-dev/writ/audit/ledger"
	"github.com/writ-dev/writ/internal/mesh"
)

// recorded is an event as the collector stored it.
type recorded struct {
	id    string
	event *auditv1.Event
}

// verdict is the event's outcome in the words of the mesh file. An evaluation
// that came to nothing is an error, never an ordinary deny.
func (r *recorded) verdict() string {
	switch r.event.GetOutcome() {
	case auditv1.Outcome_OUTCOME_ALLOW:
		return mesh.Allowed
	case auditv1.Outcome_OUTCOME_DENY:
		return mesh.Denied
	case auditv1.Outcome_OUTCOME_REFUSED:
		return mesh.Refused
	}
	return mesh.Erroneous
}

// rule names what decided: the rules, or the tier where no rule spoke.
func (r *recorded) rule() string {
	var ids []string
	for _, rule := range r.event.GetRules() {
		ids = append(ids, rule.GetId())
	}
	if len(ids) > 0 {
		return strings.Join(ids, ", ")
	}
	if tier := r.event.GetTier(); tier != auditv1.Tier_TIER_UNSPECIFIED {
		name := strings.TrimPrefix(tier.String(), "TIER_")
		return strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	}
	return ""
}

// recordTail follows the audit record from the collector, so that what it
// shows is durable.
type recordTail struct {
	client auditv1.AdminClient
	// lost is told when the stream ended, once until it is open again; back is
	// told then.
	lost func(error)
	back func()

	mu      sync.Mutex
	changed chan struct{}
	seen    map[string]*recorded
	// live takes events once nobody waits for them any more.
	live func(*recorded)
}

func newRecordTail(client auditv1.AdminClient, lost func(error), back func()) *recordTail {
	return &recordTail{client: client, lost: lost, back: back, changed: make(chan struct{}), seen: map[string]*recorded{}}
}

// The time between two attempts to open the stream doubles with each, up to
// the longest; a stream that stood that long makes it the shortest again.
const (
	shortestRetryTail = 200 * time.Millisecond
	longestRetryTail  = 5 * time.Second
)

// backlog is how many stored events are asked for again after a broken stream.
const backlog = 10_000

// follow delivers events until ctx ends. subscribed is closed as soon as no
// later event can be missed.
func (t *recordTail) follow(ctx context.Context, subscribed chan<- struct{}) {
	since := time.Now().UnixNano()
	filter := &auditv1.Filter{Kinds: []auditv1.Kind{auditv1.Kind_KIND_DECISION, auditv1.Kind_KIND_CONNECTION}, From: since}
	broken := false
	var delay time.Duration
	for {
		var opened time.Time
		err := t.stream(ctx, filter, func() {
			opened = time.Now()
			if subscribed != nil {
				close(subscribed)
				subscribed = nil
			}
			if broken {
				t.back()
			}
			broken = false
		})
		if ctx.Err() != nil {
			return
		}
		if !broken {
			t.lost(err)
		}
		broken = true
		delay = min(max(2*delay, shortestRetryTail), longestRetryTail)
		if !opened.IsZero() && time.Since(opened) >= longestRetryTail {
			delay = shortestRetryTail
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (t *recordTail) stream(ctx context.Context, filter *auditv1.Filter, opened func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := t.client.Tail(ctx, &auditv1.TailRequest{Filter: filter, Backlog: t.wantBacklog()})
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		// The first message is empty: the subscription stands.
		if first {
			opened()
		}
		if resp.GetRecord() != nil {
			t.take(resp.GetRecord())
		}
	}
}

// wantBacklog asks for what was missed while somebody may wait for it.
func (t *recordTail) wantBacklog() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live != nil {
		return 0
	}
	return backlog
}

func (t *recordTail) take(stored *auditv1.StoredRecord) {
	r := &recorded{id: stored.GetDecisionId(), event: &auditv1.Event{}}
	if err := proto.Unmarshal(stored.GetRecord().GetEvent(), r.event); err != nil {
		return // verification finds and names it
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live != nil {
		t.live(r)
		return
	}
	t.seen[r.id] = r
	close(t.changed)
	t.changed = make(chan struct{})
}

// find waits for an event that match accepts.
func (t *recordTail) find(ctx context.Context, match func(*recorded) bool) (*recorded, error) {
	for {
		t.mu.Lock()
		for _, r := range t.seen {
			if match(r) {
				t.mu.Unlock()
				return r, nil
			}
		}
		changed := t.changed
		t.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("not on record: %w", context.Cause(ctx))
		}
	}
}

// goLive ends the waiting: what comes from now on goes to show.
func (t *recordTail) goLive(show func(*recorded)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live = show
	t.seen = nil
}

// byDecision matches the event of a response, byPort that of a connection
// which was refused before there was one.
func byDecision(id string) func(*recorded) bool {
	return func(r *recorded) bool { return r.id == id }
}

func byPort(ports map[int]bool, target string) func(*recorded) bool {
	return func(r *recorded) bool {
		return r.event.GetKind() == auditv1.Kind_KIND_CONNECTION &&
			r.event.GetDestination().GetService() == target && ports[int(r.event.GetConnection().GetPeerPort())]
	}
}

// settled waits until the collector has everything that recorders said they
// committed.
func settled(ctx context.Context, client auditv1.AdminClient) error {
	for {
		status, err := client.Status(ctx, &auditv1.AuditStatusRequest{})
		if err != nil {
			return fmt.Errorf("audit status: %w", rpcError(err))
		}
		var behind uint64
		for _, s := range status.GetStreams() {
			behind += s.GetCommitted() - min(s.GetStored(), s.GetCommitted())
		}
		if behind == 0 {
			return nil
		}
		timer := time.NewTimer(10 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.New("audit: events are missing at the collector")
		}
	}
}

// verifyRecord fetches the whole record and verifies it here, with the public
// key: the collector's own word does not count. It returns how many events are
// on record.
func (u *upRun) verifyRecord(ctx context.Context, client auditv1.AdminClient) (uint64, error) {
	key, err := os.ReadFile(u.dir.path("public", "audit.vkey"))
	if err != nil {
		return 0, fmt.Errorf("verify the record: %w", err)
	}
	file, err := os.CreateTemp(u.dir.path("run"), "record-*.tar")
	if err != nil {
		return 0, fmt.Errorf("verify the record: %w", err)
	}
	defer os.Remove(file.Name())
	err = fetchRecord(ctx, client, file)
	if err = errors.Join(err, file.Close()); err != nil {
		return 0, fmt.Errorf("fetch the record: %w", err)
	}
	report, err := ledger.Verify(ctx, ledger.VerifyConfig{Path: file.Name(), Keys: string(key)})
	if err != nil {
		return 0, fmt.Errorf("verify the record: %w", err)
	}
	for _, p := range report.Problems {
		u.view.warn("record: %s", p)
	}
	if !report.OK {
		return report.Events, errors.New("the record does not verify")
	}
	return report.Events, nil
}

func fetchRecord(ctx context.Context, client auditv1.AdminClient, w io.Writer) error {
	stream, err := client.Archive(ctx, &auditv1.ArchiveRequest{})
	if err != nil {
		return rpcError(err)
	}
	for {
		chunk, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return rpcError(err)
		}
		if _, err := w.Write(chunk.GetData()); err != nil {
			return err
		}
	}
}
