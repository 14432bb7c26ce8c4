package issuer_test

import (
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
	"github.com/writ-dev/writ/identity/watchv1"
)

func startWatch(t *testing.T, a *agent) (watchv1.EntryWatch_WatchClient, *watchv1.Change) {
	t.Helper()
	stream, err := a.watch().Watch(t.Context(), &watchv1.WatchRequest{})
	must(t, err)
	first, err := stream.Recv() // comes at once
	must(t, err)
	return stream, first
}

func TestWatch(t *testing.T) {
	w := newWorld(t, func(c *issuer.Config, a *ca.Config) { a.Life, c.AgentSVIDLife = 4*time.Hour, 3*time.Hour })
	a, b := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	watchA, first := startWatch(t, a)
	watchB, _ := startWatch(t, b)
	if first.Revision == 0 {
		t.Error("no revision")
	}
	last := first.Revision
	next := func() *watchv1.Change {
		t.Helper()
		c, err := watchA.Recv()
		must(t, err)
		if c.Revision <= last {
			t.Errorf("revision %d after %d", c.Revision, last)
		}
		last = c.Revision
		return c
	}
	made := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
	if c := next(); c.Bundle {
		t.Error("the bundle did not change")
	}
	w.deleteEntry(made.Id)
	next()
	// Two hours are half of the authorities' life.
	w.clock.advance(2 * time.Hour)
	must(t, w.ca.Rotate(t.Context()))
	if c := next(); !c.Bundle {
		t.Error("the bundle did change")
	}
	// B heard of nothing that is A's: its first news is the bundle.
	if c, err := watchB.Recv(); err != nil || !c.Bundle {
		t.Errorf("B was told %v, %v", c, err)
	}
	w.clock.advance(time.Hour)
	w.create(entry("/svc/web", "/node/a", "uid:1"))
	_, err := watchA.Recv()
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_EXPIRED)
}

func TestWatchEndsWithTheRight(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.join(w.token("")), w.join(w.token("")), w.join(w.token(""))
	ctx := t.Context()
	watchA, _ := startWatch(t, a)
	watchB, _ := startWatch(t, b)
	watchC, _ := startWatch(t, c)
	_, err := w.agents().BanAgent(ctx, &agentv1.BanAgentRequest{Id: id(a.id.Path())})
	must(t, err)
	_, err = watchA.Recv()
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_BANNED)
	_, err = w.agents().DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id(b.id.Path())})
	must(t, err)
	_, err = watchB.Recv()
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED)

	// A renewed SVID, once used, ends what was opened with the old one.
	key := newKey(t)
	renewed, err := c.agents().RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, key, "")}})
	must(t, err)
	_, err = watchC.Recv() // the agent's own record changed
	must(t, err)
	fresh := &agent{w: w}
	fresh.adopt(renewed.Svid, key)
	defer fresh.conn.Close()
	_, err = fresh.agents().PostStatus(ctx, &agentv1.PostStatusRequest{})
	must(t, err)
	_, err = watchC.Recv()
	wantDenied(t, err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
}

// Many changes while nobody reads become few messages, and the last revision
// arrives.
func TestWatchCoalesces(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token("/node/a"))
	stream, _ := startWatch(t, a)
	for n := range 50 {
		e := w.create(entry("/svc/web", "/node/a", "uid:1"))[0]
		if n < 49 {
			w.deleteEntry(e.Id)
		}
	}
	revision, _ := w.store.Index().Revision()
	bundle, _ := w.issuer.Bundle()
	for {
		c, err := stream.Recv()
		must(t, err)
		if c.Revision == revision+bundle.Sequence {
			break
		}
	}
}

func TestWatchEndsWithTheIssuer(t *testing.T) {
	w := newWorld(t)
	a := w.join(w.token(""))
	stream, _ := startWatch(t, a)
	w.stop()
	_, err := stream.Recv()
	wantCode(t, err, codes.Unavailable)
}
