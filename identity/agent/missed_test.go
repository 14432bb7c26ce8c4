package agent_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/agent"
	"github.com/writ-dev/writ/identity/agent/agenttest"
)

// startAgent runs an agent until the test ends, and returns it when it is ready.
func startAgent(t *testing.T, r *agenttest.Issuer, node string) *agent.Agent {
	t.Helper()
	token := r.Token(node)
	a, err := agent.New(config(t, r), agent.Options{
		Token: func() (string, error) { return token, nil }, Log: slog.New(slog.DiscardHandler), Dial: r.Dial,
	})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
	})
	<-a.Ready()
	return a
}

// awaitNames waits until a process with the selector has exactly these names, each
// with an SVID.
func awaitNames(t *testing.T, a *agent.Agent, selector string, want ...string) {
	t.Helper()
	for {
		g, changed, err := a.Lookup(t.Context(), []string{selector})
		must(t, err)
		var got []string
		for _, id := range g.Identities {
			if id.Chain != nil {
				got = append(got, strings.TrimSuffix(id.ID.Path()+" "+id.Hint, " "))
			}
		}
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
		<-changed
	}
}

// Real agents of an issuer that is restarted, and changed while they cannot reach
// it, get exactly what they missed.
func TestReconnect(t *testing.T) {
	r := agenttest.StartInMemory(t, time.Hour)
	const entries = 20
	ids := map[string][]string{}
	for _, node := range []string{"/node/same", "/node/changed", "/node/large"} {
		count := entries
		if node == "/node/large" {
			count = 700 // more than one page
		}
		for n := range count {
			ids[node] = append(ids[node], r.Create(fmt.Sprintf("%s/%d", node, n), node, fmt.Sprintf("uid:%d", n%100)))
		}
	}
	agents := map[string]*agent.Agent{}
	for node := range ids {
		agents[node] = startAgent(t, r, node)
	}
	// Each entry, and each agent's alias.
	if want := (agenttest.Sent{Entries: 2*entries + 700 + 3, Bundles: r.Sent().Bundles}); cmp.Diff(want, r.Sent()) != "" {
		t.Errorf("at first agents were sent %+v", r.Sent())
	}

	r.Restart(nil)
	// Every agent connects, asks, and is told that it missed nothing.
	r.Await("Sync", 3)
	wantSent(t, r, agenttest.Sent{})

	r.Restart(func() {
		r.Delete(ids["/node/changed"][0])
		r.SetHint(ids["/node/changed"][1], "h")
		r.Create("/new", "/node/changed", "uid:1")
		r.Delete(ids["/node/large"][7])
	})
	awaitNames(t, agents["/node/changed"], "unix:uid:0")
	awaitNames(t, agents["/node/changed"], "unix:uid:1", "/new", "/node/changed/1 h")
	awaitNames(t, agents["/node/large"], "unix:uid:7", "/node/large/107", "/node/large/207", "/node/large/307", "/node/large/407", "/node/large/507", "/node/large/607")
	r.Await("Sync", 5) // those of whom something has changed ask twice
	wantSent(t, r, agenttest.Sent{Entries: 2, Gone: 2})
	for node, a := range agents {
		if s := a.Status(); s.Entries != s.SVIDs+1 { // but for the alias
			t.Errorf("%s: %d entries, %d SVIDs", node, s.Entries, s.SVIDs)
		}
	}
}

func wantSent(t *testing.T, r *agenttest.Issuer, want agenttest.Sent) {
	t.Helper()
	if diff := cmp.Diff(want, r.Sent()); diff != "" {
		t.Errorf("agents were sent: %s", diff)
	}
	for _, method := range []string{"SyncAuthorizedEntries", "GetAuthorizedEntries", "GetBundle"} {
		if n := r.Calls(method); n > 0 {
			t.Errorf("%d calls of %s", n, method)
		}
	}
}
