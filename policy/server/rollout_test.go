package server_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/policyv1"
	"github.com/writ-dev/writ/policy/server"
)

// replica is a follower whose reports are the test's. It takes what it is sent
// and says so; its version is its name.
type replica struct {
	p      *plane
	stream grpc.BidiStreamingClient[policyv1.WatchRequest, policyv1.Slice]

	mu     sync.Mutex
	report *policyv1.Report
}

func (p *plane) replica(instance string) *replica {
	p.t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(p.t.Context(), policyv1.InstanceKey, instance))
	stream, err := policyv1.NewDistributionClient(p.dial(ordersID)).Watch(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	r := &replica{p: p, stream: stream, report: &policyv1.Report{Service: "orders", Version: instance}}
	r.say(func(*policyv1.Report) {})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			msg, err := stream.Recv()
			if err != nil {
				return
			}
			r.say(func(report *policyv1.Report) {
				if len(msg.Bundle) > 0 {
					report.Revision, report.Decisions, report.Denied, report.Refused = msg.Revision, 0, 0, ""
				}
			})
		}
	}()
	p.t.Cleanup(func() { cancel(); <-done })
	return r
}

// say changes the report and sends it.
func (r *replica) say(change func(*policyv1.Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r.report)
	if err := r.stream.Send(&policyv1.WatchRequest{Report: r.report}); err != nil && !errors.Is(err, io.EOF) {
		r.p.t.Error(err)
	}
}

func (r *replica) decided(decisions, denied uint64) {
	r.say(func(report *policyv1.Report) { report.Decisions, report.Denied = decisions, denied })
}

// running waits until so many connected replicas run the revision, and names
// those that do.
func (p *plane) running(n int, number uint64) (names []string) {
	p.t.Helper()
	p.await(func(reports []server.PeerReport) bool {
		names = nil
		for _, r := range reports {
			if r.Connected && r.Report.Revision.GetNumber() == number {
				names = append(names, r.Report.Version)
			}
		}
		return len(names) == n
	})
	slices.Sort(names)
	return names
}

// replicas are n that run a revision.
func (p *plane) replicas(n int, number uint64) map[string]*replica {
	p.t.Helper()
	all := map[string]*replica{}
	for i := range n {
		name := fmt.Sprintf("i%d", i)
		all[name] = p.replica(name)
	}
	p.running(n, number)
	return all
}

func (p *plane) canary(method string, rollout *policyv1.Rollout) uint64 {
	p.t.Helper()
	resp, err := p.admin.Push(p.t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources(method), p.publisher), Rollout: rollout})
	if err != nil || resp.Revision == nil {
		p.t.Fatal(resp, err)
	}
	return resp.Revision.Number
}

func (p *plane) stages() string {
	p.t.Helper()
	list, err := p.admin.List(p.t.Context(), &policyv1.ListRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	var out []string
	for _, r := range list.Revisions {
		mark := ""
		if r.Active {
			mark = "*"
		}
		out = append(out, fmt.Sprintf("%s%d %s", mark, r.Revision.Number, r.Stage))
	}
	return strings.Join(out, ", ")
}

func TestRolloutShareAndPromote(t *testing.T) {
	for _, tt := range []struct{ followers, percent, chosen int }{
		{1, 10, 1}, {2, 99, 1}, {3, 10, 1}, {10, 10, 1}, {10, 25, 3}, {20, 50, 10},
	} {
		t.Run(fmt.Sprintf("%d of %d", tt.percent, tt.followers), func(t *testing.T) {
			p := newPlane(t, nil)
			p.push(sources("GET"))
			p.replicas(tt.followers, 1)
			p.canary("POST", &policyv1.Rollout{Percent: uint32(tt.percent)})
			if r := p.server.Rollout(); r.Chosen != tt.chosen || r.Followers != tt.followers {
				t.Errorf("chosen: %d of %d, want %d", r.Chosen, r.Followers, tt.chosen)
			}
			p.running(tt.chosen, 2)
			p.running(tt.followers-tt.chosen, 1)
			if got, want := p.stages(), "2 canary, *1 all"; got != want {
				t.Errorf("stages: %s, want %s", got, want)
			}
			if v := verdict(p.server, request("orders", "GET")); v != policy.Allow {
				t.Errorf("what is in force: %v", v)
			}
			if _, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("PUT"), p.publisher)}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a push in between: %v", err)
			}
			if _, err := p.admin.Rollback(t.Context(), &policyv1.RollbackRequest{Number: 1}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a rollback in between: %v", err)
			}
			if resp, err := p.admin.Promote(t.Context(), &policyv1.PromoteRequest{}); err != nil || resp.Revision.Number != 2 {
				t.Fatal(resp, err)
			}
			p.running(tt.followers, 2)
			if got, want := p.stages(), "*2 all, 1 all"; got != want {
				t.Errorf("stages: %s, want %s", got, want)
			}
			if v := verdict(p.server, request("orders", "POST")); v != policy.Allow {
				t.Errorf("what was promoted: %v", v)
			}
			if _, err := p.admin.Promote(t.Context(), &policyv1.PromoteRequest{}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("nothing to promote: %v", err)
			}
		})
	}
}

