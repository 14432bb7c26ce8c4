package server_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/policyv1"
)

// by is what decides by the newest revision, and that the slice of a workload
// carries a program exactly when it is said to be compiled.
func (p *plane) by() string {
	p.t.Helper()
	list, err := p.admin.List(p.t.Context(), &policyv1.ListRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	newest := list.Revisions[0]
	sealed, err := p.admin.Slice(p.t.Context(), &policyv1.SliceRequest{SpiffeId: ordersID, Number: newest.Revision.Number})
	if err != nil {
		p.t.Fatal(err)
	}
	slice, err := bundle.OpenSlice(sealed.Bundle, p.keys, spiffeid.RequireFromString(ordersID))
	if err != nil {
		p.t.Fatal(err)
	}
	if (slice.Program != nil) != (newest.Engine == compile.EngineCompiled) {
		p.t.Errorf("revision %d is said to be %s, and its slice has a program of %d bytes", newest.Revision.Number, newest.Engine, len(slice.Program))
	}
	return newest.Engine + " " + newest.EngineReason
}

// TestDivergenceStays with the content: whatever puts it in force again, by
// whatever number, it is evaluated.
func TestDivergenceStays(t *testing.T) {
	const compiled, evaluated = "compiled ", "topdown diverged: orders said no"
	good, bad := sources("GET"), sources("POST")
	p := newPlane(t, nil)
	wants := func(what, want string) {
		t.Helper()
		if got := p.by(); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	rollback := func(number uint64) (string, string) {
		t.Helper()
		resp, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: number})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Engine, resp.EngineReason
	}
	p.push(good)
	p.push(bad)
	wants("before", compiled)
	if err := p.server.Diverged(t.Context(), p.server.Active().Revision, "orders said no"); err != nil {
		t.Fatal(err)
	}
	wants("it diverged", evaluated)
	if resp := p.push(bad); !resp.Unchanged {
		t.Errorf("pushed again: %v", resp)
	}
	p.push(good)
	wants("another content", compiled)
	if engine, reason := rollback(2); engine+" "+reason != evaluated {
		t.Errorf("the rollback says %q, %q", engine, reason)
	}
	wants("a rollback", evaluated)
	backup := p.backup()
	for _, again := range []struct {
		name string
		do   func()
	}{{"a restart", p.start}, {"a restore", func() { p.restore(backup) }}} {
		again.do()
		p.push(good)
		if resp := p.push(bad); resp.Engine+" "+resp.EngineReason != evaluated {
			t.Errorf("the push says %v", resp)
		}
		wants("a push after "+again.name, evaluated)
	}
	rollback(1)
	wants("a rollback to the other", compiled)
	p.canary("POST", &policyv1.Rollout{Percent: 50})
	wants("a rollout", evaluated)
	if _, err := p.admin.Halt(t.Context(), &policyv1.HaltRequest{}); err != nil {
		t.Fatal(err)
	}
	wants("its halt", compiled)
	resp, err := p.admin.Propose(t.Context(), &policyv1.ProposeRequest{Bundle: p.bundle(bad, p.publisher)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.admin.Activate(t.Context(), &policyv1.ActivateRequest{Number: resp.Proposal.Number}); err != nil {
		t.Fatal(err)
	}
	wants("a proposal", evaluated)
	if _, err := p.server.RaiseEpoch(t.Context(), 0, "x"); err != nil {
		t.Fatal(err)
	}
	wants("a higher epoch", evaluated)
	// As it is after an upgrade.
	if _, err := p.config.DB.ExecContext(t.Context(), `UPDATE policy_divergences SET compiler = 'an older one'`); err != nil {
		t.Fatal(err)
	}
	if resp := p.push(bad); resp.Unchanged {
		t.Error("what another compiler got wrong is not compiled again")
	}
	wants("another compiler", compiled)
}

// TestDivergenceOfThePast is seen after its revision was replaced.
func TestDivergenceOfThePast(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	first := p.server.Active().Revision
	p.push(sources("POST"))
	foreign := first
	foreign.Number = 2
	for _, r := range []policy.Revision{foreign, {Epoch: 1, Number: 9}, {}} {
		if err := p.server.Diverged(t.Context(), r, "x"); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	if _, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 1}); err != nil {
		t.Fatal(err)
	}
	if got := p.by(); got != "compiled " {
		t.Fatalf("of revisions that never were: %q", got)
	}
	// The same content, under another number.
	if err := p.server.Diverged(t.Context(), first, "late"); err != nil {
		t.Fatal(err)
	}
	if got := p.by(); got != "topdown diverged: late" || p.server.Active().Revision.Number != 4 {
		t.Errorf("%v in force: %q", p.server.Active().Revision, got)
	}
	p.push(sources("PUT"))
	put := p.server.Active().Revision
	p.push(sources("GET"))
	if err := p.server.Diverged(t.Context(), put, "later"); err != nil || p.server.Active().Revision.Number != 6 {
		t.Errorf("%v in force: %v", p.server.Active().Revision, err)
	}
	p.push(sources("PUT"))
	if got := p.by(); got != "topdown diverged: later" {
		t.Errorf("a push: %q", got)
	}
}

// TestDivergedContentInForce compiled, as a build left it that did not keep what
// had diverged: the next start moves it, by a revision that followers take.
func TestDivergedContentInForce(t *testing.T) {
	for _, tt := range []struct {
		name     string
		rollout  bool
		diverged uint64
		stages   string
	}{
		{"for all", false, 1, "*2 all, 1 all"},
		{"in a rollout", true, 2, "*3 all, 2 halted, 1 all"},
		{"before a rollout", true, 1, "*3 all, 2 halted, 1 all"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil)
			p.push(sources("GET"))
			if tt.rollout {
				p.canary("POST", &policyv1.Rollout{Percent: 50})
			}
			if _, err := p.config.DB.ExecContext(t.Context(), `INSERT INTO policy_divergences (digest, compiler, detail)
				SELECT digest, ?, 'once' FROM policy_revisions WHERE number = ?`, compile.Version, tt.diverged); err != nil {
				t.Fatal(err)
			}
			for range 2 { // Once.
				p.start()
				if got := p.stages(); got != tt.stages {
					t.Errorf("stages: %s, want %s", got, tt.stages)
				}
				if got := p.by(); got != "topdown diverged: once" {
					t.Errorf("by %q", got)
				}
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			alarms := 0
			for _, act := range p.acts {
				if act.Kind == identity.ActAlarm && strings.Contains(act.Reason, "once") {
					alarms++
				}
			}
			if alarms != 1 {
				t.Errorf("%d alarms in %+v", alarms, p.acts)
			}
		})
	}
}

// TestDivergedSources tell a follower that trusts publishers not to compile.
func TestDivergedSources(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	for _, want := range []bool{false, true} {
		conn := p.dial(ordersID)
		stream, err := policyv1.NewDistributionClient(conn).Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&policyv1.WatchRequest{Report: &policyv1.Report{}, WantSources: true}); err != nil {
			t.Fatal(err)
		}
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		src, err := bundle.OpenSources(msg.Bundle, p.keys, spiffeid.RequireFromString(ordersID))
		if err != nil || src.Evaluate != want {
			t.Errorf("evaluate %v, want %v; %v", src.Evaluate, want, err)
		}
		if err := p.server.Diverged(t.Context(), p.server.Active().Revision, "x"); err != nil {
			t.Fatal(err)
		}
	}
}
