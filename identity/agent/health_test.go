package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// problem waits until Health says want, "" for nothing, and fails when it is later
// than it may be.
func (b *bench) problem(want string, within time.Duration) {
	b.t.Helper()
	late := time.After(within)
	for {
		changed, until, problem := b.agent.Health()
		switch {
		case problem == nil && want == "":
			return
		case problem != nil && want != "" && strings.Contains(problem.Error(), want):
			return
		}
		var due <-chan time.Time
		if !until.IsZero() {
			due = time.After(time.Until(until))
		}
		select {
		case <-changed:
		case <-due:
		case <-late:
			b.t.Fatalf("health is %v, want %q", problem, want)
		}
	}
}

// An agent that has nothing valid left to serve says so, and takes it back.
func TestHealthWithIssuerAway(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.life, b.f.own = time.Minute, 10*time.Minute
		token := "token-1"
		b.token = func() (string, error) { return token, nil }
		b.mustRun()
		b.problem("", 0)
		b.f.stop()
		if _, _, problem := b.agent.Health(); problem != nil {
			t.Errorf("with what is still valid: %v", problem)
		}
		b.problem("all SVIDs have expired", 2*time.Minute)
		b.problem("own SVID expired", 15*time.Minute)
		synctest.Wait()
		token = "token-2"
		b.f.start()
		b.problem("", time.Minute)
	})
}

// Before the entries are known nothing is served, and with none nothing is wrong.
func TestHealthAtStart(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.entries = nil
		b.mustRun()
		b.problem("", 0)
	})
}