// TestRolloutHalts by itself, and gives everybody the content from before.
func TestRolloutHalts(t *testing.T) {
	const now = "*3 all, 2 halted, 1 all"
	for _, tt := range []struct {
		name string
		do   func(p *plane, with, without *replica)
		want string // in the alarm; empty: it goes on
	}{
		{"more is denied", func(p *plane, with, without *replica) {
			without.decided(1000, 20)
			with.decided(200, 15)
		}, "7.5% of 200 decisions are denied there, 2.0% of 1000 decisions elsewhere"},
		{"a little more", func(p *plane, with, without *replica) {
			without.decided(1000, 20)
			with.decided(200, 14)
		}, ""},
		{"too few decisions to tell", func(p *plane, with, without *replica) {
			without.decided(1000, 0)
			with.decided(199, 199)
		}, ""},
		{"nothing to compare with", func(p *plane, with, without *replica) { with.decided(500, 500) }, ""},
		{"it is refused", func(p *plane, with, without *replica) {
			with.say(func(r *policyv1.Report) { r.Revision, r.Refused = nil, "does not compile here" })
		}, "refused it: does not compile here"},
		{"another refuses something", func(p *plane, with, without *replica) {
			without.say(func(r *policyv1.Report) { r.Refused = "older" })
		}, ""},
		{"by hand", func(p *plane, with, without *replica) {
			if _, err := p.admin.Halt(p.t.Context(), &policyv1.HaltRequest{Reason: "no"}); err != nil {
				p.t.Fatal(err)
			}
		}, "no"},
		{"divergence", func(p *plane, with, without *replica) {
			if err := p.server.Diverged(p.t.Context(), p.server.Rollout().Revision, "x"); err != nil {
				p.t.Fatal(err)
			}
		}, "compiled and evaluated answers differ: x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil)
			p.push(sources("GET"))
			all := p.replicas(2, 1)
			p.canary("POST", &policyv1.Rollout{Percent: 50, MaxDenyIncrease: 50, MinDecisions: 200})
			with, without := all[p.running(1, 2)[0]], all[p.running(1, 1)[0]]
			tt.do(p, with, without)
			if tt.want == "" {
				// A report that comes after has been judged after.
				for _, r := range all {
					r.say(func(r *policyv1.Report) { r.Version = "judging" })
					r.say(func(r *policyv1.Report) { r.Version = "judged" })
				}
				p.await(func(reports []server.PeerReport) bool {
					return reports[0].Report.Version == "judged" && reports[1].Report.Version == "judged"
				})
				if got := p.stages(); got != "2 canary, *1 all" {
					t.Errorf("stages: %s", got)
				}
				return
			}
			p.running(2, 3)
			if got := p.stages(); got != now {
				t.Errorf("stages: %s, want %s", got, now)
			}
			if v := verdict(p.server, request("orders", "GET")); v != policy.Allow {
				t.Errorf("in force: %v", v)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			var last identity.Act
			for _, act := range p.acts {
				if act.Verb == "halted" {
					last = act
				}
			}
			if last.Details[0][1] != tt.want && !strings.HasSuffix(last.Details[0][1], tt.want) || (last.Kind == identity.ActAlarm) != (tt.name != "by hand") {
				t.Errorf("act: %+v, want %q", last, tt.want)
			}
		})
	}
}

// TestRolloutOfAFollower: a follower counts what it decides, and what it denies
// halts the rollout that it was chosen for.
func TestRolloutOfAFollower(t *testing.T) {
	p := newPlane(t, func(c *server.Config) { c.Heartbeat = 5 * time.Millisecond })
	p.push(sources("GET"))
	_, activated, _ := p.follower(t.TempDir(), ordersID)
	<-activated
	p.await(func(r []server.PeerReport) bool { return len(r) == 1 && r[0].Report.Revision.GetNumber() == 1 })
	p.canary("POST", &policyv1.Rollout{Percent: 1, MaxDenyIncrease: 300, MinDecisions: 20})
	chosen := <-activated
	if chosen.Revision.Number != 2 {
		t.Fatalf("the only follower has %v", chosen.Revision)
	}
	p.running(1, 2) // Until it says so, it could be taken for the other.
	other := p.replica("other")
	p.running(1, 1)
	other.decided(1000, 0)
	for range 14 {
		verdict(chosen.Decider, request("orders", "POST"))
	}
	for range 5 {
		verdict(chosen.Decider, request("orders", "GET"))
	}
	p.await(func(reports []server.PeerReport) bool {
		for _, r := range reports {
			if r.Report.Decisions == 19 && r.Report.Denied == 5 && r.Report.Engine != "" {
				return true
			}
		}
		return false
	})
	for range 2 { // 7 of 21 are a third.
		verdict(chosen.Decider, request("orders", "GET"))
	}
	after := <-activated
	if after.Revision.Number != 3 || verdict(after.Decider, request("orders", "GET")) != policy.Allow {
		t.Errorf("after the halt: %v", after.Revision)
	}
	if got, want := p.stages(), "*3 all, 2 halted, 1 all"; got != want {
		t.Errorf("stages: %s, want %s", got, want)
	}
}

// TestRolloutSurvivesRestart: who had it has it, and a follower that comes later
// is chosen by the same measure.
func TestRolloutSurvivesRestart(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	p.replicas(8, 1)
	p.canary("POST", &policyv1.Rollout{Percent: 50})
	before := p.running(4, 2)
	p.start()
	if r := p.server.Rollout(); r == nil || r.Revision.Number != 2 || r.Percent != 50 {
		t.Fatalf("after a restart: %v", r)
	}
	for i := range 8 {
		p.replica(fmt.Sprintf("i%d", i))
	}
	p.running(4, 1)
	after := p.running(4, 2)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("chosen before %v, after %v", before, after)
	}
	if _, err := p.admin.Halt(t.Context(), &policyv1.HaltRequest{}); err != nil {
		t.Error(err)
	}
}

// TestRolloutThatCannotBePrepared by a stricter build, and neither can what was
// in force before: writd starts, and a push mends it.
func TestRolloutThatCannotBePrepared(t *testing.T) {
	p := newPlane(t, nil)
	store, err := revisions.Open(t.Context(), p.config.DB)
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{revisions.All, revisions.Canary} {
		info := revisions.Info{Activated: p.config.Clock(), Author: "x", Stage: stage}
		bad := bundle.Content{{Path: "x.rego", Content: []byte("package services.orders\n\nallow if " + stage)}}
		_, err := store.Add(t.Context(), bad, nil, info, func(tx *sql.Tx, info revisions.Info) error {
			if stage == revisions.All {
				return nil
			}
			return store.StartRollout(t.Context(), tx, revisions.Running{Number: info.Revision.Number, Threshold: math.MaxUint64, Settled: true})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p.start()
	if act := p.acts[len(p.acts)-1]; act.Kind != identity.ActAlarm || act.Verb != "halted" {
		t.Errorf("on record: %+v", act)
	}
	p.replica("a")
	if resp := p.push(sources("GET")); resp.Revision.GetNumber() != 3 {
		t.Errorf("push: %v", resp)
	}
	p.running(1, 3)
}

// TestRolloutWithoutFollowers goes to the first that connects.
func TestRolloutWithoutFollowers(t *testing.T) {
	p := newPlane(t, nil)
	if _, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Bundle: p.bundle(sources("GET"), p.publisher), Rollout: &policyv1.Rollout{Percent: 1}}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("nothing to go back to: %v", err)
	}
	for _, bad := range []*policyv1.Rollout{{}, {Percent: 100}, {Percent: 5, MaxDenyIncrease: 1001}} {
		if _, err := p.admin.Push(t.Context(), &policyv1.PushRequest{Rollout: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	p.push(sources("GET"))
	p.canary("POST", &policyv1.Rollout{Percent: 1})
	for range 2 { // The same after a restart, where another may come first.
		p.replica("a")
		p.running(1, 2)
		p.start()
		p.replica("c") // Its hash is beyond the share; that of b is not.
		p.running(1, 1)
	}
}

// TestDivergedWithoutARollout keeps the content, and has it evaluated.
func TestDivergedWithoutARollout(t *testing.T) {
	p := newPlane(t, nil)
	p.push(sources("GET"))
	old := p.server.Active().Revision
	p.push(sources("POST"))
	for _, tt := range []struct {
		revision policy.Revision
		want     uint64
	}{{old, 2}, {p.server.Active().Revision, 3}} {
		if err := p.server.Diverged(t.Context(), tt.revision, "x"); err != nil {
			t.Fatal(err)
		}
		if got := p.server.Active().Revision.Number; got != tt.want {
			t.Errorf("%v diverged: %d is in force, want %d", tt.revision, got, tt.want)
		}
	}
	list, err := p.admin.List(t.Context(), &policyv1.ListRequest{})
	if err != nil || list.Revisions[0].Engine != "topdown" || !strings.Contains(list.Revisions[0].EngineReason, "x") {
		t.Errorf("list: %v, %v", list.Revisions[0], err)
	}
	if p.acts[len(p.acts)-1].Kind != identity.ActAlarm {
		t.Errorf("acts: %+v", p.acts)
	}
	// It happens once.
	if err := p.server.Diverged(t.Context(), p.server.Active().Revision, "x"); err != nil || p.server.Active().Revision.Number != 3 {
		t.Errorf("again: %v", err)
	}
}
